"""Numbers as text: a true minus, as many decimals as asked for, and no sign before a zero."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

Formatter = Callable[[float], str]


def fixed(decimals: int) -> Formatter:
    """Formats a number with a true minus: 12.3, −0.4."""
    return lambda value: f"{value:z.{decimals}f}".replace("-", "−")


def signed(decimals: int) -> Formatter:
    """Formats a difference: +1.2, −0.4, 0.0."""

    def form(value: float) -> str:
        text = f"{value:+z.{decimals}f}"
        return text[1:] if float(text) == 0 else text.replace("-", "−")

    return form


def say_p(p: float) -> str:
    """A p value: “p = 0.034”, “p < 0.001”."""
    return f"p {format_p(p)}" if p < 0.001 else f"p = {format_p(p)}"


def format_p(p: float) -> str:
    """A p value by itself: “0.034”, “< 0.001”, “0.0496”, which is not 0.05."""
    return "< 0.001" if p < 0.001 else f"{min(p, 0.0499):.4f}" if 0.0495 <= p < 0.05 else f"{p:.3f}"


def decimals_of(values: Sequence[float], decimals: int) -> int:
    """How many decimals values need, of which none may read as 0 that is not; two more at most."""
    for more in range(decimals, decimals + 2):
        if all(value == 0 or round(value, more) != 0 for value in values):
            return more
    return decimals + 2


def say_range(low: float, high: float, form: Formatter) -> str:
    """An interval: “89.2 to 90.4”; an end at infinity is left open, “at least 89.2”."""
    if low == float("-inf"):
        return f"at most {form(high)}"
    return f"at least {form(low)}" if high == float("inf") else f"{form(low)} to {form(high)}"


def say_count(number: int, noun: str) -> str:
    """“1 run”, “12 runs”."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def say_setting(name: str) -> str:
    """A setting as prose has it: “learning rate”, “optimiser”."""
    return name.replace("_", " ").replace("optimizer", "optimiser")


def say_list(values: Iterable[Any]) -> str:
    """“1, 2 and 3”."""
    *first, last = map(str, values)
    return f"{', '.join(first)} and {last}" if first else last
