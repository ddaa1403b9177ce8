"""How far a sweep is: one line on a terminal, a plain line for each run elsewhere."""

import sys
import time
from collections import Counter
from collections.abc import Sequence

from tqdm import tqdm

from cifarlib.config import RunConfig
from cifarlib.runs.checkpoints import checkpoint_epoch
from cifarlib.runs.progress import Prices, duration
from cifarlib.runs.schema import RunRecord
from cifarlib.runs.store import AnyRecord, RecordStore
from cifarlib.runs.worker import Job, RunJob


class ProgressLine:
    """One line for the whole sweep on a terminal; a plain line for each run elsewhere."""

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
        self.bar = None
        described = [job.name for job in jobs if not isinstance(job, RunJob)]
        if sys.stderr.isatty():
            layout = "{percentage:3.0f}%|{bar}| {desc}"
            self.bar = tqdm(total=self.total, initial=self.finished, bar_format=layout)
            self._refresh()
        else:
            self.say(
                f"{self.finished} of {self.total} runs are recorded; {len(runs)} to go, workers: "
                f"{workers}, about {duration(self.seconds_left())}"
            )
        if described:  # of CIFAR-10 it takes most of a minute, in which no run may end
            self.say(f"to be described first, which may take a minute: {', '.join(described)}")

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
