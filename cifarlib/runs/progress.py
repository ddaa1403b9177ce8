"""How far a study is, and what the rest will cost: from the records and locks of a build folder."""

import heapq
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from cifarlib import paths
from cifarlib.checking import cut
from cifarlib.config import NETWORKS, RunConfig
from cifarlib.errors import ConfigError
from cifarlib.runs.locks import held
from cifarlib.runs.schema import RunRecord
from cifarlib.runs.store import RecordStore
from cifarlib.study import Condition


@dataclass(frozen=True)
class StageStatus:
    """How far one stage is."""

    stage: str
    conditions: int
    done: int
    running: int
    seconds_left: float  # of this machine, all workers together

    @property
    def pending(self) -> int:
        """Conditions neither recorded nor being trained."""
        return self.conditions - self.done - self.running


def status(conditions: Sequence[Condition], store: RecordStore) -> list[StageStatus]:
    """How far each stage is, from the records and the locks of a build folder."""
    records, _ = store.read_runs(c.run_id for c in conditions)
    locked = held(store.state)
    prices = learn_prices(records.values(), store)
    stages: dict[str, list[Condition]] = {}
    for condition in conditions:
        stages.setdefault(condition.stage, []).append(condition)
    paid = set(records)  # a run that two stages share costs once
    rows = []
    for stage, members in stages.items():
        missing = {c.run_id: c.config for c in members if c.run_id not in paid}
        left = prices.left(missing, store)
        paid |= missing.keys()
        done = sum(c.run_id in records for c in members)
        running = sum(c.run_id in locked and c.run_id not in records for c in members)
        rows.append(StageStatus(stage, len(members), done, running, left))
    return rows


DEFAULT_GFLOPS = {
    "cpu": {"fp32": 240.0, "bf16": 480.0},  # a whole machine of two cores
    "cuda": {"fp32": 20_000.0, "bf16": 50_000.0},  # a data-centre GPU with several runs at once
}
"""GFLOP/s while training by device class, until records of that class say better."""

EVALUATION = 0.5
"""Time of a GFLOP in evaluation, as a share of one in training."""


def work(config: RunConfig) -> float:
    """What a run costs as configured, in GFLOP of training: three forward passes a step.

    Evaluation, one forward pass an image, counts by the time it takes.
    """
    size = config.resize.crop if config.resize else 32
    forward = NETWORKS[config.model.name].gflop * (size / 32) ** 2
    data, evaluation = config.data, config.evaluation
    images = 3.0 * config.epochs * data.train_size * (1 - config.progressive_dropping / 2)
    for every, count in (
        (evaluation.train_every, data.train_size),
        (1, data.validation_size),
        (evaluation.test_every, data.test_size),
    ):
        images += EVALUATION * count * (config.epochs // every + 2 if every else 2)
    return images * forward


class Prices:
    """Seconds that a run takes of a whole machine, or of a whole GPU.

    They are learnt from records of the same device class: these classes differ a hundredfold.
    """

    def __init__(self, records: Iterable[RunRecord] = (), device: str = "auto"):
        self.device_class = "cuda" if uses_cuda(device) else "cpu"
        self.rates: dict[tuple[str, str], list[float]] = {}
        for record in records:
            self.add(record)

    def add(self, record: RunRecord) -> None:
        """Learn from a record; what it did not train, for it stopped early, does not count."""
        if record.provenance.device_class != self.device_class:
            return
        config, workers = record.config, record.provenance.lanes
        if self.device_class == "cpu":
            workers = max(1, cores() // record.provenance.threads)
        if record.seconds > 0:
            share = record.result.history.epochs / config.epochs
            rate = work(config) * share / record.seconds * workers
            self.rates.setdefault((config.model.name, config.precision), []).append(rate)

    def seconds(self, config: RunConfig) -> float:
        """Seconds of the whole machine or GPU for one run, early stopping aside."""
        known = self.rates.get((config.model.name, config.precision))
        default = DEFAULT_GFLOPS[self.device_class][config.precision]
        return work(config) / (median(known) if known else default)

    def rest(self, config: RunConfig, epochs: float) -> float:
        """The same for what is left of a run of which some epochs are done."""
        return self.seconds(config) * max(0.0, 1 - epochs / config.epochs)

    def left(self, runs: Mapping[str, RunConfig], store: RecordStore) -> float:
        """The same for runs by their ids, on from the checkpoints in a build folder."""
        return sum(self.rest(config, store.checkpoint_epoch(run)) for run, config in runs.items())


def learn_prices(records: Iterable[RunRecord], store: RecordStore, device: str = "auto") -> Prices:
    """Prices by the records of some runs; without any, by their folder's, or another scale's in
    ``build/``: another budget tells the machine's speed, too."""
    scales = sorted(paths.BUILD.glob("*/runs")) if store.folder.parent == paths.BUILD else []
    stores = [store, *(RecordStore(path.parent) for path in scales)]
    found = (known for s in stores if (known := s.read_runs(s.run_ids())[0]))
    return Prices([*records] or next(found, {}).values(), device)


DRIVER = ("/dev/nvidiactl", "/usr/lib/wsl/lib/libcuda.so.1")
"""What stands where a driver for CUDA devices is installed, on Linux and in WSL 2."""


def check_device(device: object) -> None:
    """``ConfigError`` for what is no name of a device."""
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"there is no device {device!r}; use auto, cpu or cuda")


def uses_cuda(device: str) -> bool:
    """Whether ``auto``, ``cpu`` or ``cuda`` means a CUDA device here, told without torch."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    found = not hidden and any(Path(place).exists() for place in DRIVER)
    return device == "cuda" or (device == "auto" and found)


def makespan(seconds: Iterable[float], machines: int) -> float:
    """When the last of some runs ends: longest first, each on the machine that is free first."""
    busy = [0.0] * machines
    for run in sorted(seconds, reverse=True):
        heapq.heapreplace(busy, busy[0] + run)
    return max(busy)


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def duration(seconds: float) -> str:
    """Seconds as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def parse_budget(text: str, source: str) -> float:
    """``540s``, ``9m`` or ``1.5h`` in seconds; ``ConfigError``, which names the source."""
    parts = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if not parts or not float(parts[1]):
        raise ConfigError(f"{source} {cut(text)}: write a time such as 540s, 9m or 2h")
    return float(parts[1]) * {"s": 1, "m": 60, "h": 3600}[parts[2]]
