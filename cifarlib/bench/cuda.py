"""How fast a GPU trains, measured: a row as soon as it is known, until the time is up.

Images are random, for speed does not depend on what they show, so that no data set is needed.
Beside runs as a sweep trains them stand the kernels of a step, the optimiser's update, and
ordinary training loops in processes of their own (``plain_training``).
"""

import contextlib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cifarlib.bench import measurements
from cifarlib.bench import throughput as bench
from cifarlib.bench.plain_training import measure_processes
from cifarlib.config import NETWORKS, RunConfig
from cifarlib.gpu.cuda import MOMENTS, step_scalars, update_
from cifarlib.gpu.lanes import Lane
from cifarlib.models import ResidualNetwork
from cifarlib.training import ImageSet, Inputs, Run

Row = dict[str, Any]
"""``way``, ``batch_size``, ``runs`` (at once), then ``images_per_s`` and ``tflops`` or other
measurements, or ``left_out`` or ``failed`` with the reason; ``at_s`` since the beginning."""

STEPS = 256  # of an epoch
TOP_KERNELS = 12  # that are named, of those of a step


@dataclass(frozen=True)
class Settings:
    """Where and how much to measure."""

    device: torch.device
    steps: int = STEPS
    epochs: int = 2  # that count, after one that does not

    @property
    def graphs(self) -> bool:
        return self.device.type == "cuda"


def run(seconds: float, folder: Path) -> Iterator[str]:
    """Measure on the CUDA device, write ``cuda.json`` after each row, and give it as a line."""
    device = torch.device("cuda")
    where = bench.describe_machine("random images") | {"device": torch.cuda.get_device_name()}
    rows: list[Row] = []
    for row in measure(Settings(device), seconds):
        rows.append(row)
        measurements.write_bench({"throughput": where | {"rows": rows}}, "cuda", folder)
        yield describe_row(row)


def measure(settings: Settings, seconds: float) -> Iterator[Row]:
    """All rows, the most telling first; none is begun that would not end in time."""
    began = time.monotonic()
    for expected, labels, action in _plan(settings):
        row = dict(labels)
        left = seconds - (time.monotonic() - began)
        if expected > left:
            yield row | {"left_out": f"would take {expected} s", "at_s": time.monotonic() - began}
            continue
        try:
            row |= action(left)
        except Exception as error:  # of one way: the others may do
            row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
            if settings.graphs:
                with contextlib.suppress(RuntimeError):  # a device that is lost fails every row
                    torch.cuda.synchronize()
        yield row | {"at_s": time.monotonic() - began}


Step = tuple[float, Row, Callable[[float], Row]]
"""How long a measurement takes (s, on an H100-class GPU), its labels, and what makes it in the
seconds that are left."""


def _plan(settings: Settings) -> Iterator[Step]:
    def runs(way: str, size: int, count: int, expected: float) -> Step:
        def action(_: float) -> Row:
            if way == "eager":
                return _as_rate(_measure_eager(settings, size))
            return _as_rate(_measure_runs(settings, size, count))

        return expected, {"way": way, "batch_size": size, "runs": count}, action

    def plain(mode: Any, count: int, expected: float) -> Step:
        def action(left: float) -> Row:
            steps = 4 * settings.steps
            return _as_rate(measure_processes(mode, count, 64, steps, settings.device, left))

        return expected, {"way": f"plain {mode}", "batch_size": 64, "runs": count}, action

    yield runs("graph", 64, 1, 8)
    yield runs("eager", 64, 1, 6)
    for count in (8, 4, 2, 16):
        yield runs("graph", 64, count, 10)
    yield 5, {"way": "kernels of a step", "batch_size": 64}, lambda _: profile_step(settings, 64)
    yield 5, {"way": "update by AdamW"}, lambda _: measure_update(settings)
    yield plain("graph", 8, 30)
    yield plain("compile", 1, 60)
    yield plain("compile", 4, 60)
    for size in (32, 128, 256):
        yield runs("graph", size, 1, 8)
        yield runs("graph", size, 8, 12)
    yield runs("graph", 32, 16, 12)
    yield runs("eager", 256, 1, 6)


def _as_rate(images_per_s: float) -> Row:
    """A rate, and its arithmetic: three forward passes an image."""
    tflops = 3 * NETWORKS["residual"].gflop * images_per_s / 1000
    return {"images_per_s": images_per_s, "tflops": tflops}


def describe_row(row: Row) -> str:
    """A row as a line to read while the next one is measured."""
    row = dict(row)
    text = f"[{row.pop('at_s'):4.0f} s] {row.pop('way')}"
    if "runs" in row:
        text += f", {row.pop('runs')} at once"
    if "batch_size" in row:
        text += f", batch {row.pop('batch_size')}"
    if "images_per_s" in row:
        return f"{text}: {row['images_per_s']:,.0f} images/s, {row['tflops']:.3g} TFLOP/s"
    kernels = row.pop("kernels", [])
    told = [f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in row.items()]  # fmt: skip
    lines = [f"  {us:8.1f} µs, {times} times: {name}" for name, us, times in kernels]
    return "\n".join([f"{text}: {', '.join(told)}", *lines])


