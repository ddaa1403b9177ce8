"""Exploring runs: a frame of all, linked charts, pairs, mistakes, training."""

from cifarlib.explore.charts import linked
from cifarlib.explore.collection import find_run, tabulate
from cifarlib.explore.inspect import find_mistakes, say_better, tabulate_pair
from cifarlib.explore.page import render, use_offline_charts

__all__ = [
    "find_mistakes", "find_run", "linked", "render", "say_better", "tabulate", "tabulate_pair",
    "use_offline_charts",
]  # fmt: skip
__dir__ = __all__.copy  # what a notebook completes
