"""Linked charts of runs in altair, the same in a notebook and in the report's page.

Blue is the first chosen run everywhere and orange the second: a click on a run chooses the first,
with Shift the second, and so do two menus. A brush over test accuracy fades all other runs.
Colours are readable on light and on dark ground; text takes the colour of the text around it.
"""

import base64
import json
import warnings
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from cifarlib.checking import suggest
from cifarlib.config import DATASETS, SplitName
from cifarlib.errors import ConfigError
from cifarlib.explore.collection import OWN, collect, find_run
from cifarlib.formatting import say_setting
from cifarlib.runs.frames import SETTINGS, RunPredictions
from cifarlib.runs.results import Results
from cifarlib.runs.schema import RunRecord

FIRST, SECOND = "#2f7ed8", "#d9730d"
ACCURACY = ["#8a9099", "#a2709c", "#c2379a"]  # from the lowest to the highest
GROUND = "var(--page, var(--jp-layout-color0, Canvas))"  # behind labels that stand on lines
TEST, LOSS = "test top-1, %", "training loss"
SPLITS: dict[str, SplitName] = {TEST: "test", "validation top-1, %": "validation"}
SPLITS["training top-1, %"] = "train"
FILTERS = ("stage", "model", "optimizer", "augmentation", "batch_size", "learning_rate")
ALL = "(all)"


def linked(
    results: Results, first: str = "", second: str = "", *, own: bool = True
) -> alt.VConcatChart:
    """Settings, accuracies, curves and confusion matrices of all recorded runs, linked.

    ``first`` and ``second`` are the runs that are chosen at first, by name or run id, the two best
    unless given; without ``own`` only runs of the two studies are shown.
    Raises ``ConfigError`` where no run is recorded, and for a name that none has.
    """
    charts = Charts(results, first, second, own)
    with warnings.catch_warnings():  # altair says that it joins the parameters, as is meant here
        warnings.filterwarnings("ignore", "Automatically deduplicated")
        middle = charts.accuracy() | charts.curves()
        matrices = alt.hconcat(*(charts.confusion(which) for which in (1, 2, 0)))
        matrices = matrices.resolve_scale(opacity="independent")
        whole = alt.vconcat(charts.grid(), middle, matrices).add_params(*charts.menus)
    whole.datasets = {"runs": charts.rows}
    return whole


def list_settings(runs: pd.DataFrame) -> list[str]:
    """The settings that differ between runs, those of the paper's tables first."""
    names = [*SETTINGS, "epochs", *runs.columns[3 : runs.columns.get_loc("trained")]]
    names = [n for n in dict.fromkeys(names) if n in runs and n not in ("label", "run_id", "state")]
    return [name for name in names if runs[name].nunique(dropna=False) > 1]


def describe_run(run: dict[str, Any], record: RunRecord, results: Results) -> dict[str, Any]:
    """What the charts know of a run: settings, outcomes, curves, confusion matrix, and which test
    images it has right, as bits in base64."""
    history, name = record.result.history, results.scale.data.name
    row = {"run": run["name"], "id": run["run_id"], "images": record.config.data.test_size}
    row |= {"test": round(run["test_top1"], 2), "comparable": run["comparable"]}
    for title, split in SPLITS.items():
        accuracies = [history.split(split).accuracy(e) for e in range(history.epochs + 1)]
        row[title] = [None if a is None else round(a, 2) for a in accuracies]
    row[LOSS] = [None if x is None else float(f"{x:.4g}") for x in history.training_loss]
    known = record.config.data.name == name
    predictions = RunPredictions(record, results.data if known else None)
    matrix, correct = predictions.confusion("test"), predictions.correct
    row["matrix"] = (100 * matrix / matrix.sum(axis=1, keepdims=True)).round(1).ravel().tolist()
    row["right"] = (
        "" if correct is None else base64.b64encode(np.packbits(correct).tobytes()).decode()
    )
    return row


def list_measures(rows: list[dict[str, Any]]) -> list[str]:
    """What learning curves can be drawn of: what is on record of the most epochs comes first.

    Of a set whose accuracy is known at few epochs, as of training images often, there is no curve.
    """
    known = {t: max(len(r[t]) - r[t].count(None) for r in rows) for t in (*SPLITS, LOSS)}
    measures = sorted(known, key=known.__getitem__, reverse=True)
    return [title for title in measures if 2 * known[title] >= known[measures[0]]]


