"""The runs of a build folder under one's hands: widgets for JupyterLab.

``open_explorer`` gives an ``Explorer``; its methods give the panels of ``explore.ipynb``, which
share one choice of runs. Numbers come from ``collection``, figures from ``sketches`` and
``report.plots``; nothing here imports torch.
"""

import base64
import html
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ipywidgets as widgets
import matplotlib as mpl
import pandas as pd
from PIL import Image

from cifarlib.config import DATASETS
from cifarlib.errors import DataError
from cifarlib.explore import collection, sketches
from cifarlib.explore.collection import TITLES, Mistake, Runs, open_runs
from cifarlib.explore.launchpad import Launchpad
from cifarlib.explore.panels import panel, picture, sentence, table
from cifarlib.formatting import fixed, signed
from cifarlib.records import SPLITS, RunRecord
from cifarlib.report.plots import plot_confusion
from cifarlib.report.style import STYLE
from cifarlib.runs.frames import RunPredictions

FIRST_CHOICE = 3  # runs whose curves are shown before anything is chosen
GRID_AXES = (
    "model", "optimizer", "learning_rate", "weight_decay", "batch_size", "augmentation", "dropout",
)  # fmt: skip
ANY = "any"
ALPHA = 0.05


class Explorer:
    """The panels over one build folder, and what they share: filters and the choice of runs."""

    def __init__(self, runs: Runs):
        self.runs = runs
        self.facets: dict[str, widgets.SelectMultiple] = {}
        self.facet_row = widgets.HBox(layout={"flex_flow": "row wrap"})
        self.list = widgets.SelectMultiple(description="runs", rows=14, layout={"width": "auto"})
        self.listeners: list[Callable[[], None]] = []  # hear of other filters, choices and runs
        self.quiet = False
        self.list.observe(lambda _: self._tell(), names="value")
        self.refresh()

    @property
    def shown(self) -> pd.DataFrame:
        """The runs that pass the filters, best test accuracy first."""
        wanted = {name: facet.value for name, facet in self.facets.items()}
        return collection.select(self.runs.frame, wanted)

    @property
    def chosen(self) -> list[str]:
        """The ids of the runs chosen in the list."""
        return list(self.list.value)

    def refresh(self, choose: str = "") -> None:
        """Read new records, and choose one run besides those that are chosen."""
        self.runs.refresh()
        self.quiet = True
        kept = {name: facet.value for name, facet in self.facets.items()}
        self.facets = {
            name: self._facet(name, kept.get(name, ()))
            for name in collection.varied(self.runs.frame)
        }
        self.facet_row.children = list(self.facets.values())
        if choose and choose not in self.shown.index:
            for facet in self.facets.values():
                facet.value = ()
        self.quiet = False
        self._filter([*self.chosen, *([choose] if choose else [])])

    def _facet(self, name: str, value: Sequence[Any]) -> widgets.SelectMultiple:
        counts = self.runs.frame[name].value_counts().sort_index()
        options = [(f"{_short(v)}  ({count})", v) for v, count in counts.items()]
        facet = widgets.SelectMultiple(
            options=options,
            value=[v for v in value if v in counts.index],
            rows=5,
            description=TITLES[name],
            layout={"width": "auto", "flex_flow": "column", "height": "118px"},
            style={"description_width": "auto"},
        )
        facet.observe(lambda _: self._filter(self.chosen), names="value")
        return facet

    def _filter(self, chosen: Sequence[str]) -> None:
        """Put the runs that pass the filters into the list, keeping the choice."""
        if self.quiet:
            return
        shown = self.shown
        self.quiet = True
        self.list.options = [(_line(row), name) for name, row in shown.iterrows()]
        self.list.value = [name for name in chosen if name in shown.index]
        if not chosen:
            self.list.value = list(shown.index[:FIRST_CHOICE])
        self.quiet = False
        self._tell()

    def _tell(self) -> None:
        if not self.quiet:
            for listener in self.listeners:
                listener()

    def listen(self, listener: Callable[[], None]) -> None:
        """Call now, and whenever filters, choice or runs have changed."""
        self.listeners.append(listener)
        listener()

    # -- the panels ---------------------------------------------------------------------------

    def choose(self) -> widgets.Widget:
        """Filters, the grid as parallel coordinates, the list of runs, and means by a setting."""
        return _chooser(self)

    def curves(self) -> widgets.Widget:
        """Accuracy and loss of the chosen runs by epoch."""
        return _curves(self)

    def inspect(self) -> widgets.Widget:
        """One run's confusion matrices, and the test images that it gets wrong."""
        return _Inspector(self).box

    def compare(self) -> widgets.Widget:
        """Two runs side by side: accuracies, settings, and an exact paired test."""
        return _Comparison(self).box

    def train(self, device: str = "auto") -> widgets.Widget:
        """A form of all settings, which trains a run and shows it among the others."""
        return Launchpad(self.runs, lambda name: self.refresh(choose=name), device).box


