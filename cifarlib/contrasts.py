"""An interval of differences in words, for the chapter past the paper."""

from cifarlib.formatting import signed
from cifarlib.statistics import Interval


def say_interval(interval: Interval, digits: int = 2) -> str:
    """An interval of differences in words: “−0.12 to +0.85”."""
    return f"{signed(digits)(interval.low)} to {signed(digits)(interval.high)}"