class Charts:
    """The charts of one set of runs, their menus, and the rows that they are drawn from."""

    def __init__(self, results: Results, first: str, second: str, own: bool):
        runs, records = collect(results)
        runs = runs[own | runs["stage"].ne(OWN)].dropna(subset="test_top1")
        if runs.empty:
            raise ConfigError(f"no run is recorded in {results.store.folder}; run `cifarlib sweep`")
        self.settings = list_settings(runs)
        known = runs[["stage", *self.settings]].astype(object).fillna("none").to_dict("records")
        self.rows = [
            describe_run(run, records[run["run_id"]], results) | words | {"shift": n * 0.618 % 1}
            for n, (run, words) in enumerate(zip(runs.to_dict("records"), known, strict=True))
        ]
        self.classes = list(DATASETS[results.scale.data.name].classes)
        self.range = [runs["test_top1"].min() - 0.01, runs["test_top1"].max() + 0.01]
        best, names = list(runs["name"]), list(runs.sort_index()["name"])
        by_id = dict(zip(runs["run_id"], runs["name"], strict=True))
        first, second = (
            by_id.get(find_run(results, name).run_id, name) if name and name not in names else name
            for name in (first, second)
        )
        self.first = self._choose("first", "click", first or best[0], names)
        self.second = self._choose("second", "Shift + click", second or best[:2][-1], names)
        self.brush = alt.selection_interval(name="brush", encodings=["y"])
        filters = [name for name in FILTERS if len(self._values(name)) > 1]
        self.menus = [self._menu(f"only_{n}", n, [ALL, *self._values(n)]) for n in filters]
        by = sorted(self.settings or ["stage"], key="learning_rate".__ne__)
        self.menus.append(self._menu("setting", "accuracy by", by))
        self.menus.append(self._menu("measure", "curves of", list_measures(self.rows)))
        kept = (f"(only_{n} == '{ALL}' || datum.{n} == only_{n})" for n in filters)
        self.base = alt.Chart(alt.NamedData("runs")).transform_filter(" && ".join(kept) or "true")
        # Whatever is filtered out, the two that are chosen are shown.
        self.two = alt.Chart(alt.NamedData("runs")).transform_filter(self.first | self.second)
        faded = alt.when(self.brush).then(alt.value(0.6)).otherwise(alt.value(0.06))
        below = alt.Legend(orient="bottom", direction="horizontal", gradientLength=200)
        scale = alt.Scale(range=ACCURACY)
        colour = alt.Color("test:Q", scale=scale, title=TEST, legend=below)
        self.every_look: dict[str, Any] = {"color": colour, "opacity": faded}
        self.two_look = alt.when(self.first).then(alt.value(FIRST)).otherwise(alt.value(SECOND))
        tips = {name: say_setting(name) for name in ("run", *self.settings)} | {"test": TEST}
        self.tips = [alt.Tooltip(field=n, type="nominal", title=title) for n, title in tips.items()]

    def _choose(self, name: str, how: str, value: str, runs: list[str]) -> alt.Parameter:
        """A menu of all runs, and a click on one; a click beside all of them changes nothing."""
        if value not in runs:
            raise ConfigError(f"no recorded run is named {value!r}; {suggest(value, runs)}")
        event = f"click[{'' if 'Shift' in how else '!'}event.shiftKey]"
        return alt.selection_point(
            name=name, fields=["run"], value=value, clear=False, empty=False,
            bind=alt.binding_select(options=runs, name=f"{name} run ({how})"),
            on=f"symbol:{event}, line:{event}",
        )  # fmt: skip

    def _menu(self, name: str, title: str, options: list[Any]) -> alt.Parameter:
        labels = [say_setting(str(option)) for option in options]
        menu = alt.binding_select(options=options, labels=labels, name=say_setting(title))
        return alt.param(name=name, value=options[0], bind=menu)

    def _values(self, setting: str) -> list[Any]:
        """The values of a setting, numbers by size and before words."""
        known = {row[setting] for row in self.rows if setting in row}
        return sorted(known, key=lambda value: (isinstance(value, str), value))

    def _layer(self, every: alt.Chart, *others: alt.Chart, **look: Any) -> Any:
        every = every.encode(**self.every_look).add_params(self.second, self.first)
        return alt.layer(every, *others).properties(**look)

    def grid(self) -> Any:
        """Settings and test accuracy as parallel coordinates, a line a run."""
        low, high = self.range
        share = f"(datum.test - {low}) / {high - low}"
        places, labels = {}, []
        for name in self.settings[:9]:  # more would not be readable
            values, axis = self._values(name), say_setting(name)
            step = 1 / max(1, len(values) - 1)
            places[axis] = f"{step} * indexof({json.dumps(values)}, datum.{name}) + {share} / 20"
            labels += [(axis, i * step + 0.025, str(value)) for i, value in enumerate(values)]
        places[TEST] = share
        labels += [(TEST, i / 4, f"{low + i / 4 * (high - low):.1f}") for i in range(5)]
        ruler = alt.Axis(orient="top", labelAngle=0, domain=False, ticks=False, grid=True)
        x = alt.X("axis:N", sort=list(places), title=None, axis=ruler)
        y = alt.Y("height:Q", axis=None, scale=alt.Scale(domain=[-0.05, 1.1], nice=False))

        def draw(chart: alt.Chart, width: float) -> alt.Chart:
            folded = chart.transform_calculate(**places)
            folded = folded.transform_fold(list(places), ["axis", "height"])
            lines = folded.mark_line(interpolate="monotone", strokeWidth=width)
            return lines.encode(x=x, y=y, detail="run:N", tooltip=self.tips)

        words = pd.DataFrame(labels, columns=["axis", "height", "text"])
        names = alt.Chart(words).encode(x=x, y=y, text="text:N")
        style: dict[str, Any] = {"align": "left", "dx": 5, "fontSize": 11, "limit": 62}
        behind = names.mark_text(stroke=GROUND, strokeWidth=4, strokeJoin="round", **style)
        two, texts = draw(self.two, 3).encode(color=self.two_look), names.mark_text(**style)
        return self._layer(draw(self.base, 1.3), two, behind, texts, width=730, height=230)

    def accuracy(self) -> Any:
        """Test accuracy of each run by the chosen setting, with means of comparable runs."""
        scale = alt.Scale(domain=self.range, nice=False, padding=8)
        x = alt.X("value:N", title=None, axis=alt.Axis(labelAngle=0, labelLimit=90))
        offset = alt.XOffset("shift:Q", scale=alt.Scale(domain=[-0.4, 1.4]))
        y, chosen = alt.Y("test:Q", title=TEST, scale=scale), {"value": "datum[setting]"}
        every = self.base.transform_calculate(**chosen).mark_circle(size=45).add_params(self.brush)
        two = self.two.transform_calculate(**chosen).mark_circle(size=130).encode(x, y, offset)
        means = self.base.transform_filter("datum.comparable").transform_calculate(**chosen)
        means = means.mark_point(shape="stroke", size=1200, color="currentColor")
        means = means.encode(x, alt.Y("mean(test):Q"), alt.XOffset(datum=0.5))
        said = "'Test accuracy by ' + replace(setting, '_', ' ') + '; bars: means at this budget'"
        title = alt.Title(alt.ExprRef(said))
        look = {"width": 350, "height": 260, "title": title}
        every = every.encode(x, y, offset, tooltip=self.tips)
        two = two.encode(color=self.two_look, tooltip=self.tips)
        return self._layer(every, means, two, **look)

    def curves(self) -> Any:
        """Learning curves: accuracy on one of the sets or training loss by epoch, as chosen."""
        x = alt.X("by:Q", title="epoch", axis=alt.Axis(tickMinStep=1, format="d"))
        y = alt.Y("value:Q", title=None, scale=alt.Scale(zero=False))

        def draw(chart: alt.Chart, **line: Any) -> alt.Chart:
            flat = chart.transform_flatten([*SPLITS, LOSS])
            flat = flat.transform_window(n="row_number()", groupby=["run"])
            flat = flat.transform_calculate(by="datum.n - 1", value="datum[measure]")
            flat = flat.transform_filter("isValid(datum.value)").mark_line(**line)
            return flat.encode(x=x, y=y, detail="run:N", tooltip=["run:N", "by:Q", "value:Q"])

        two = draw(self.two, strokeWidth=2.5, point=True).encode(color=self.two_look)
        title = alt.Title(alt.ExprRef("'Learning curves: ' + measure"))
        look = {"width": 350, "height": 260, "title": title}
        return self._layer(draw(self.base, strokeWidth=1), two, **look)

    def confusion(self, which: int) -> Any:
        """Test images by true and predicted class, in % of the true class: of the first run (1),
        the second (2), or the second less the first in points, in the colour of who has more (0).
        """
        runs = {0: self.first | self.second, 1: self.first, 2: self.second}[which]
        sign = "1" if which else "(datum.run == second_run) - (datum.run == first_run)"
        names = json.dumps(self.classes)
        places = {"true": f"{names}[floor(datum.n / 10)]", "predicted": f"{names}[datum.n % 10]"}
        left = alt.Axis() if which == 1 else alt.Axis(labels=False, title=None)
        cells = alt.Chart(alt.NamedData("runs")).transform_filter(runs)
        cells = cells.transform_flatten(["matrix"])
        cells = cells.transform_window(place="row_number()", groupby=["run"])
        cells = cells.transform_calculate(n="datum.place - 1", part=f"({sign}) * datum.matrix")
        cells = cells.transform_calculate(**places)
        cells = cells.transform_aggregate(share="sum(part)", groupby=["true", "predicted"])
        cells = cells.transform_calculate(size="abs(datum.share)").encode(
            x=alt.X("predicted:N", sort=self.classes, axis=alt.Axis(labelAngle=-45)),
            y=alt.Y("true:N", sort=self.classes, axis=left, title="true class"),
            tooltip=["true:N", "predicted:N", alt.Tooltip("share:Q", format=".1f")],
        )
        less = alt.when("datum.share < 0").then(alt.value(FIRST)).otherwise(alt.value(SECOND))
        colour = {0: less, 1: alt.value(FIRST), 2: alt.value(SECOND)}[which]
        scale = alt.Scale(type="sqrt", domain=[0, 100 if which else 20], range=[0, 1], clamp=True)
        fill = cells.mark_rect(width=25, height=25).encode(color=colour)
        fill = fill.encode(opacity=alt.Opacity("size:Q", scale=scale, legend=None))
        digits = cells.transform_filter("datum.size >= 0.5").mark_text(fontSize=9)
        digits = digits.encode(text=alt.Text("share:Q", format=".0f" if which else "+.0f"))
        title = ("second less first run, points", "first run, %", "second run, %")[which]
        layers = alt.layer(fill, digits).properties(title=f"Test confusion: {title}")
        return layers.properties(width=250, height=250)
