"""How far a sweep is: one line on a terminal, plain lines elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from tqdm import tqdm

from cifarlib.config import RunConfig
from cifarlib.runs.progress import Prices, duration
from cifarlib.runs.running import checkpoint_epoch
from cifarlib.runs.schema import RunRecord
from cifarlib.runs.store import AnyRecord, RecordStore
from cifarlib.runs.worker import Job, RunJob

SILENT = 60.0  # s after which a plain line tells of an epoch, where no run has ended


class ProgressLine:
    """One line for the whole sweep on a terminal; elsewhere plain lines, one for each run."""

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
        self.slowness = slowness
        self.prices = prices
        self.left = {job.run_id: job.config for job in runs}
        self.images: Counter[str] = Counter()  # trained here, by run id
        self.before = {  # trained by earlier sweeps
            job.run_id: checkpoint_epoch(store.state / f"{job.run_id}.pt")
            * job.config.data.train_size
            for job in runs
        }
        self.started, self.shown = time.monotonic(), 0.0
        self.bar = self._make_bar()
        self._refresh()
        if self.bar is None:
            self.say(
                f"{self.finished} of {self.total} runs are recorded; {len(runs)} to go, workers: "
                f"{workers}, about {duration(self.seconds_left())}"
            )
        described = [job.name for job in jobs if not isinstance(job, RunJob)]
        if described:  # of CIFAR-10 it takes most of a minute, in which no run may end
            self.say(f"to be described first, which may take a minute: {', '.join(described)}")

    def _make_bar(self) -> Any:
        """A progress bar; None where plain lines are said."""
        layout = "{percentage:3.0f}%|{bar}| {desc}"
        if not sys.stderr.isatty():
            return None
        return tqdm(total=self.total, initial=self.finished, bar_format=layout)

    def epoch(self, job: Job, epoch: int, accuracy: float) -> None:
        """An epoch of a run has ended, with a validation accuracy in %."""
        silent = self.bar is None and time.monotonic() - self.shown > SILENT
        if isinstance(job, RunJob) and silent:
            epochs = job.config.epochs
            self.say(f"{job.name}: epoch {epoch} of {epochs}, validation {accuracy:.1f} %")

    def drop(self, job: Job, why: str) -> None:
        """A job is not run here any more; ``why`` is the kind of its last message."""

    def advance(self, job: Job, images: int) -> None:
        if isinstance(job, RunJob):
            self.images[job.run_id] += images
        self._refresh()

    def finish(self, job: Job, record: AnyRecord | None) -> None:
        if not isinstance(record, RunRecord):
            self.say(f"{job.name}: described")
            return
        self.finished += 1
        self.left.pop(record.run_id, None)
        self.prices.add(record)
        if self.bar is not None:
            self.bar.update()
            self._refresh()
        else:
            accuracy = record.accuracy("test")
            outcome = f"diverged in epoch {record.result.history.epochs}"
            if accuracy is not None:
                outcome = f"test {accuracy:.2f} % after epoch {record.reported_epoch}"
            self.say(
                f"[{self.finished}/{self.total}] {job.name}: {outcome}, {record.seconds:.1f} s, "
                f"{record.timing.images_per_s:.0f} images/s, {duration(self.seconds_left())} left"
            )

    def say(self, text: str) -> None:
        if self.bar is not None:
            self.bar.write(text, file=sys.stderr)
        else:
            self.shown = time.monotonic()
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def seconds_left(self) -> float:
        """Seconds of this sweep for all that is not recorded yet."""
        return self.slowness * sum(
            self.prices.seconds(config)
            * (1 - min(1.0, (self.before[name] + self.images[name]) / _images(config)))
            for name, config in self.left.items()
        )

    def _refresh(self) -> None:
        if self.bar is None or time.monotonic() - self.shown < 0.2:
            return
        self.shown = time.monotonic()
        rate = self.images.total() / max(1e-9, self.shown - self.started)
        self.bar.set_description_str(
            f"{self.finished}/{self.total} runs, {rate:.0f} images/s, "
            f"{duration(self.seconds_left())} left"
        )


def _images(config: RunConfig) -> int:
    return config.epochs * config.data.train_size
