"""How far a sweep is: a line for each run, and bars where a person watches."""

import importlib
import os
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from tqdm import tqdm

from cifarlib.config import RunConfig
from cifarlib.runs.parameters import find_shell
from cifarlib.runs.progress import Prices, duration
from cifarlib.runs.schema import Record, RunRecord
from cifarlib.runs.store import RecordStore
from cifarlib.runs.worker import Job, RunJob

SETTLED = 60.0  # s after which a sweep's own pace tells what is left
SILENT = 60.0  # s after which a line tells of an epoch, where no run has ended and no bar is shown


def is_kernel() -> bool:
    """Whether this process is a notebook's kernel."""
    return hasattr(find_shell(), "kernel")


def is_watched() -> bool:
    """Whether a person sees this: on a terminal, in JupyterLab and its like, not in papermill."""
    in_lab = {"JPY_SESSION_NAME", "VSCODE_PID"} & os.environ.keys()
    return sys.stderr.isatty() or (is_kernel() and bool(in_lab))


class Display:
    """Lines about a sweep, a bar over its runs and one for each running run.

    ``slowness``: seconds that it takes for a second's work of this whole machine.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        finished: int,
        prices: Prices,
        workers: int,
        slowness: float,
        store: RecordStore,
    ):
        runs = [job for job in jobs if isinstance(job, RunJob)]
        self.finished, self.total = finished, finished + len(runs)
        self.prices, self.slowness = prices, slowness
        self.left = {job.run_id: job.config for job in runs}
        self.store = store
        self.images: Counter[str] = Counter()  # trained, by run id; here and by earlier sweeps
        for job in runs:
            self._count_images(job)
        self.begun = dict(self.left), self.images.copy(), time.monotonic()
        self.say(
            f"{finished} of {self.total} runs are recorded; {len(runs)} to go, workers: {workers}, "
            f"about {duration(self.seconds_left())}"
        )
        if described := [job.name for job in jobs if not isinstance(job, RunJob)]:
            # Of CIFAR-10 it takes most of a minute, in which no run may end.
            self.say(f"to be described first, which may take a minute: {', '.join(described)}")
        self.watched = is_watched()
        # The first warns where a notebook has no widgets, which need be no news to papermill.
        kind = importlib.import_module("tqdm.auto" if self.watched else "tqdm").tqdm
        # A browser that draws ten times a second takes a fifth of a core from the training.
        self.make_bar = partial(kind, dynamic_ncols=True, mininterval=1.0, disable=not self.watched)
        layout = "{percentage:3.0f}%|{bar}| {desc}"
        self.bar = self.make_bar(total=self.total, initial=finished, bar_format=layout)
        self.bars: dict[str, Any] = {}  # by a job's name
        self._describe()

    def advance(self, job: Job, images: int) -> None:
        """Some images of a run have been trained on."""
        if isinstance(job, RunJob):
            self._find_bar(job).update(images)
            self.images[job.run_id] += images

    def epoch(self, job: Job, epoch: int, accuracy: float) -> None:
        """An epoch of a run has ended, with a validation accuracy in %."""
        if isinstance(job, RunJob):
            text = f"epoch {epoch} of {job.config.epochs}, validation {accuracy:.1f} %"
            self._find_bar(job).set_postfix_str(text)
            self._describe()
            if not self.watched and time.monotonic() - self.spoken > SILENT:
                self.say(f"{job.name}: {text}")

    def finish(self, job: Job, record: Record | None) -> None:
        """A job is done."""
        if not isinstance(record, RunRecord):
            self.say(f"{job.name}: described")
            return
        self.finished += 1
        self.left.pop(record.run_id, None)
        self.prices.add(record)
        self.bar.update()
        self._describe()
        accuracy = record.accuracy("test")
        outcome = f"diverged in epoch {record.result.history.epochs}"
        if accuracy is not None:
            outcome = f"test {accuracy:.2f} % after epoch {record.reported_epoch}"
        self.say(
            f"[{self.finished}/{self.total}] {job.name}: {outcome}, {record.seconds:.1f} s, "
            f"{record.images_per_s:.0f} images/s, {duration(self.seconds_left())} left"
        )

    def drop(self, job: Job) -> None:
        """A job is not run here any more; what is not in its checkpoint is to be done again."""
        if isinstance(job, RunJob):
            self._count_images(job)
        if bar := self.bars.pop(job.name, None):
            bar.total = bar.n  # else a run that stopped early would look like a failure
            bar.close()

    def say(self, text: str) -> None:
        """Say something, above the bars."""
        self.spoken = time.monotonic()
        tqdm.write(text, file=sys.stderr)

    def close(self) -> None:
        """Leave the bars as they are."""
        for bar in [*self.bars.values(), self.bar]:
            bar.close()

    def seconds_left(self) -> float:
        """Seconds for all that is not recorded yet, at the pace of this sweep once it is known."""
        configs, images, start = self.begun
        left, spent = self._price(self.left, self.images), time.monotonic() - start
        done = self._price(configs, images) - left
        return left * spent / done if spent > SETTLED and done > 0 else left

    def _price(self, configs: Mapping[str, RunConfig], images: Mapping[str, int]) -> float:
        """Seconds for what is left of some runs, by run id, on this machine with nothing beside."""
        return self.slowness * sum(
            self.prices.rest(config, images[name] / config.data.train_size)
            for name, config in configs.items()
        )

    def _describe(self) -> None:
        left = duration(self.seconds_left())
        self.bar.set_description_str(f"{self.finished} of {self.total} runs, about {left} left")

    def _count_images(self, job: RunJob) -> None:
        epochs = self.store.checkpoint_epoch(job.run_id)
        self.images[job.run_id] = epochs * job.config.data.train_size

    def _find_bar(self, job: RunJob) -> Any:
        if job.name not in self.bars:
            total, done = job.config.epochs * job.config.data.train_size, self.images[job.run_id]
            self.bars[job.name] = self.make_bar(
                total=total, initial=done, desc=job.name, unit=" images", leave=False
            )
        return self.bars[job.name]
