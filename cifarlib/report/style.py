"""How figures look: one colour-blind safe palette, and one font that comes with matplotlib.

Colours stand for learning rates and line styles for weight decay in every figure that shows runs.
Seaborn takes ``RATES`` as a palette and ``DASHES`` as styles.
"""

import math

import matplotlib as mpl
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

__all__ = [
    "BEST", "DASHES", "OPTIMIZERS", "RATES", "SIDES", "SPLIT_COLOURS", "STYLE", "set_log",
    "use",
]  # fmt: skip
__dir__ = __all__.copy  # what a notebook completes

RATES = {0.1: "#882255", 0.01: "#d95f02", 0.001: "#009988", 0.0001: "#0077bb"}
DASHES = {0.001: "", 0.0001: (3, 1.5)}  # by weight decay
SPLIT_COLOURS = {"train": "#0077bb", "validation": "#009988", "test": "#cc4a00"}
BEST = "#cc3311"
SIDES = {"paper": "#bbbbbb", "ours": "#0077bb"}

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

OPTIMIZERS = {"sgd": "SGD", "adam": "Adam", "adamw": "AdamW"}


def use() -> None:
    """Set the style for all figures of a notebook."""
    mpl.rcParams.update(STYLE)


def set_log(axis: Axes) -> None:
    """A logarithmic loss axis with plain numbers, fewer where it spans more, one near its foot."""
    axis.set_yscale("log")
    low, high = axis.get_ylim()
    steps = (1, 2, 5) if high < 50 * low else (1,)
    power = 10.0 ** math.floor(math.log10(low))
    foot = max(step * power for step in steps if step * power <= low)
    if low < 1.3 * foot:
        axis.set_ylim(bottom=foot)
    axis.yaxis.set_major_locator(LogLocator(10, subs=steps))
    axis.yaxis.set_major_formatter(FuncFormatter(_plain))
    axis.yaxis.set_minor_locator(NullLocator())


def _plain(value: float, _: int) -> str:
    """0.5, 200, and powers of ten beyond: 10⁷."""
    if 1e-3 <= value < 1e4:
        return f"{value:g}"
    digits, power = f"{value:.0e}".split("e")
    factor = "" if digits == "1" else f"{digits}·"
    return f"{factor}10{str(int(power)).translate(SUPERSCRIPTS)}"


SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
