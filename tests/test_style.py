"""The palette of the figures."""

import numpy as np
from matplotlib.colors import to_rgb

from cifarlib.report import style


def contrast(colour):
    """WCAG's contrast ratio of a colour with the white behind every figure."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 1.05 / (np.dot([0.2126, 0.7152, 0.0722], parts) + 0.05)


def test_colours_stand_out_from_paper_and_page():
    colours = [*style.RATES.values(), *style.SPLIT_COLOURS.values(), style.BEST]
    assert min(map(contrast, colours)) > 3
    assert len(set(style.RATES.values())) == 4
