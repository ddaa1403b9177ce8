"""The panel that trains a run of one's own: a form of all settings, progress, and the outcome."""

import asyncio
from collections.abc import Callable

import ipywidgets as widgets

from cifarlib.checking import validate
from cifarlib.config import RunConfig, run_id
from cifarlib.errors import ConfigError
from cifarlib.explore.collection import Runs, describe_differences
from cifarlib.explore.forms import Group, Optional, Variant
from cifarlib.explore.launch import Launch, Progress
from cifarlib.explore.panels import panel, picture, sentence, table
from cifarlib.explore.sketches import plot_progress
from cifarlib.progress import Prices, duration

UNITS = {
    "data.train_size": "images",
    "data.validation_size": "images",
    "data.test_size": "images",
    "resize.size": "pixels",
    "resize.crop": "pixels",
    "augmentation.rotation_degrees": "°",
    "augmentation.padding": "pixels",
    "batch_size": "images",
    "early_stopping": "epochs",
    "schedule.patience": "epochs",
    "schedule.cooldown": "epochs",
}
"""What the numbers of a configuration count, where its name does not say it."""

PAUSE = 0.3  # s between two looks at a run in training


class Launchpad:
    """A form, a button that trains what it says, and one that stops it.

    ``tell`` is called with the id of each run that was trained.
    """

    def __init__(self, runs: Runs, tell: Callable[[str], None], device: str = "auto"):
        self.runs, self.tell, self.device = runs, tell, device
        self.launch: Launch | None = None
        self.following: asyncio.Task[None] | None = None
        self.filling = False
        self.form = Group(RunConfig, runs.results.study.presets, UNITS)
        self.start = widgets.Dropdown(description="start from", layout={"width": "460px"})
        self.check, self.outcome, self.plot = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self.button = widgets.Button(description="Train", icon="play", button_style="primary")
        self.halt = widgets.Button(description="Stop", icon="stop", disabled=True)
        self.bar = widgets.FloatProgress(max=1.0, layout={"width": "300px", "display": "none"})
        self._connect()
        self._offer()
        self._fill()
        self.box = self._arrange()

    # -- the form -----------------------------------------------------------------------------

    def _connect(self) -> None:
        self.start.observe(lambda _: self._fill(), names="value")
        self.form.observe(self._check)
        self.button.on_click(lambda _: self._train())
        self.halt.on_click(lambda _: self._stop())

    def _arrange(self) -> widgets.Widget:
        cards, single = [], []
        for name, entry in self.form.fields.items():
            optional = isinstance(entry, Optional) and isinstance(entry.inner, Group)
            if isinstance(entry, Group | Variant) or optional:
                title = widgets.HTML("" if optional else f"<b>{name.replace('_', ' ')}</b>")
                cards.append(widgets.VBox([title, entry.widget]))
            else:
                single.append(entry.widget)
        cards.insert(0, widgets.VBox([widgets.HTML("<b>run</b>"), *single]))
        for card in cards:
            card.add_class("card")
        fields = widgets.Box(cards, layout={"flex_flow": "column wrap", "height": "560px"})
        fields.layout.align_content = "flex-start"
        buttons = widgets.HBox([self.button, self.halt, self.bar], layout={"align_items": "center"})
        return panel(self.start, fields, self.check, buttons, self.outcome, self.plot)

    def _offer(self) -> None:
        """Offer the study's conditions, and the own runs, to start from."""
        own = [
            record.config
            for name, record in self.runs.records.items()
            if name not in self.runs.study
        ]
        self.configs = {c.run_id: c.config for c in self.runs.study.values()}
        self.configs |= {run_id(config): config for config in own}
        options = [(self.runs.name(config), name) for name, config in self.configs.items()]
        value = self.start.value
        if value is None:
            best = [name for name in self.runs.frame.index if name in self.configs]
            value = next(iter([*best, *self.configs]))
        self.filling = True
        self.start.options = options
        self.start.value = value
        self.filling = False

    def _fill(self) -> None:
        """Put the settings of the run to start from into the form."""
        if self.filling:
            return
        self.filling = True
        self.form.set(self.configs[self.start.value].model_dump(mode="json"))
        self.filling = False
        self._check()

    @property
    def config(self) -> RunConfig:
        """What the form says; raises ``ConfigError`` where the model refuses it."""
        return validate(RunConfig, self.form.get(), "the form")

    def _check(self) -> None:
        """Say whether the form is valid, what it changes, and what it would cost."""
        if self.filling:
            return
        try:
            config = self.config
        except ConfigError as error:
            self.check.value = sentence(str(error), error=True)
            self.button.disabled = True
            return
        self.button.disabled = self.launch is not None
        changes = describe_differences(self.configs[self.start.value], config)
        known = self.runs.records.get(run_id(config))
        if known:
            text = (
                f"This run is recorded: test {known.accuracy('test'):.1f} %. It is not trained "
                "twice; Train shows it among the others."
            )
        else:
            seconds = Prices(self.runs.records.values()).seconds(config)
            text = f"Run {run_id(config)}, about {duration(seconds)} on this machine."
        names = {"first": "there", "second": "here"}
        shown = table(changes.rename(columns=names)) if len(changes) else ""
        self.check.value = sentence(text) + shown

    # -- training -----------------------------------------------------------------------------

    def _train(self) -> None:
        config = self.config
        name = run_id(config)
        self.plot.value = ""
        if name in self.runs.records:
            self.outcome.value = sentence(f"{self.runs.name(config)} is recorded already.")
            self.tell(name)
            return
        self.launch = Launch(config, self.runs.results.store, self.runs.name(config), self.device)
        self.button.disabled, self.halt.disabled = True, False
        self.bar.layout.display, self.bar.value = "", 0.0
        self.following = asyncio.get_running_loop().create_task(self.follow(config))

    def _stop(self) -> None:
        if self.launch:
            self.halt.disabled = True
            self.outcome.value = sentence("Stopping …")
            self.launch.stop()

    async def follow(self, config: RunConfig) -> None:
        """Show how far the run is until it ends, and then what came of it."""
        assert self.launch is not None
        epoch = 0
        while not (progress := self.launch.poll()).ended:
            trained = progress.images / config.data.train_size
            self.bar.value = max(trained, progress.epoch) / config.epochs  # some before, perhaps
            if not self.halt.disabled:
                self.outcome.value = sentence(_describe(progress, config))
            if progress.epoch != epoch:
                epoch = progress.epoch
                self._draw(progress, config)
            await asyncio.sleep(PAUSE)
        self._finish(progress, config)

    def _draw(self, progress: Progress, config: RunConfig) -> None:
        figure = plot_progress(progress.accuracies, config.epochs)
        reached = list(progress.accuracies.values())[-1:]
        alt = f"Validation accuracy by epoch, {reached[0]:.1f} % at the end." if reached else ""
        self.plot.value = picture(figure, alt, "460px")

    def _finish(self, progress: Progress, config: RunConfig) -> None:
        self.launch, self.halt.disabled = None, True
        self.bar.layout.display = "none"
        name = run_id(config)
        if progress.state == "done":
            self.tell(name)
            self._offer()
        if record := self.runs.records.get(name):  # which knows the last epoch, too
            epochs = range(1, record.result.history.epochs + 1)
            progress.accuracies = {
                epoch: record.accuracy("validation", epoch=epoch) or 0.0 for epoch in epochs
            }
            self._draw(progress, config)
        self.outcome.value = self._conclude(progress, name)
        self._check()

    def _conclude(self, progress: Progress, name: str) -> str:
        record = self.runs.records.get(name)
        if progress.state == "done" and record:
            return sentence(
                f"Trained: {self.runs.name(record.config)}, test {record.accuracy('test'):.1f} % "
                f"after epoch {record.reported_epoch}; it is chosen in the list above."
            )
        if progress.state == "stopped":
            return sentence("Stopped. Train goes on from its last checkpoint, if it wrote one.")
        return sentence(f"It was not trained: {progress.sentence}", error=True)


def _describe(progress: Progress, config: RunConfig) -> str:
    if progress.sentence:
        return progress.sentence
    if progress.state == "starting":
        return "Starting …"
    text = f"Epoch {progress.epoch + 1} of {config.epochs}"
    if accuracy := progress.accuracies.get(progress.epoch):
        text += f", validation {accuracy:.1f} % after epoch {progress.epoch}"
    return text