def open_explorer(scale: str, overrides: Sequence[str] = (), build: str | Path = "") -> Explorer:
    """An explorer of every record in a build folder, ``build/<scale>`` where none is named."""
    return Explorer(open_runs(scale, overrides, build))


# ---------------------------------------------------------------------------------------------
# Filters, grid and list
# ---------------------------------------------------------------------------------------------

WIDTHS = {
    "name": 34, "optimizer": 6, "learning_rate": 7, "weight_decay": 7, "batch_size": 6,
    "augmentation": 6, "dropout": 5, "epochs": 6, "validation_top1": 7, "test_top1": 6,
}  # fmt: skip
HEADS = {
    "name": "run", "optimizer": "opt.", "learning_rate": "LR", "weight_decay": "L2",
    "batch_size": "batch", "augmentation": "augm.", "dropout": "drop.", "epochs": "epochs",
    "validation_top1": "val., %", "test_top1": "test,%",
}  # fmt: skip


def _line(row: pd.Series) -> str:
    """A run as a line of the list, its columns in place (with spaces that a browser keeps)."""
    cells = []
    for name, width in WIDTHS.items():
        value = row[name]
        text = f"{value:.1f}" if name.endswith("top1") else _short(value)
        text = text if len(text) <= width else f"{text[: width - 1]}…"
        cells.append(text.ljust(width) if isinstance(value, str) else text.rjust(width))
    return " ".join(cells).replace(" ", "\N{NO-BREAK SPACE}")


def _head() -> str:
    left = ("name", "optimizer", "augmentation")
    cells = [HEADS[n].ljust(w) if n in left else HEADS[n].rjust(w) for n, w in WIDTHS.items()]
    return f'<pre class="head" aria-hidden="true">{" ".join(cells)}</pre>'


