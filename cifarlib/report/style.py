"""How figures look: one colour-blind safe palette, and one font that comes with matplotlib.

Colours stand for learning rates, line styles for weight decay and marks for batch sizes in every
figure that shows runs. Seaborn takes ``RATES`` as a palette, ``DASHES`` and ``MARKS`` as styles.
"""

import matplotlib as mpl
import seaborn as sns

RATE_COLOURS = {0.1: "#882255", 0.01: "#d95f02", 0.001: "#009988", 0.0001: "#0077bb"}
DECAY_STYLES = {0.001: "-", 0.0001: (0, (3, 1.5))}
BATCH_MARKS = {
    32: ("#1a1a1a", "o"),
    64: ("#6b6b6b", "s"),
    128: ("#b0b0b0", "D"),
    256: ("#ffffff", "^"),
}
SPLIT_COLOURS = {"train": "#0077bb", "validation": "#009988", "test": "#cc4a00"}
BEST = "#cc3311"

STYLE = {
    **sns.axes_style("whitegrid"),
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "legend.fontsize": 8,
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same on every machine
}

RATES = RATE_COLOURS
DASHES = {0.001: "", 0.0001: (3, 1.5)}  # by weight decay
MARKS = {size: mark for size, (_, mark) in BATCH_MARKS.items()}
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}


def use() -> None:
    """Set the style for all figures of a notebook."""
    mpl.rcParams.update(STYLE)
