"""A study's results as frames and captions, for whoever works in a notebook."""

import typing
from typing import Any

from cifarlib.config import DATASETS
from cifarlib.locks import held

if typing.TYPE_CHECKING:
    from collections.abc import Iterable

    import pandas as pd

    from cifarlib.runs.frames import RunPredictions
    from cifarlib.study import Condition


class Views:
    """What ``Results`` offers to a notebook; pandas is imported on first use."""

    @property
    def runs(self: Any) -> "pd.DataFrame":
        """A row a run: settings, state, outcomes (see ``frames.tabulate_runs``).

        Of the paper's stages these are the paper's conditions, whatever the study makes of them.
        """
        from cifarlib.runs.frames import name_protocol, tabulate_runs

        presets = self.study.presets.get("protocol", {})
        protocol = name_protocol(self.scale.protocol.model_dump(), presets)
        running = held(self.store.state)
        conditions = self.select(*self.stages)
        return tabulate_runs(conditions, self.every_record, protocol=protocol, running=running)

    @property
    def curves(self: Any) -> "pd.DataFrame":
        """A row a run, epoch and set: rate, loss, accuracies (see ``frames.tabulate_curves``)."""
        from cifarlib.runs.frames import tabulate_curves

        return tabulate_curves(self.runs, self.every_record)

    def predictions(self: Any, run_id: str) -> "RunPredictions | None":
        """A run's predictions, None while it is not recorded or where it diverged."""
        from cifarlib.runs.frames import RunPredictions

        record = self.records.get(run_id)
        return RunPredictions(record, self.data) if record else None

    def describe(self: Any, shown: "Iterable[Condition] | pd.DataFrame | str") -> str:
        """A caption: what stands behind a stage, a frame of runs or some conditions."""
        from cifarlib.runs.captions import describe

        return describe(self, shown)

    @property
    def real(self: Any) -> bool:
        """Whether the images are CIFAR-10's, so that claims about it can be judged."""
        return DATASETS[self.scale.data.name].real

    @property
    def reduced(self: Any) -> bool:
        """Whether this is less than the paper's budget: fewer images or epochs, smaller images."""
        return self.scale.reduced
