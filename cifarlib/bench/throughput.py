"""How fast it is, measured: a paper-style training loop beside ours, in one process, in turns.

``measure`` gives plain values, ready for JSON. Every ratio is taken within one call, on one
machine; rates are images per second, times seconds, arithmetic FLOP per second.
"""

import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy import stats
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cifarlib import data
from cifarlib.bench.measurements import RATIOS
from cifarlib.checking import suggest
from cifarlib.config import SPLITS, RunConfig
from cifarlib.convolution import Convolution
from cifarlib.errors import ConfigError, DataError
from cifarlib.models import build_model, count_flops
from cifarlib.runs import provenance
from cifarlib.runs.inputs import load_inputs
from cifarlib.runs.progress import cores
from cifarlib.runs.results import open_results
from cifarlib.study import expand, load_scale, load_study
from cifarlib.training import Inputs, Run, fit, resolve_device

PARTS = ("throughput", "variants", "sweep", "precision")
BATCH_SIZES = (32, 64, 256)
VARIANT_BATCH = 64
EPOCH_IMAGES = 45_000  # trained in an epoch of the study; 60,000 are evaluated
CPU = torch.device("cpu")


def choose_device(name: str) -> str:
    """``cpu`` or ``cuda`` for ``auto``, ``cpu`` or ``cuda``; ``RunError`` where it is not there."""
    return resolve_device(name).type


def measure(part: str, images: int, repeats: int) -> dict[str, Any]:
    """Measure one of the ``PARTS`` on the processor, and say where and when.

    ``images`` are trained in each measurement, of ``repeats`` the median counts; the study's
    proportions of training, validation and test images are kept. On CIFAR-10 where it is found,
    else on the stand-in set. Raises ``ConfigError`` for a part that there is not.
    """
    name = _dataset()
    functions: dict[str, Callable[[], dict[str, Any]]] = {
        "throughput": lambda: measure_throughput(name, images, repeats),
        "variants": lambda: measure_variants(
            name, images // 2 // VARIANT_BATCH * VARIANT_BATCH, repeats
        ),
        "sweep": measure_sweep,
        "precision": lambda: measure_precision(name),
    }
    if part not in functions:
        raise ConfigError(f"there is no part {part!r}; {suggest(part, PARTS)}")
    torch.set_num_threads(cores())
    found = functions[part]()
    return describe_machine(name) | found


def describe_machine(name: str) -> dict[str, Any]:
    """Where and when something is measured, by which program, on which data."""
    commit, dirty = provenance.commit()
    return {
        "measured": provenance.now(),
        "processor": provenance.processor(),
        "cores": cores(),
        "versions": provenance.versions(),
        "commit": commit,
        "dirty": dirty,
        "data": name,
    }


def _dataset() -> str:
    try:
        data.find("cifar10")
    except DataError:
        return "synthetic"
    return "cifar10"


