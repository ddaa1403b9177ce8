"""A sweep in slices of time: which job to take next, so that it ends by its deadline."""

import time
from collections import deque

from cifarlib.runs.progress import Prices
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
        self.store, self.prices, self.checkpoints = store, prices, checkpoints
        self.share = share  # workers that have the machine together
        self.last_border: float | None = None  # by when a worker should have left its run
        self.end = float("inf")  # when whatever still runs is stopped
        if deadline is not None:  # ``lag`` is what ending runs takes longer than on this machine
            self.last_border = deadline - BORDER - lag
            self.end = deadline - STOPPING - lag / 2

    def is_spent(self) -> bool:
        """Whether it is time to stop whatever still runs."""
        return time.monotonic() >= self.end

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
        chosen = next((job for job in waiting if self._needs(job)[0] <= seconds), None)
        if chosen is None and self.checkpoints:
            begun_first = sorted(waiting, key=lambda job: not self._needs(job)[2])
            chosen = next((job for job in begun_first if self._needs(job)[1] <= seconds), None)
        if chosen is not None:
            waiting.remove(chosen)
        return chosen

    def _needs(self, job: Job) -> tuple[float, float, int]:
        """Seconds of a worker for the rest of a job and for an epoch; epochs that are done.

        Descriptions are always tried.
        """
        if not isinstance(job, RunJob):
            return 0.0, 0.0, 0
        done = self.store.checkpoint_epoch(job.run_id)
        slower = SAFETY * self.share
        epoch = slower * self.prices.seconds(job.config) / job.config.epochs
        return slower * self.prices.rest(job.config, done), epoch, done
