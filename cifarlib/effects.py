"""How much of the test accuracy's variance each setting explains, in the paper's numbers and ours.

Four grids of conditions, each complete, so that the shares of the settings do not overlap.
"""

from dataclasses import dataclass

import matplotlib as mpl
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from cifarlib import published
from cifarlib.contrasts import say_p
from cifarlib.display import fixed
from cifarlib.records import Results
from cifarlib.report.style import STYLE
from cifarlib.statistics import variance_explained
from cifarlib.study import Condition

OUTCOME = "test_top1"
COLOURS = {"paper": "#bbbbbb", "ours": "#0077bb"}

NAMES = {
    "learning_rate": "learning rate",
    "optimizer": "optimiser",
    "batch_size": "batch size",
    "weight_decay": "weight decay",
    "augmentation": "augmentation",
    "dropout": "dropout",
    "run": "run (9 or 13)",
    "interactions": "interactions of two",
    "rest": "rest",
}


@dataclass(frozen=True)
class Grid:
    """Conditions that vary some settings in every combination."""

    title: str
    tables: tuple[str, ...]  # of the paper
    stages: tuple[str, ...]  # of the study
    factors: tuple[str, ...]
    where: str = ""  # which rows, as a pandas query


_BROAD = ("batch_size", "learning_rate", "weight_decay")

GRIDS = {
    "base": Grid(
        "Base search",
        ("IV", "V", "VI"),
        ("stage1-base",),
        ("optimizer", *_BROAD),
    ),
    "broad": Grid(
        "Broad search, DAA-1 and DAA-2",
        ("VII", "VIII"),
        ("stage1-daa1", "stage1-daa2"),
        ("augmentation", *_BROAD),
    ),
    "augmentation": Grid(
        "AdamW without and with augmentation",
        ("VI", "VII", "VIII"),
        ("stage1-base", "stage1-daa1", "stage1-daa2"),
        ("augmentation", *_BROAD),
        "optimizer == 'adamw' and batch_size in (32, 64, 256) and learning_rate < 0.005",
    ),
    "dropout": Grid(
        "Dropout on runs 9 and 13",
        ("XIII", "XIV"),
        ("stage1-long", "stage2-dropout"),
        ("dropout", "run"),
    ),
}


def published_grid(name: str) -> pd.DataFrame:
    """A grid's rows of the paper: its factors and ``test_top1`` in %."""
    grid = GRIDS[name]
    return _narrow(grid, pd.concat([published.read_table(number) for number in grid.tables]))


def recorded_grid(results: Results, name: str) -> pd.DataFrame | None:
    """A grid's rows of ours, one for each seed; None while a run is missing."""
    grid = GRIDS[name]
    rows = _narrow(grid, pd.concat([results.stage(stage) for stage in grid.stages]))
    return None if rows[OUTCOME].isna().any() else rows


def _narrow(grid: Grid, rows: pd.DataFrame) -> pd.DataFrame:
    rows = rows.query(grid.where) if grid.where else rows
    return rows[[*grid.factors, OUTCOME]].reset_index(drop=True)


def conditions(results: Results, name: str) -> list[Condition]:
    """A grid's conditions in the study, at all seeds."""
    grid = GRIDS[name]
    found = results.select(*grid.stages)
    if not grid.where:
        return found
    frame = pd.DataFrame([c.settings for c in found])
    return [found[place] for place in frame.query(grid.where).index]


def variance(rows: pd.DataFrame, name: str) -> pd.DataFrame:
    """``variance_explained`` of a grid's rows."""
    return variance_explained(rows, OUTCOME, GRIDS[name].factors)


def published_effects(name: str) -> pd.DataFrame:
    """``variance_explained`` of a grid in the paper's printed numbers."""
    return variance(published_grid(name), name)


def recorded_effects(results: Results, name: str) -> pd.DataFrame | None:
    """``variance_explained`` of a grid in ours; None while a run is missing or all are equal."""
    rows = recorded_grid(results, name)
    return None if rows is None or rows[OUTCOME].nunique() == 1 else variance(rows, name)