# ---------------------------------------------------------------------------------------------
# Whole runs
# ---------------------------------------------------------------------------------------------


def make_inputs(settings: Settings, size: int) -> tuple[RunConfig, Inputs]:
    """A configuration (AdamW, DAA-1) and random images for some steps of a batch size."""
    images = settings.steps * size
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    train = ImageSet(pixels.to(settings.device), (torch.arange(images) % 10).to(settings.device))
    few = ImageSet(train.images[:1000], train.labels[:1000])
    config = bench.make_config("cifar10", min(images, bench.EPOCH_IMAGES), size)
    return config, Inputs(train, few, few, (0.5,) * 3, (0.25,) * 3)


def _measure_eager(settings: Settings, size: int) -> float:
    """Images/s of one run that launches each kernel by itself; one epoch, for it is slow."""
    config, inputs = make_inputs(settings, size)
    alone = Run(config, inputs, settings.device)
    return _speed([lambda epoch: alone.train_epoch(epoch, None)], len(inputs.train), 1)


def _measure_runs(settings: Settings, size: int, count: int) -> float:
    """Images/s of concurrent runs together, as a sweep trains them."""
    config, inputs = make_inputs(settings, size)
    turn = threading.Lock()

    def make_trainer() -> Callable[[int], object]:
        lane = Lane(settings.device, turn, graphs=settings.graphs)
        with lane.working():
            begun = lane.begin(config, inputs, lane.device)

        def train(epoch: int) -> None:
            with lane.working():
                begun.train_epoch(epoch, None)

        return train

    return _speed([make_trainer() for _ in range(count)], len(inputs.train), settings.epochs)


def _speed(trainers: list[Callable[[int], object]], images: int, epochs: int) -> float:
    """Images/s of all trainers at once, in threads; the first epoch is not counted."""
    began = []
    barrier = threading.Barrier(len(trainers), action=lambda: began.append(time.perf_counter()))
    faults = []

    def work(train: Callable[[int], object]) -> None:
        try:
            for epoch in range(1, epochs + 2):
                if epoch == 2:
                    barrier.wait()
                train(epoch)
        except Exception as error:
            faults.append(error)
            barrier.abort()

    threads = [threading.Thread(target=work, args=(train,)) for train in trainers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if faults:
        raise faults[0]
    return round(len(trainers) * epochs * images / (time.perf_counter() - began[0]), 1)


# ---------------------------------------------------------------------------------------------
# Inside a step
# ---------------------------------------------------------------------------------------------


def profile_step(settings: Settings, size: int) -> Row:
    """How many kernels a training step is (operators on a processor), and where its time goes."""
    config, inputs = make_inputs(settings, size)
    kinds = torch.autograd.DeviceType
    kind = kinds.CUDA if settings.graphs else kinds.CPU
    with Lane(settings.device, threading.Lock(), graphs=False).working() as lane:
        begun: Any = lane.begin(config, inputs, settings.device)
        program = begun.program
        begun.model.train()
        rates = [config.learning_rate] * len(program.scalars)
        program.start(config, begun.feed, 1, step_scalars(rates, 0))
        program.carry_out(("step", size))
        with torch.profiler.profile() as profiler:
            program.carry_out(("step", size))
            if settings.graphs:
                torch.cuda.synchronize()
    events = [event for event in profiler.events() if event.device_type == kind]
    spent, times = Counter[str](), Counter[str]()
    for event in events:
        name = event.name[:70]
        spent[name] += event.time_range.elapsed_us()
        times[name] += 1
    return {
        "launched": len(events),
        "busy_us": float(sum(spent.values())),
        "kernels": [[name, us, times[name]] for name, us in spent.most_common(TOP_KERNELS)],
    }


def measure_update(settings: Settings, repeats: int = 50) -> Row:
    """Time of AdamW's update alone, captured: by fused kernels, as runs take it, and for-each."""
    device = settings.device
    model = ResidualNetwork().to(device, memory_format=torch.channels_last)
    parameters = list(model.parameters())
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    gradients = [parameter.grad for parameter in parameters]
    config = bench.make_config("cifar10", 9000, 64)
    rate = config.learning_rate
    moments = [[torch.zeros_like(p) for p in parameters] for _ in MOMENTS[config.optimizer.name]]
    (scalars,) = step_scalars([rate], 0).to(device)
    optimizer = torch.optim.AdamW(
        parameters,
        lr=torch.tensor(rate, device=device) if settings.graphs else rate,
        weight_decay=config.weight_decay,
        foreach=True,
        capturable=settings.graphs,
    )
    fused = _microseconds(
        lambda: update_(config, parameters, gradients, moments, scalars), device, repeats
    )
    return {"fused_us": fused, "foreach_us": _microseconds(optimizer.step, device, repeats)}


def _microseconds(action: Callable[[], object], device: torch.device, repeats: int) -> float:
    """The time of an action, captured as a graph where that is possible."""
    repeat = action
    if device.type == "cuda":
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                action()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            action()
        repeat = graph.replay
    repeat()
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    for _ in range(repeats):
        repeat()
    wait()
    return 1e6 * (time.perf_counter() - started) / repeats
