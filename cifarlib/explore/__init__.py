"""Exploring runs: a frame of all, linked charts, pairs, mistakes, training."""

from cifarlib.explore.charts import linked as linked
from cifarlib.explore.collection import find_run as find_run
from cifarlib.explore.collection import tabulate as tabulate
from cifarlib.explore.inspect import find_mistakes as find_mistakes
from cifarlib.explore.inspect import say_better as say_better
from cifarlib.explore.inspect import tabulate_pair as tabulate_pair
from cifarlib.explore.page import render as render
from cifarlib.explore.page import use_offline_charts as use_offline_charts