def _short(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _chooser(explorer: Explorer) -> widgets.Widget:
    count, plot = widgets.HTML(), widgets.HTML()
    clear = widgets.Button(description="Clear filters", icon="eraser")
    by = widgets.Dropdown(
        options=[(TITLES[name], name) for name in collection.SETTINGS],
        value="learning_rate",
        description="means by",
    )
    means = widgets.HTML()
    runs = widgets.VBox([widgets.HTML(_head()), explorer.list], layout={"flex": "1 1 660px"})
    runs.add_class("runs")
    side = widgets.VBox([by, means], layout={"flex": "1 1 300px", "margin": "0 0 0 16px"})
    below = widgets.HBox([runs, side], layout={"flex_flow": "row wrap"})

    def draw() -> None:
        frame, shown = explorer.runs.frame, explorer.shown
        count.value = sentence(_count(explorer)) + "".join(map(sentence, explorer.runs.faults))
        axes = [name for name in GRID_AXES if name in explorer.facets] or GRID_AXES
        plot.value = ""
        if len(frame):
            alt = (
                f"Parallel coordinates of {len(frame)} runs, {len(shown)} in colour, over "
                f"{', '.join(TITLES[name] for name in axes)} and test accuracy."
            )
            figure = sketches.plot_grid(frame, axes, shown.index, explorer.chosen)
            plot.value = picture(figure, alt)
        below.layout.display = "" if len(frame) else "none"
        tell_means()

    def tell_means() -> None:
        shown = explorer.shown
        if len(shown):
            formats = dict.fromkeys(("mean", "lowest", "highest"), fixed(1))
            found = collection.group(shown, by.value)
            names = {by.value: TITLES[by.value], "mean": "mean test, %"}
            formats["mean test, %"] = fixed(1)
            means.value = table(found.rename(columns=names), formats)

    def forget(_: Any) -> None:
        explorer.quiet = True
        for facet in explorer.facets.values():
            facet.value = ()
        explorer.quiet = False
        explorer._filter(explorer.chosen)

    clear.on_click(forget)
    by.observe(lambda _: tell_means(), names="value")
    explorer.listen(draw)
    head = widgets.HBox([clear, count], layout={"align_items": "center"})
    return panel(explorer.facet_row, head, plot, below)


def _count(explorer: Explorer) -> str:
    frame, shown = explorer.runs.frame, explorer.shown
    results = explorer.runs.results
    if not len(frame):
        sets = "".join(f" --set '{text}'" for text in results.overrides)
        return (
            f"No run is recorded in {results.store.folder.name} yet: `cifarlib sweep --scale "
            f"{results.scale_name}{sets}` makes the study's, the form below trains one of your own."
        )
    pending = len(explorer.runs.study.keys() - explorer.runs.records.keys())
    own = int((frame["stage"] == collection.OWN).sum())
    return (
        f"{len(shown)} of {len(frame)} runs pass the filters, {len(explorer.chosen)} are chosen; "
        f"{pending} of the study's {len(explorer.runs.study)} are pending, {own} are own."
    )


# ---------------------------------------------------------------------------------------------
# Curves
# ---------------------------------------------------------------------------------------------


def _curves(explorer: Explorer) -> widgets.Widget:
    split = widgets.ToggleButtons(
        options=[("test set", "test"), ("validation set", "validation"), ("training set", "train")],
        description="measured on",
    )
    quantity = widgets.ToggleButtons(options=["top-1 accuracy, %", "loss"], description="quantity")
    plot = widgets.HTML()

    def draw() -> None:
        chosen = explorer.chosen[: sketches.MOST]
        names = explorer.runs.frame["name"]
        records = {names[name]: explorer.runs.records[name] for name in chosen}
        figure = sketches.plot_curves(records, split.value, quantity.value)
        alt = f"{split.label} {quantity.value} by epoch of {', '.join(records)}"
        plot.value = picture(figure, alt) or sentence("Choose runs in the list above.")

    split.observe(lambda _: draw(), names="value")
    quantity.observe(lambda _: draw(), names="value")
    explorer.listen(draw)
    controls = widgets.HBox([split, quantity], layout={"flex_flow": "row wrap"})
    return panel(controls, plot)


# ---------------------------------------------------------------------------------------------
# One run
# ---------------------------------------------------------------------------------------------


class _Chosen:
    """A choice among all recorded runs, the best first."""

    def __init__(self, explorer: Explorer, title: str, place: int = 0):
        self.explorer = explorer
        self.place = place  # which of the chosen runs it starts with
        self.menu = widgets.Dropdown(description=title, layout={"width": "460px"})

    def update(self) -> None:
        """Offer the runs there are, keeping what is chosen."""
        frame = self.explorer.runs.frame
        options = [(f"{r['name']}  ({r['test_top1']:.1f} %)", n) for n, r in frame.iterrows()]
        if tuple(options) != tuple(self.menu.options):
            value = self.menu.value
            self.menu.options = options
            if value not in frame.index:
                value = frame.index[min(self.place, len(frame) - 1)] if len(frame) else None
            self.menu.value = value

    @property
    def record(self) -> RunRecord | None:
        return self.explorer.runs.records.get(self.menu.value)


class _Inspector:
    """Confusion matrices and mistakes of one run."""

    def __init__(self, explorer: Explorer):
        self.run = _Chosen(explorer, "run")
        self.true = widgets.Dropdown(options=[ANY], description="true class")
        self.predicted = widgets.Dropdown(options=[ANY], description="taken for")
        self.matrix, self.mistakes = widgets.HTML(), widgets.HTML()
        self.run.menu.observe(lambda _: self.draw(), names="value")
        self.true.observe(lambda _: self.draw_mistakes(), names="value")
        self.predicted.observe(lambda _: self.draw_mistakes(), names="value")
        explorer.listen(self.run.update)
        self.draw()
        classes = widgets.HBox([self.true, self.predicted], layout={"flex_flow": "row wrap"})
        self.box = panel(self.run.menu, self.matrix, classes, self.mistakes)

    def draw(self) -> None:
        record = self.run.record
        if record is None:
            self.matrix.value = sentence("No run is recorded yet.")
            return
        names = (ANY, *DATASETS[record.config.data.name].classes)
        for menu in (self.true, self.predicted):
            if menu.options != names:
                menu.options = names
        alt = "Two 10 × 10 heat maps, training and test set, true class by predicted class."
        with mpl.rc_context(STYLE):
            figure = plot_confusion(RunPredictions(record, None))
        self.matrix.value = picture(figure, alt, "min(100%, 980px)")
        self.draw_mistakes()

    def draw_mistakes(self) -> None:
        record = self.run.record
        if record is None:
            return
        true, predicted = (
            "" if menu.value == ANY else menu.value for menu in (self.true, self.predicted)
        )
        try:
            count, found = collection.find_mistakes(record, true=true, predicted=predicted)
        except DataError as error:
            self.mistakes.value = sentence(f"The images cannot be shown: {error}.")
            return
        total = record.result.predictions.images
        text = f"{count} of {total:,} test images are mistaken"
        text += " in this way" if true or predicted else ""
        text += f"; the {len(found)} that the run is surest of:" if found else "."
        pictures = "".join(map(_mistake, found))
        self.mistakes.value = f'{sentence(text)}<div class="mistakes">{pictures}</div>'


def _mistake(mistake: Mistake) -> str:
    buffer = io.BytesIO()
    Image.fromarray(mistake.image).save(buffer, format="PNG")
    source = base64.b64encode(buffer.getvalue()).decode()
    true, predicted = html.escape(mistake.true), html.escape(mistake.predicted)
    return (
        f'<figure><img src="data:image/png;base64,{source}" alt="test image {mistake.index}">'
        f"<figcaption>{true}, taken for <b>{predicted}</b> ({100 * mistake.confidence:.0f} %)"
        "</figcaption></figure>"
    )


# ---------------------------------------------------------------------------------------------
# Two runs
# ---------------------------------------------------------------------------------------------


class _Comparison:
    """Two runs side by side."""

    def __init__(self, explorer: Explorer):
        self.explorer = explorer
        self.first, self.second = _Chosen(explorer, "first run"), _Chosen(explorer, "second run", 1)
        self.verdict = widgets.HTML()
        explorer.listen(self.first.update)
        explorer.listen(self.second.update)
        for menu in (self.first.menu, self.second.menu):
            menu.observe(lambda _: self.draw(), names="value")
        self.draw()
        menus = widgets.HBox([self.first.menu, self.second.menu], layout={"flex_flow": "row wrap"})
        self.box = panel(menus, self.verdict)

    def draw(self) -> None:
        first, second = self.first.record, self.second.record
        if first is None or second is None:
            self.verdict.value = sentence("No run is recorded yet.")
            return
        parts = [sentence(self._test(first, second)), table(_accuracies(first, second), SIDES)]
        differences = collection.describe_differences(first.config, second.config)
        parts.append(
            table(differences) if len(differences) else sentence("Their settings are the same.")
        )
        self.verdict.value = "<br>".join(parts)

    def _test(self, first: RunRecord, second: RunRecord) -> str:
        """What McNemar's test says of two runs, in a sentence."""
        try:
            paired = collection.compare(self.explorer.runs, first, second)
        except DataError as error:
            return f"They cannot be compared image by image: {error}."
        verdict = "distinguishable" if paired.p < ALPHA else "not distinguishable"
        p = f"p = {paired.p:.3f}" if paired.p >= 0.001 else "p < 0.001"
        return (
            f"The first run is right on {paired.only_first} test images that the second gets "
            f"wrong, the second on {paired.only_second}, of {paired.images:,}: "
            f"{signed(2)(paired.difference)} points, {p} (McNemar, exact, two-sided), "
            f"{verdict} at the level of {100 * ALPHA:g} %."
        )


SIDES = {"first": fixed(2), "second": fixed(2), "first − second": signed(2)}


def _accuracies(first: RunRecord, second: RunRecord) -> pd.DataFrame:
    rows = []
    for split in SPLITS:
        pair = [record.accuracy(split) for record in (first, second)]
        one, other = (float("nan") if value is None else value for value in pair)
        rows.append(({"train": "training"}.get(split, split), one, other, one - other))
    return pd.DataFrame(rows, columns=["top-1, %", *SIDES])