def tabulate_effects(results: Results) -> pd.DataFrame:
    """Share of variance (η², in %), ω² (in %) and p of each factor of each grid, paper and ours."""
    rows, behind = [], []
    for name, grid in GRIDS.items():
        paper, ours = published_effects(name), recorded_effects(results, name)
        runs = tuple(dict.fromkeys(c.run_id for c in conditions(results, name)))
        for factor in paper.index:
            if paper.loc[factor, "df"] == 0:
                continue
            row: dict[tuple[str, str], object] = {
                ("", "Grid"): grid.title,
                ("", "Setting"): NAMES[factor],
            }
            for side, effects in (("paper", paper), ("ours", ours)):
                if effects is not None:
                    row["Share, %", side] = 100 * effects.loc[factor, "share"]
                    row["ω², %", side] = 100 * effects.loc[factor, "omega"]
                    row["p", side] = effects.loc[factor, "p"]
            if factor not in grid.factors:  # no test of its own
                row |= {(c, s): "–" for c in ("ω², %", "p") for s in ("paper", "ours")}
            rows.append(row)
            behind.append(runs)
    columns = [("", "Grid"), ("", "Setting")]
    columns += [(c, side) for c in ("Share, %", "ω², %", "p") for side in ("paper", "ours")]
    frame = pd.DataFrame(rows).reindex(columns=pd.MultiIndex.from_tuples(columns))
    frame.attrs["runs"] = behind
    return frame


FORMATS = {
    **{(column, side): fixed(1) for column in ("Share, %", "ω², %") for side in ("paper", "ours")},
    **{("p", side): say_p for side in ("paper", "ours")},
}
"""How the columns of ``tabulate_effects`` are written."""


def plot_effects(results: Results) -> Figure:
    """Bars of variance explained, a panel for each grid: the paper's numbers above, ours below."""
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(2, 2, figsize=(7.4, 4.8), sharex=True, layout="constrained")
        for axis, (name, grid) in zip(axes.flat, GRIDS.items(), strict=True):
            paper, ours = published_effects(name), recorded_effects(results, name)
            for side, effects, offset in (("paper", paper, 0.2), ("ours", ours, -0.2)):
                if effects is None:
                    continue
                effects = effects[paper["df"] > 0][::-1]
                places = [place + offset for place in range(len(effects))]
                shares = 100 * effects["share"]
                axis.barh(
                    places, shares, 0.38, color=COLOURS[side], edgecolor="0.25", linewidth=0.4
                )
                for place, share in zip(places, shares, strict=True):
                    axis.text(share + 1.5, place, f"{share:.0f}", va="center", fontsize=7)
            names = [NAMES[factor] for factor in paper.index[paper["df"] > 0]][::-1]
            axis.set_yticks(range(len(names)), names)
            axis.set_title(grid.title + ("" if ours is not None else " (ours pending)"), fontsize=9)
            axis.set_xlim(0, 108)
            axis.grid(visible=False, axis="y")
        figure.supxlabel("share of the variance of test top-1, %", fontsize=9)
        handles = [
            mpl.patches.Patch(facecolor=colour, edgecolor="0.25", linewidth=0.4, label=side)
            for side, colour in COLOURS.items()
        ]
        figure.legend(handles=handles, loc="outside upper center", ncols=2, frameon=False)
    return figure


def describe_effects(results: Results) -> str:
    """What ``plot_effects`` shows, in words: the largest share of each grid."""
    parts = []
    for name, grid in GRIDS.items():
        said = [f"{grid.title}:"]
        for side, effects in (
            ("paper", published_effects(name)),
            ("ours", recorded_effects(results, name)),
        ):
            if effects is None:
                said.append(f"{side} pending")
                continue
            shares = effects.loc[list(grid.factors), "share"]
            said.append(f"{side} {NAMES[shares.idxmax()]} {100 * shares.max():.0f} %")
        parts.append(f"{said[0]} {', '.join(said[1:])}")
    return "Bars of variance explained; the largest setting of each grid: " + "; ".join(parts) + "."
