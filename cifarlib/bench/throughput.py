"""How fast it is, measured: a paper-style training loop beside ours, in one process, in turns.

``measure`` gives plain values, ready for JSON. Every ratio is taken within one call, on one
machine; rates are images per second, times seconds, arithmetic FLOP per second.
"""

import functools
import logging
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader
from torchvision import transforms

from cifarlib import data
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
from cifarlib.training import Inputs, Run

PARTS = ("throughput", "variants", "sweep")
BATCH_SIZES = (32, 64, 256)
VARIANT_BATCH = 64
EPOCH_IMAGES = 45_000  # trained in an epoch of the study; 60,000 are evaluated
CPU = torch.device("cpu")

logger = logging.getLogger(__name__)


def measure(part: str, images: int, repeats: int) -> dict[str, Any]:
    """Measure one of the ``PARTS`` on the processor, and say where and when.

    ``images`` are trained in each measurement, of ``repeats`` the median counts; the study's
    proportions of training, validation and test images are kept. On CIFAR-10 where it is found,
    else on the stand-in set. Raises ``ConfigError`` for a part that there is not.
    """
    if part not in PARTS:
        raise ConfigError(f"there is no part {part!r}; {suggest(part, PARTS)}")
    try:
        data.find(name := "cifar10")
    except DataError:
        name = "synthetic"
    torch.set_num_threads(cores())
    match part:
        case "throughput":
            found = measure_throughput(name, images, repeats)
        case "variants":
            whole_batches = images // 2 // VARIANT_BATCH * VARIANT_BATCH
            found = measure_variants(name, whole_batches, repeats)
        case _:
            found = measure_sweep()
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


