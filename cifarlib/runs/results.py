"""A study's results: its conditions, what is recorded of them, and tidy frames of both."""

import contextlib
import shlex
import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from cifarlib import paths
from cifarlib.checking import cut, expand_folder, shown, suggest
from cifarlib.config import DATASETS, IMAGE_SIZE, SPLITS
from cifarlib.errors import ConfigError, RecordError
from cifarlib.formatting import say_count
from cifarlib.runs.locks import held
from cifarlib.runs.parameters import check_injected
from cifarlib.runs.schema import DataRecord, NetworkRecord, RunRecord
from cifarlib.runs.store import RecordStore
from cifarlib.study import (
    Condition,
    Scale,
    Study,
    expand,
    expand_paper,
    find_study,
    load_scale,
    load_study,
    scale_names,
    split_overrides,
)

if typing.TYPE_CHECKING:
    import pandas as pd

    from cifarlib.runs.frames import RunPredictions


@dataclass(frozen=True)
class Results:
    """A study at a scale, and what has been recorded of it so far."""

    study: Study
    scale_name: str
    scale: Scale
    overrides: tuple[str, ...]
    store: RecordStore
    conditions: list[Condition]
    paper: tuple[Condition, ...] = ()  # the paper's conditions, whatever the study makes of them
    records: dict[str, RunRecord] = field(default_factory=dict)  # for statistics, by run id
    diverged: dict[str, RunRecord] = field(default_factory=dict)  # by run id
    data: DataRecord | None = None
    network: NetworkRecord | None = None
    faults: list[str] = field(default_factory=list)  # of damaged records, which count as missing
    options: str = ""  # of the command line, which name these records
    is_own_budget: bool = False  # the paper's, beside results at a smaller one (``own_budget``)

    def __repr__(self) -> str:
        done = len({c.run_id for c in self.known} & self.every_record.keys())
        total = len({c.run_id for c in self.known})
        folder = self.store.folder.absolute()
        there = "" if folder.is_dir() else ", which is not there"
        return f"<Results of scale {self.scale_name}: {done} of {total} runs in {folder}{there}>"

    def reread(self) -> "Results":
        """The same with the records that are there by now."""
        records, faults = self.store.read_runs(c.run_id for c in [*self.conditions, *self.paper])
        data = network = None
        try:
            data = self.store.read_data(self.scale.data.name)
        except RecordError as error:
            faults.append(str(error))
        try:
            network = self.store.read_network()
        except RecordError as error:
            faults.append(str(error))
        bad = {name: one for name, one in records.items() if one.result.diverged}
        good = {name: one for name, one in records.items() if name not in bad}
        return replace(self, records=good, diverged=bad, data=data, network=network, faults=faults)

    def complete(
        self,
        stages: Sequence[str] | None = None,
        *,
        train: bool = False,
        budget: str = "",
        device: str = "auto",
    ) -> "Results":
        """Say which runs of some stages are missing and what they cost; with ``train`` make them.

        ``stages`` are of any study, all of this one unless given; a condition's name stands for its
        runs alone. Training is that of ``sweep``; it stops after ``budget``, such as “20m”, at the
        end of an epoch, and on *Interrupt*, and goes on when called again. What hinders it is said.
        Raises ``ConfigError`` for unknown stages and for parameters that papermill injected into
        the notebook and that it does not have.
        """
        from cifarlib.runs import in_notebook  # which imports this module, and what trains

        return in_notebook.complete(self, stages, train=train, budget=budget, device=device)

    @property
    def every_record(self) -> dict[str, RunRecord]:
        """All that is recorded, diverged runs included, by run id."""
        return self.records | self.diverged

    @property
    def known(self) -> list[Condition]:
        """The study's conditions, and those of the paper that it leaves out."""
        names = {c.name for c in self.conditions}
        return [*self.conditions, *(c for c in self.paper if c.name not in names)]

    def alone(self) -> "Results":
        """The study's own conditions, also of a stage that has the name of one of the paper's."""
        return replace(self, paper=())

    @property
    def stages(self) -> dict[str, str]:
        """Stage → title: the paper's stages, or, of a study past the paper, that study's."""
        names = dict.fromkeys(c.stage for c in self.paper) or self.study.stages
        return {name: self.title(name) for name in names}

    def title(self, stage: str) -> str:
        """A stage's title; its name where the study has left it out."""
        return self.study.stages[stage].title if stage in self.study.stages else stage

    def select(self, *stages: str, **settings: Any) -> list[Condition]:
        """The conditions of some stages, with some settings: ``select("stage1-base",
        optimizer="sgd")``; ``run`` is the paper's number, ``seed`` a run's. Settings alone are
        looked for in every stage.

        Of a stage of the paper these are the paper's conditions, all of them and no other. Raises
        ``ConfigError`` for a stage that there is not, and for a setting that none of them has.
        """
        of_paper = {c.stage for c in self.paper}
        known = [*dict.fromkeys([*self.study.stages, *of_paper])]
        if unknown := [stage for stage in stages if stage not in known]:
            raise ConfigError(f"there is no stage {unknown[0]!r}; {suggest(unknown[0], known)}")
        others = [c for c in self.conditions if c.stage not in of_paper]
        among = stages or (known if settings else ())
        found = [c for c in [*self.paper, *others] if c.stage in among]
        settings_of = [c.settings | {"run": c.run, "seed": c.config.seed} for c in found]
        names = [*dict.fromkeys(name for own in settings_of for name in own)]
        if names and (unknown := [name for name in settings if name not in names]):
            raise ConfigError(
                f"no condition here has a setting {unknown[0]!r}; {suggest(unknown[0], names)}"
            )
        pairs = zip(found, settings_of, strict=True)
        return [c for c, own in pairs if all(own.get(k) == v for k, v in settings.items())]

    @property
    def runs(self) -> "pd.DataFrame":
        """A row a run: settings, state, outcomes (see ``frames.tabulate_runs``).

        Of the paper's stages these are the paper's conditions, whatever the study makes of them.
        """
        from cifarlib.runs.frames import tabulate_runs

        records, running = self.every_record, held(self.store.state)
        conditions = self.select(*self.stages)
        return tabulate_runs(conditions, records, protocol=self.protocol, running=running)

    @property
    def protocol(self) -> str:
        """The name of the scale's protocol, “custom” where the study has none for it."""
        presets, said = self.study.presets.get("protocol", {}), self.scale.protocol.model_dump()
        return next((name for name, preset in presets.items() if preset == said), "custom")

    def absolute(self, rule: str) -> "tuple[Results, pd.DataFrame]":
        """The runs for a claim about an absolute number, and the results that they belong to.

        ``rule`` is a query on ``runs``. They are those at the paper's own budget, where all of them
        are recorded there (``own_budget``), else those at this scale.
        """
        for results in (self.own_budget, self):
            found = results.runs.query(rule)
            if found["state"].isin(["recorded", "diverged"]).all():
                break
        return results, found

    @cached_property
    def own_budget(self) -> "Results":
        """The same study at the paper's own budget: from the folder ``full`` beside this one.

        These results themselves where they are no less, or not of CIFAR-10.
        """
        if not (self.real and self.reduced):
            return self
        opened = open_results("full", build=self.store.folder.parent / "full")
        return replace(opened, is_own_budget=True)

    @cached_property
    def beyond(self) -> "Results":
        """The second study, with more seeds, at the same scale and in the same folder."""
        return self.with_study(load_study("beyond"))

    def scale_for(self, study: Study) -> Scale:
        """The scale, with what it makes of another study's epochs."""
        epochs = study.epochs_at(self.scale_name) | self.scale.epochs
        return self.scale.model_copy(update={"epochs": epochs})

    def with_study(self, study: Study) -> "Results":
        """Another study over the same records at the same scale."""
        scale = self.scale_for(study)
        conditions, paper = expand(study, scale), tuple(expand_paper(study, scale))
        opened = replace(self, study=study, scale=scale, conditions=conditions, paper=paper)
        return opened.reread()

    @property
    def curves(self) -> "pd.DataFrame":
        """A row a run, epoch and set: rate, loss, accuracies (see ``frames.tabulate_curves``)."""
        from cifarlib.runs.frames import tabulate_curves

        return tabulate_curves(self.runs, self.every_record)

    def predictions(self, run_id: str) -> "RunPredictions | None":
        """A run's predictions, None while it is not recorded or where it diverged.

        A condition's name stands for its one run. Raises ``ConfigError`` for an id or a name that
        no run of this study has, and for a name of several runs.
        """
        from cifarlib.runs.frames import RunPredictions

        if not isinstance(run_id, str):
            raise ConfigError(f"{cut(repr(run_id))} is no run; take one of runs['run_id']")
        known = {c.run_id: c.name for c in self.known}
        named = [run for run, name in known.items() if name == run_id]
        run_id = named[0] if len(named) == 1 else run_id
        record = self.records.get(run_id)
        if not record and run_id not in known:
            told = (
                f"{len(named)} runs of this study have the name"
                if named
                else ("no run of this study has the id or the name")
            )
            raise ConfigError(f"{told} {cut(repr(run_id))}; take one of runs['run_id']")
        return RunPredictions(record, self.data) if record else None

    def describe(
        self, shown: "Iterable[Condition] | pd.DataFrame | str", *, chosen: bool = True
    ) -> str:
        """A caption: what stands behind a stage, a frame of runs or some conditions."""
        from cifarlib.runs.captions import describe

        return describe(self, shown, chosen=chosen)

    def nothing_recorded(self, purpose: str) -> ConfigError:
        """What to say where no run of this study at this scale is recorded."""
        folder = shown(self.store.folder)
        if not (count := len(self.store.run_ids())):
            return ConfigError(
                f"{folder} holds no record to {purpose}; make some with cifarlib sweep"
            )
        scale = " with ".join([self.scale_name, *self.overrides])
        return ConfigError(
            f"{folder} holds {say_count(count, 'run')}, none of them of this study at scale "
            f"{scale}; name theirs with --scale and --set"
        )

    @property
    def real(self) -> bool:
        """Whether the images are CIFAR-10's, so that claims about it can be judged."""
        return DATASETS[self.scale.data.name].real

    @property
    def reduced(self) -> bool:
        """Whether this is less than the paper's budget: fewer images or epochs, smaller images."""
        data, epochs = self.scale.data, self.scale.epochs
        sizes = {split: getattr(data, f"{split}_size") for split in SPLITS}
        return (
            sizes != DATASETS[data.name].sizes
            or any(published != ours for published, ours in epochs.items())
            or self.scale.image_size != IMAGE_SIZE
        )


