"""What a cheaper search would have found: the paper's searches, replayed from their records.

Nothing is trained here, and no run was ever stopped this way.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from cifarlib.beyond.replay import KEPT, Grid, Replay, correlation, replay
from cifarlib.records import Results
from cifarlib.report.style import SPLIT_COLOURS, STYLE

STAGES = ("stage1-base", "stage1-daa1", "stage1-daa2")  # the paper's searches
LEAST = 2 * KEPT  # runs below which nothing is replayed


@dataclass(frozen=True, eq=False)
class Search:
    """One of the paper's searches, and every way over it; without a grid while it is pending."""

    title: str
    grid: Grid | None
    ways: tuple[Replay, ...] = ()


def replay_searches(results: Results) -> list[Search]:
    """The paper's searches, replayed where enough runs of the first seed are recorded."""
    found = []
    for stage in STAGES:
        grid = read_grid(results, stage)
        ways = () if grid is None else tuple(replay(grid))
        found.append(Search(results.title(stage), grid, ways))
    return found


def read_grid(results: Results, stage: str) -> Grid | None:
    """A stage's recorded courses, one for each run; None where they are too few or too short."""
    first = {c.run: c for c in reversed(results.select(stage))}  # the first seed of each run
    recorded = [r for run in sorted(first) if (r := results.record(first[run])) is not None]
    longest = max((r.result.history.epochs for r in recorded), default=0)
    recorded = [r for r in recorded if r.result.history.epochs == longest]
    if len(recorded) < LEAST or longest < 2:
        return None
    courses = [[r.accuracy("validation", epoch=e) for e in range(1, longest + 1)] for r in recorded]
    return Grid(
        results.title(stage),
        np.array(courses, dtype=float),
        tuple(r.run_id for r in recorded),
    )


def tabulate_search(searches: Sequence[Search]) -> pd.DataFrame:
    """A row for each way over each search: its cost and what it kept."""
    rows, behind = [], []
    for search in searches:
        for way in search.ways:
            rows.append(
                {
                    "Search": search.title,
                    "Way": way.method,
                    "Runs": len(search.grid.courses) if search.grid else None,
                    "Cost, % of epochs": 100 * way.cost,
                    "Best kept, %": 100 * way.best,
                    "Best three kept, %": 100 * way.top,
                    "Lost, points": way.regret,
                }
            )
            behind.append(search.grid.runs if search.grid else ())
        if not search.ways:
            rows.append({"Search": search.title})
            behind.append(())
    frame = pd.DataFrame(rows, columns=["Search", "Way", "Runs", *FORMATS])
    frame.attrs["runs"] = behind
    return frame.astype({"Runs": "Int64"})


FORMATS = {
    "Cost, % of epochs": "{:.0f}",
    "Best kept, %": "{:.0f}",
    "Best three kept, %": "{:.0f}",
    "Lost, points": "{:.2f}",
}
MARKS = "osD^v<>*"  # of the ways


def plot_search(searches: Sequence[Search]) -> Figure | None:
    """Rank correlation by epoch, with 95 % intervals, and cost against what is lost."""
    found = [search for search in searches if search.grid is not None]
    if not found:
        return None
    with mpl.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(8.5, 3.6), layout="constrained")
        marks: dict[str, str] = {}
        for search, colour in zip(found, SPLIT_COLOURS.values(), strict=False):
            _draw_correlation(left, search.grid, colour)
            for way in search.ways:
                mark = marks.setdefault(way.method, MARKS[len(marks) % len(MARKS)])
                right.plot(100 * way.cost, way.regret, mark, color=colour, clip_on=False)
        left.set(xlabel="epoch", ylabel="rank correlation with the end", ylim=(None, 1.02))
        right.set(xlabel="cost, % of all epochs", ylabel="validation top-1 lost, points")
        right.set(xlim=(0, 100))
        handles = [
            Line2D([], [], color="#444444", marker=mark, linestyle="", label=method)
            for method, mark in marks.items()
        ]
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower left", frameon=False)
        figure.legend(handles=handles, loc="outside lower right", frameon=False)
    return figure


def _draw_correlation(axis: plt.Axes, grid: Grid, colour: str) -> None:
    epochs = list(range(1, grid.epochs + 1))
    values = [correlation(grid, epoch) for epoch in epochs]
    low, high = zip(*((i.low, i.high) for _, i in values), strict=True)
    axis.plot(epochs, [rho for rho, _ in values], color=colour, marker=".", label=grid.title)
    axis.fill_between(epochs, low, high, color=colour, alpha=0.15, linewidth=0)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def describe_search(searches: Sequence[Search]) -> str:
    """The figure in words."""
    parts = []
    for search in searches:
        if search.grid is None:
            parts.append(f"{search.title}: pending")
            continue
        rho, interval = correlation(search.grid, 1)
        told = ", ".join(
            f"{way.method}: {100 * way.cost:.0f} % of the epochs, {way.regret:.2f} points lost"
            for way in search.ways
        )
        parts.append(
            f"{search.title}: rank correlation after epoch 1 {rho:.2f} "
            f"({interval.low:.2f} to {interval.high:.2f}); {told}"
        )
    return (
        "Left, a line for each search: rank correlation of the runs after each epoch and at the "
        f"end. Right, a mark for each way: its cost against what it loses. {'. '.join(parts)}."
    )


def say_search(searches: Sequence[Search]) -> str:
    """The cheapest way over each search that never lost its best run, in sentences."""
    told = []
    for search in searches:
        safe = [way for way in search.ways if way.best == 1]
        if search.grid is None:
            told.append(f"{search.title}: pending.")
        elif not safe:
            told.append(f"{search.title}: no way that stops runs always kept the best one.")
        else:
            way = min(safe, key=lambda way: way.cost)
            told.append(
                f"{search.title}: the cheapest way that always kept the best run is {way.method}, "
                f"for {100 * way.cost:.0f} % of the epochs."
            )
    return " ".join(told)