def make_config(name: str, images: int, batch_size: int, **changed: Any) -> RunConfig:
    """AdamW, learning rate and L2 0.001, DAA-1, as at scale full but for the number of images."""
    sizes = {"train_size": images, "validation_size": images // 9, "test_size": 2 * images // 9}
    overrides = [f"data.name={name}", *(f"data.{key}={value}" for key, value in sizes.items())]
    study = load_study()
    config = next(
        condition.config
        for condition in expand(study, load_scale("full", overrides, study), "stage1-daa1")
        if condition.config.batch_size == batch_size and condition.config.learning_rate == 0.001
    )
    return RunConfig.model_validate(config.model_dump() | changed)


def _start(config: RunConfig) -> Run:
    return Run(config, load_inputs(config, CPU), CPU)


def _seconds(action: Callable[..., Any], *arguments: Any) -> float:
    started = time.perf_counter()
    action(*arguments)
    return time.perf_counter() - started


def matrix_rate(precision: torch.dtype) -> float:
    """The best rate of a matrix product, over a few shapes like this network's, in FLOP/s."""
    best = 0.0
    for rows, inner, columns in ((2048, 2048, 2048), (4096, 1024, 1024), (4096, 4608, 512)):
        a, b = torch.randn(rows, inner).to(precision), torch.randn(inner, columns).to(precision)
        fastest = min(_seconds(torch.matmul, a, b) for _ in range(8))
        best = max(best, 2 * rows * inner * columns / fastest)
    return best


def _collate(transform: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    pictures, labels = zip(*batch, strict=True)
    return torch.stack([transform(picture) for picture in pictures]), torch.tensor(labels)


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
        self.loaders: dict[str, Any] = {}
        for name in SPLITS:
            images = getattr(inputs, name)
            arrays = images.images.numpy().transpose(0, 2, 3, 1)
            pairs: Any = [*zip(map(Image.fromarray, arrays), images.labels.tolist(), strict=True)]
            self.loaders[name] = DataLoader(
                pairs,
                config.batch_size,
                shuffle=name == "train",
                num_workers=2,
                collate_fn=functools.partial(_collate, transform),
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


def measure_throughput(name: str, images: int, repeats: int) -> dict[str, Any]:
    """The paper's way beside ours at each batch size, and the machine's matrix products."""
    flops = count_flops(build_model(make_config(name, 900, 64).model, 0.0, 0), 32)
    products = {"bf16": 0.0, "fp32": 0.0}
    rows = [
        {"batch_size": size, "gflops": 3e-9 * flops * row["train_images_per_s"]} | row
        for size in BATCH_SIZES
        for row in _throughput(name, images, size, repeats, products)
    ]
    for ours in rows[1::2]:  # beside the best product of the whole call
        ours["train_gemm_fraction"] = 1e9 * ours["gflops"] / products["bf16"]
    return {"images": images, "repeats": repeats, "matrix_flops": products, "rows": rows}


def _throughput(
    name: str, images: int, batch_size: int, repeats: int, products: dict[str, float]
) -> list[dict[str, Any]]:
    """Both loops in turns, after a round that does not count; ``products`` gets the best rates."""
    config = make_config(name, images, batch_size)
    inputs = load_inputs(config, CPU)
    paper, ours = PaperLoop(config, inputs), Run(config, inputs, CPU)
    eager = _start(make_config(name, images, batch_size, precision="fp32"))
    ours.measure(epoch=0)
    rounds, memory = [], {"paper": 0.0, "ours": 0.0}
    for epoch in range(1, repeats + 2):
        times: dict[str, float] = {}
        _forget_peak()
        times["paper train"] = _seconds(paper.train_epoch)
        times["paper evaluation"] = _seconds(paper.evaluate)
        memory["paper"] = max(memory["paper"], _forget_peak())
        times["ours train"] = _seconds(ours.train_epoch, epoch, None)
        times["ours evaluation"] = _seconds(ours.measure, epoch)
        memory["ours"] = max(memory["ours"], _forget_peak())
        times["eager evaluation"] = _seconds(eager.measure, epoch - 1)
        for key, kind in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
            products[key] = max(products[key], matrix_rate(kind))
        rounds.append(times)
    counted = rounds[1:]  # first steps are slower
    middle = {key: statistics.median(times[key] for times in counted) for key in counted[0]}
    evaluated = sum(len(getattr(inputs, split)) for split in SPLITS)
    rows: list[dict[str, Any]] = []
    for way, peak in memory.items():
        train, evaluation = middle[f"{way} train"], middle[f"{way} evaluation"]
        rates = {
            "train_images_per_s": images / train,
            "evaluation_images_per_s": evaluated / evaluation,
            "epoch_s": (train + evaluation) * (EPOCH_IMAGES / images),
        } | ({"peak_memory_mb": peak} if peak else {})
        rows.append({"way": way, "epoch_ratio": 1.0} | rates)
    rows[1]["epoch_ratio"] = rows[0]["epoch_s"] / rows[1]["epoch_s"]
    rows[1]["eval_ratio"] = middle["eager evaluation"] / middle["ours evaluation"]
    return rows


def _forget_peak() -> float:
    """The largest resident size of this process since the last call, in MB; 0 outside Linux."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    except OSError:
        return 0.0
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def _onednn_convolutions(run: Run) -> None:
    for module in run.model.modules():
        if type(module) is Convolution:
            module.__class__ = nn.Conv2d  # type: ignore[assignment]


def _channels_first(run: Run) -> None:
    _onednn_convolutions(run)  # matrix products are made for channels last
    run.model.to(memory_format=torch.contiguous_format)
    run.feed.channels_last = False


def _plain_optimizer(run: Run) -> None:
    run.optimizer = torch.optim.AdamW(run.model.parameters(), lr=0.001, weight_decay=0.001)


VARIANTS: dict[str, tuple[str, Callable[[Run], object]]] = {
    "ours": ("bf16", lambda run: None),
    "oneDNN's convolutions": ("bf16", _onednn_convolutions),
    "oneDNN's convolutions, channels first": ("bf16", _channels_first),
    "plain optimiser": ("bf16", _plain_optimizer),
    "fp32": ("fp32", lambda run: None),
    "torch.compile": ("bf16", lambda run: run.model.compile()),
}

KEPT = {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "8589934592"}


def measure_variants(name: str, images: int, repeats: int) -> dict[str, Any]:
    """Training rates at batch size 64 with one choice changed at a time, measured in turns."""
    runs, start = {}, {}
    for title, (precision, change) in VARIANTS.items():
        run = _start(make_config(name, images, VARIANT_BATCH, precision=precision))
        run.measure(0)  # no step without it: the rate may follow validation accuracy
        change(run)
        try:
            start[title] = _seconds(run.train_epoch, 1, None)
        except Exception as error:  # torch.compile where there is no C++ compiler, for one
            logger.warning("%s is left out: %s", title, type(error).__name__)
            continue
        runs[title] = run
    times = [
        {title: _seconds(run.train_epoch, 1, None) for title, run in runs.items()}
        for _ in range(repeats)
    ]
    config = make_config(name, images, VARIANT_BATCH)
    rates = {t: images / statistics.median(one[t] for one in times) for t in runs}
    together = {
        "one process, all threads": _together(config, 1, cores(), {}),
        "one process a core": _together(config, cores(), 1, {}),
        "one process a core, freed memory kept": _together(config, cores(), 1, KEPT),
    }
    rows = [
        {
            "choice": choice,
            "train_images_per_s": rate,
            "rate_ratio": rate / next(iter(group.values())),
            "first_epoch_s": start.get(choice),
        }
        for group in (rates, together)
        for choice, rate in group.items()
    ]
    return {"batch_size": VARIANT_BATCH, "images": images, "repeats": repeats, "rows": rows}


def _together(
    config: RunConfig, processes: int, threads: int, environment: Mapping[str, str]
) -> float:
    """Images per second of several processes that train the same configuration side by side."""
    context = multiprocessing.get_context("spawn")
    changed = {**environment, "OMP_WAIT_POLICY": "PASSIVE"}
    with (
        mock.patch.dict(os.environ, changed),
        context.Pool(processes, _enter, (context.Barrier(processes),)) as pool,
    ):
        return sum(pool.starmap(_train_alone, [(config, threads)] * processes, chunksize=1))


_barrier: Any = None  # of the processes that train side by side


def _enter(barrier: Any) -> None:
    global _barrier
    _barrier = barrier


def _train_alone(config: RunConfig, threads: int) -> float:
    torch.set_num_threads(threads)
    run = _start(config)
    run.measure(0)
    run.train_epoch(1, None)
    _barrier.wait()
    return config.data.train_size / _seconds(run.train_epoch, 1, None)


def measure_sweep() -> dict[str, Any]:
    """What a sweep costs beyond its runs: 36 runs of scale smoke."""
    command = [sys.executable, "-m", "cifarlib", "sweep", "--device", "cpu", "--out"]
    with tempfile.TemporaryDirectory(prefix="cifarlib-bench-") as folder:
        run = functools.partial(subprocess.run, check=True, stderr=subprocess.DEVNULL)
        for stage in ("stage1-long", "stage1-base"):  # the first describes the data, too
            wall = _seconds(run, [*command, folder, "--stage", stage])
        results = open_results("smoke", (), folder)
        records = [results.records[c.run_id] for c in results.select("stage1-base")]
    work = sum(record.timing.train_s + record.timing.evaluation_s for record in records)
    overhead = wall * cores() / work - 1
    row = {"runs": len(records), "workers": cores(), "wall_s": wall, "runs_s": work}
    return {"rows": [row | {"overhead": overhead}]}
