"""The functions that chapters not yet written in pandas show their tables and figures with."""

from collections.abc import Iterable
from typing import Any

import pandas as pd

from cifarlib.formatting import fixed, signed
from cifarlib.published import TITLES
from cifarlib.records import Results
from cifarlib.report.show import CONTENT, Shown, anchor, draw_svg
from cifarlib.report.show import figure as show_figure
from cifarlib.report.show import table as show_table
from cifarlib.report.show import text as show_text
from cifarlib.report.tables import ABSENT, LONG, PENDING, Format, Links, link_csv, link_runs
from cifarlib.runs.captions import describe as describe_runs
from cifarlib.runs.captions import describe_data
from cifarlib.study import Condition

__all__ = [
    "ABSENT", "CONTENT", "LONG", "PENDING", "Format", "Links", "Shown", "anchor", "describe_data",
    "describe_runs", "draw_svg", "fixed", "link_csv", "link_runs", "show_comparison",
    "show_figure", "show_table", "show_text", "signed",
]  # fmt: skip


def show_comparison(
    frame: pd.DataFrame,
    number: str,
    results: Results,
    conditions: Iterable[Condition],
    *,
    decimals: int = 1,
) -> Shown:
    """A table of the paper beside ours, with its title, the runs behind it, and the best marked."""
    formats: dict[Any, Format] = {("", "LR"): "{:g}", ("", "L2"): "{:g}"}
    return show_table(
        frame,
        number,
        TITLES[number],
        note=describe_runs(results, conditions),
        formats=formats,
        decimals=decimals,
        best="Test",
    )