def name_records(scale: str, overrides: Sequence[str], build: str | Path = "") -> str:
    """The command line options that name the records of a scale, changed or not, in a folder."""
    words = ["--scale", scale, *(word for text in overrides for word in ("--set", text))]
    return shlex.join([*words, *(("--out", str(build)) if str(build) else ())])


def open_results(
    scale: str | Path,
    overrides: str | Sequence[str] = (),
    build: str | Path = "",
    study: Path | str | None = None,
) -> Results:
    """Read a study, a scale and every record of theirs in a build folder.

    ``overrides`` may be one text, as ``papermill -p overrides`` gives it (``split_overrides``).
    ``build`` is the folder, ``build/<scale>`` where it is empty. ``study`` is a file, or the name
    of one in ``params/`` or in that folder; the paper's unless given. Damaged records count as
    missing and are named in ``faults``. Raises ``ConfigError`` for what cannot be, and for what
    papermill injected into the notebook that calls this.
    """
    check_injected()
    for name, value in {"scale": scale, "build": build, "study": study}.items():
        if not isinstance(value, str | Path) and not (value is None and name == "study"):
            raise ConfigError(f"{name} is {cut(repr(value))}; write a text, such as 'lite'")
    scale, overrides = str(scale), split_overrides(overrides)
    folder = expand_folder(build, "build ") if str(build) else paths.BUILD / Path(scale).stem
    with contextlib.suppress(OSError):  # what cannot be looked at is told of when it is read
        if folder.is_file():
            raise ConfigError(f"{folder} is no folder; name the build folder, such as build/lite")
    store = RecordStore(folder)
    loaded = load_study(find_study(study, store.folder) if isinstance(study, str) else study)
    checked = load_scale(scale, overrides, loaded)
    is_file = scale.endswith((".yaml", ".yml"))
    if is_file and not str(build) and Path(scale).stem in scale_names():
        own = paths.PARAMS / f"{Path(scale).stem}.yaml"
        if Path(scale).resolve() != own.resolve():
            raise ConfigError(
                f"{scale} has the name of the scale {own.stem}, whose records and report are in "
                f"{shown(folder)}; rename the file, or name another folder (--out, build)"
            )
    conditions = expand(loaded, checked)
    paper = expand_paper(loaded, checked)
    opened = Results(loaded, Path(scale).stem, checked, overrides, store, conditions, tuple(paper))
    return replace(opened, options=name_records(scale, overrides, build)).reread()
