"""A sweep in slices of time: which job to take next, so that it ends by its deadline."""

import time
from collections import deque

from cifarlib.runs.progress import Prices
from cifarlib.runs.running import checkpoint_epoch
from cifarlib.runs.store import RecordStore
from cifarlib.runs.worker import SAFETY, Job, RunJob

STOPPING = 1.5  # s before the deadline at which workers are ended, wherever they are
BORDER = 3.0  # s before the deadline by which a run's last epoch must have ended


class Budget:
    """Which job to take next, so that a sweep ends by its deadline with little lost."""

    def __init__(
        self,
        deadline: float | None,
        store: RecordStore,
        prices: Prices,
        share: int,
        checkpoints: bool,
        lag: float = 0.0,
    ):
        self.deadline = deadline
        self.store = store
        self.prices = prices
        self.share = share  # workers that have the machine together
        self.checkpoints = checkpoints
        self.lag = lag  # s that ending runs takes longer than on this machine

    @property
    def is_limited(self) -> bool:
        return self.deadline is not None

    @property
    def last_border(self) -> float | None:
        """By when a worker should have left its run, on the monotonic clock."""
        return None if self.deadline is None else self.deadline - BORDER - self.lag

    def is_spent(self) -> bool:
        """Whether it is time to stop whatever still runs."""
        if self.deadline is None:
            return False
        return time.monotonic() >= self.deadline - STOPPING - self.lag / 2

    def choose(self, waiting: deque[Job]) -> Job | None:
        """Take the first job that can end in time out of those waiting, None where none can.

        Where no run can end, one that can get an epoch further: one that is begun already, else
        the first.
        """
        if not waiting:
            return None
        if self.last_border is None:
            return waiting.popleft()
        seconds = self.last_border - time.monotonic()
        chosen = next((job for job in waiting if self._whole(job) <= seconds), None)
        if chosen is None and self.checkpoints:
            begun_first = sorted(waiting, key=lambda job: self._epochs_done(job) == 0)
            chosen = next((job for job in begun_first if self._epoch(job) <= seconds), None)
        if chosen is not None:
            waiting.remove(chosen)
        return chosen

    def _whole(self, job: Job) -> float:
        """Seconds that a worker needs for the rest of a job; descriptions are always tried."""
        if not isinstance(job, RunJob):
            return 0.0
        return self._epoch(job) * (job.config.epochs - self._epochs_done(job))

    def _epoch(self, job: Job) -> float:
        if not isinstance(job, RunJob):
            return 0.0
        return SAFETY * self.prices.seconds(job.config) * self.share / job.config.epochs

    def _epochs_done(self, job: Job) -> int:
        if not isinstance(job, RunJob):
            return 0
        return checkpoint_epoch(self.store.state / f"{job.run_id}.pt")