def _configuration(name: str, images: int, batch_size: int, **changed: Any) -> RunConfig:
    """AdamW, learning rate and L2 0.001, DAA-1, as at scale full but for the number of images."""
    sizes = {"train_size": images, "validation_size": images // 9, "test_size": 2 * images // 9}
    overrides = [f"data.name={name}", *(f"data.{key}={value}" for key, value in sizes.items())]
    study = load_study()
    for condition in expand(study, load_scale("full", overrides, study), "stage1-daa1"):
        config = condition.config
        if (config.batch_size, config.learning_rate) == (batch_size, 0.001):
            return RunConfig.model_validate(config.model_dump() | changed)
    raise AssertionError(f"the study has no batch size {batch_size}")


def _seconds(action: Callable[[], Any]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def matrix_rate(precision: torch.dtype) -> float:
    """The best rate of a matrix product, over a few shapes like this network's, in FLOP/s."""
    best = 0.0
    for rows, inner, columns in ((2048, 2048, 2048), (4096, 1024, 1024), (4096, 4608, 512)):
        a = torch.randn(rows, inner).to(precision)
        b = torch.randn(inner, columns).to(precision)
        fastest = min(_seconds(lambda a=a, b=b: a @ b) for _ in range(8))
        best = max(best, 2 * rows * inner * columns / fastest)
    return best


# ---------------------------------------------------------------------------------------------
# The paper's way
# ---------------------------------------------------------------------------------------------


class _Pictures(Dataset):
    """PIL images and their transform, as torchvision's data sets have them."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, transform: Any):
        self.pictures = [Image.fromarray(image.transpose(1, 2, 0)) for image in images]
        self.labels = labels.tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pictures[index]), self.labels[index]


class PaperLoop:
    """Training as the paper's listings have it: PIL images, a DataLoader with two workers, fp32.

    The workers live on between epochs, which the listings' do not: to the loop's advantage.
    """

    def __init__(self, config: RunConfig, inputs: Inputs):
        transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(inputs.mean, inputs.std),
            ]
        )
        self.loaders = {}
        for name in SPLITS:
            images = getattr(inputs, name)
            pictures = _Pictures(images.images.numpy(), images.labels.numpy(), transform)
            self.loaders[name] = DataLoader(
                pictures,
                config.batch_size,
                shuffle=name == "train",
                num_workers=2,
                persistent_workers=True,
            )
        self.model = build_model(config.model, config.dropout, config.seed)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), config.learning_rate, weight_decay=config.weight_decay
        )

    def train_epoch(self) -> None:
        """One epoch of steps."""
        self.model.train()
        for images, labels in self.loaders["train"]:
            self.optimizer.zero_grad()
            nn.functional.cross_entropy(self.model(images), labels).backward()
            self.optimizer.step()

    @torch.no_grad()
    def evaluate(self) -> None:
        """Count what is right in all three sets, as the listings do after each epoch."""
        self.model.eval()
        for loader in self.loaders.values():
            sum((self.model(images).argmax(1) == labels).sum() for images, labels in loader)


# ---------------------------------------------------------------------------------------------
# Throughput
# ---------------------------------------------------------------------------------------------


def measure_throughput(name: str, images: int, repeats: int) -> dict[str, Any]:
    """The paper's way beside ours at each batch size, and the machine's matrix products."""
    flops = count_flops(build_model(_configuration(name, 900, 64).model, 0.0, 0), 32)
    rows, products = {}, {"bf16": 0.0, "fp32": 0.0}
    for batch_size in BATCH_SIZES:
        row = rows[str(batch_size)] = _throughput(name, images, batch_size, repeats, products)
        ours, eager = row["ours"], row["eager_fp32"]["evaluation_images_per_s"]
        row["epoch_ratio"] = row["paper"]["epoch_s"] / ours["epoch_s"]
        row["train_flops"] = 3 * flops * ours["train_images_per_s"]
        row["eval_ratio"] = ours["evaluation_images_per_s"] / eager
    for row in rows.values():  # beside the best product of the whole call
        row["train_gemm_fraction"] = row["train_flops"] / products["bf16"]
    return {
        "images": images,
        "repeats": repeats,
        "forward_flops": flops,
        "matrix_flops": products,
        "batch_sizes": rows,
        **{name: {s: row.pop(name) for s, row in rows.items()} for name in RATIOS},
    }


def _throughput(
    name: str, images: int, batch_size: int, repeats: int, products: dict[str, float]
) -> dict[str, Any]:
    """Both loops in turns, after a round that does not count; ``products`` gets the best rates."""
    config = _configuration(name, images, batch_size)
    inputs = load_inputs(config, CPU)
    paper, ours = PaperLoop(config, inputs), Run(config, inputs, CPU)
    eager = Run(_configuration(name, images, batch_size, precision="fp32"), inputs, CPU)
    ours.measure(epoch=0)
    times: dict[str, list[float]] = {}
    memory: dict[str, float] = {}

    def clock(key: str, action: Callable[[], Any]) -> None:
        times.setdefault(key, []).append(_seconds(action))

    for round_ in range(repeats + 1):
        with _peak_memory(memory, "paper"):
            clock("paper train", paper.train_epoch)
            clock("paper evaluation", paper.evaluate)
        with _peak_memory(memory, "ours"):
            clock("ours train", lambda: ours.train_epoch(ours.epoch + 1, None))
            clock("ours evaluation", lambda: ours.measure(ours.epoch + 1))
        clock("ours data", lambda: [None for _ in ours.feed.training(1)])
        clock("eager evaluation", lambda: eager.measure(eager.epoch + 1))
        for key, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            products[key] = max(products[key], matrix_rate(kind))
        if not round_:
            times = {}  # first steps are slower
    middle = {key: statistics.median(values) for key, values in times.items()}
    evaluated = sum(len(getattr(inputs, split)) for split in SPLITS)
    result: dict[str, Any] = {
        key: {
            "train_images_per_s": images / middle[f"{key} train"],
            "evaluation_images_per_s": evaluated / middle[f"{key} evaluation"],
            "epoch_s": (middle[f"{key} train"] + middle[f"{key} evaluation"])
            * (EPOCH_IMAGES / images),
            "peak_memory_mb": memory.get(key),
        }
        for key in ("paper", "ours")
    }
    result["eager_fp32"] = {"evaluation_images_per_s": evaluated / middle["eager evaluation"]}
    result["data_share"] = middle["ours data"] / middle["ours train"]
    return result


@contextmanager
def _peak_memory(found: dict[str, float], key: str) -> Iterator[None]:
    """The largest resident size of this process meanwhile, in MB; only where Linux tells it."""
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        yield
        return
    yield
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            found[key] = max(found.get(key, 0.0), int(line.split()[1]) / 1000)


# ---------------------------------------------------------------------------------------------
# What each choice is worth
# ---------------------------------------------------------------------------------------------


def _as_it_is(run: Run) -> None:
    pass


def _onednn_convolutions(run: Run) -> None:
    for module in run.model.modules():
        if type(module) is Convolution:
            module.__class__ = nn.Conv2d


def _channels_first(run: Run) -> None:
    _onednn_convolutions(run)  # matrix products are made for channels last
    run.model.to(memory_format=torch.contiguous_format)
    run.feed.channels_last = False


def _plain_optimizer(run: Run) -> None:
    run.optimizer = torch.optim.AdamW(run.model.parameters(), lr=0.001, weight_decay=0.001)


def _compiled(run: Run) -> None:
    run.model.compile()


VARIANTS: dict[str, tuple[str, Callable[[Run], None]]] = {
    "ours": ("bf16", _as_it_is),
    "oneDNN's convolutions": ("bf16", _onednn_convolutions),
    "oneDNN's convolutions, channels first": ("bf16", _channels_first),
    "plain optimiser": ("bf16", _plain_optimizer),
    "fp32": ("fp32", _as_it_is),
    "torch.compile": ("bf16", _compiled),
}

KEPT = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


def measure_variants(name: str, images: int, repeats: int) -> dict[str, Any]:
    """Training rates at batch size 64 with one choice changed at a time, measured in turns."""
    runs, start = {}, {}
    for title, (precision, change) in VARIANTS.items():
        config = _configuration(name, images, VARIANT_BATCH, precision=precision)
        run = Run(config, load_inputs(config, CPU), CPU)
        run.measure(0)  # no step without it: the rate may follow validation accuracy
        change(run)
        try:
            start[title] = _seconds(lambda run=run: run.train_epoch(1, None))
        except Exception as error:  # torch.compile where there is no C++ compiler, for one
            print(f"cifarlib: {title} is left out: {type(error).__name__}", file=sys.stderr)
            continue
        runs[title] = run
    times: dict[str, list[float]] = {title: [] for title in runs}
    for _ in range(repeats):
        for title, run in runs.items():
            times[title].append(_seconds(lambda run=run: run.train_epoch(1, None)))
    rates = {title: images / statistics.median(values) for title, values in times.items()}
    config = _configuration(name, images, VARIANT_BATCH)
    processes = {
        "one process, all threads": _together(config, 1, cores(), {}),
        "one process a core": _together(config, cores(), 1, {}),
        "one process a core, freed memory kept": _together(config, cores(), 1, KEPT),
    }
    return {
        "batch_size": VARIANT_BATCH,
        "images": images,
        "repeats": repeats,
        "train_images_per_s": rates,
        "first_epoch_s": start,
        "processes_images_per_s": processes,
    }


def _together(
    config: RunConfig, processes: int, threads: int, environment: Mapping[str, str]
) -> float:
    """Images per second of several processes that train the same configuration side by side."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    before = dict(os.environ)
    os.environ.update(environment, OMP_WAIT_POLICY="PASSIVE")
    try:
        with context.Pool(processes, _enter, (barrier,)) as pool:
            rates = pool.starmap(_train_alone, [(config, threads)] * processes, chunksize=1)
    finally:
        os.environ.clear()
        os.environ.update(before)
    return sum(rates)


def _enter(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _train_alone(config: RunConfig, threads: int) -> float:
    torch.set_num_threads(threads)
    run = Run(config, load_inputs(config, CPU), CPU)
    run.measure(0)
    run.train_epoch(1, None)
    _barrier.wait()
    return config.data.train_size / _seconds(lambda: run.train_epoch(1, None))


# ---------------------------------------------------------------------------------------------
# Sweeps, imports
# ---------------------------------------------------------------------------------------------


def measure_sweep() -> dict[str, Any]:
    """What a sweep costs beyond its runs: 36 runs of scale smoke; and what imports cost."""
    command = [sys.executable, "-m", "cifarlib.cli", "sweep", "--device", "cpu", "--out"]
    with tempfile.TemporaryDirectory(prefix="cifarlib-bench-") as folder:
        for stage in ("stage1-long", "stage1-base"):  # the first describes the data, too
            call = [*command, folder, "--stage", stage]
            wall = _seconds(lambda call=call: subprocess.run(call, check=True, stderr=-3))
        results = open_results("smoke", (), folder)
        records = [results.record(c) for c in results.select("stage1-base")]
    timings = [record.timing for record in records if record]
    work = sum(t.train_s + t.evaluation_s for t in timings)
    workers = cores()
    return {
        "runs": len(timings),
        "workers": workers,
        "wall_s": wall,
        "runs_s": work,
        "overhead": wall * workers / work - 1,
        "import_s": {name: _import(name) for name in ("cifarlib", "cifarlib.cli")},
    }


def _import(module: str) -> float:
    program = f"from time import perf_counter as t; s = t(); import {module}; print(t() - s)"
    calls = [
        subprocess.run([sys.executable, "-c", program], capture_output=True, check=True, text=True)
        for _ in range(5)
    ]
    return statistics.median(float(call.stdout) for call in calls)


# ---------------------------------------------------------------------------------------------
# What bfloat16 does to accuracy
# ---------------------------------------------------------------------------------------------


def measure_precision(name: str, seeds: tuple[int, ...] = (1, 2, 3, 4, 5)) -> dict[str, Any]:
    """Test accuracy after the last epoch in fp32 and in bf16, seed by seed, reduced budget."""
    images = 2700
    accuracies: dict[str, list[float]] = {"fp32": [], "bf16": []}
    for seed in seeds:
        for precision, values in accuracies.items():
            config = _configuration(
                name,
                images,
                VARIANT_BATCH,
                precision=precision,
                seed=seed,
                epochs=6,
                evaluation={"train_every": 0, "test_every": 1},
            )
            test = fit(config, load_inputs(config, CPU), CPU).result.history.test
            values.append(100 * (test.top1[config.epochs] or 0) / test.images)
    differences = np.subtract(accuracies["bf16"], accuracies["fp32"])
    paired = stats.ttest_rel(accuracies["bf16"], accuracies["fp32"])
    low, high = paired.confidence_interval(0.95)
    return {
        "seeds": list(seeds),
        "train_images": images,
        "epochs": 6,
        "test_top1": accuracies,
        "difference": float(differences.mean()),
        "interval": [float(low), float(high)],
        "p_value": float(paired.pvalue),
    }
