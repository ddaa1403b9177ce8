"""What the study costs: the committed measurements of speed, and the times in the records."""

import hashlib
import heapq
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from cifarlib import paths
from cifarlib.checking import parse_json, read_bytes
from cifarlib.config import RunConfig
from cifarlib.errors import ConfigError
from cifarlib.progress import duration, status, work
from cifarlib.provenance import name_commit
from cifarlib.records import Results, RunRecord, write_atomically
from cifarlib.study import expand, load_scale

RATIOS = ("epoch_ratio", "train_gemm_fraction", "eval_ratio")
"""At the top of the file, by batch size: epoch time paper-style / ours, training arithmetic /
best bf16 matrix product, evaluation rate ours / fp32 eager."""

DEVICES = ("cpu", "cuda")
DIGEST = "sha256"  # of the rest of the file, at its top

Bench = Mapping[str, Any]


def read_bench(device: str = "cpu", folder: Path = paths.BENCH) -> Bench:
    """The latest measurements of speed, by part; empty where there are none.

    Raises ``ConfigError`` for a damaged file.
    """
    path = folder / f"{device}.json"
    try:
        content = parse_json(read_bytes(path))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} cannot be read as JSON; make it again: cifarlib bench"
        ) from error
    if not isinstance(content, dict) or DIGEST not in content:
        raise ConfigError(f"{path} holds no measurements; make it again: cifarlib bench")
    if content.pop(DIGEST) != _digest(content):
        raise ConfigError(f"{path} is not as it was written; make it again: cifarlib bench")
    return content


def _digest(content: Bench) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def write_bench(parts: Bench, device: str = "cpu", folder: Path = paths.BENCH) -> list[Path]:
    """Put new measurements beside the other parts of a folder's: JSON, and Markdown to read."""
    content = {**read_bench(device, folder), **parts}
    if "throughput" in parts:
        throughput = dict(parts["throughput"])
        ratios = {name: throughput.pop(name) for name in RATIOS if name in throughput}
        content = ratios | content | ratios | {"throughput": throughput}
    content = _rounded(content)
    written = [folder / f"{device}.json", folder / f"{device}.md"]
    whole = {DIGEST: _digest(content)} | content
    write_atomically(written[0], (json.dumps(whole, indent=1) + "\n").encode())
    write_atomically(written[1], _markdown(content, device).encode())
    return written


def _rounded(value: Any) -> Any:
    """Measured values to five digits, for no clock is better; keys as JSON has them."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {str(key): _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return value


# ---------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------


THROUGHPUT = {
    "Batch": "int",
    "Way": "str",
    "Training, images/s": "float",
    "Evaluation, images/s": "float",
    "Epoch, s": "float",
    "Memory, MB": "float",
    "GFLOP/s": "float",
    "Epoch ratio": "float",
    "Share of matrix rate": "float",
    "Evaluation / fp32": "float",
}
VARIANTS = ("Choice", "Training, images/s", "Beside ours", "First epoch, s")


def tabulate_throughput(bench: Bench) -> pd.DataFrame:
    """The paper's way of training beside ours; a row for each batch size and way."""
    part = bench.get("throughput", {})
    rows = []
    for size, row in part.get("batch_sizes", {}).items():
        for way, title in (("paper", "as the paper's listings"), ("ours", "ours")):
            ours = way == "ours"
            rates = row[way]
            ratios = [bench[name][size] if ours else None for name in RATIOS]
            values = [
                int(size),
                title,
                rates["train_images_per_s"],
                rates["evaluation_images_per_s"],
                rates["epoch_s"],
                rates["peak_memory_mb"],
                3e-9 * part["forward_flops"] * rates["train_images_per_s"],
                ratios[0] or 1.0,
                *ratios[1:],
            ]
            rows.append(dict(zip(THROUGHPUT, values, strict=True)))
    return _say_absent(pd.DataFrame(rows, columns=list(THROUGHPUT)).astype(THROUGHPUT))


def tabulate_variants(bench: Bench) -> pd.DataFrame:
    """What each choice is worth: training rates with one choice changed."""
    part = bench.get("variants", {})
    rates = part.get("train_images_per_s", {})
    rows = [
        {
            "Choice": title,
            "Training, images/s": rate,
            "Beside ours": rate / rates["ours"],
            "First epoch, s": part["first_epoch_s"][title],
        }
        for title, rate in rates.items()
    ]
    processes = part.get("processes_images_per_s", {})
    first = next(iter(processes.values()), 1.0)
    rows += [
        {"Choice": title, "Training, images/s": rate, "Beside ours": rate / first}
        for title, rate in processes.items()
    ]
    return _say_absent(pd.DataFrame(rows, columns=list(VARIANTS)))


def _say_absent(frame: pd.DataFrame) -> pd.DataFrame:
    """A dash where a row has no such value, lest it be taken for a pending one."""
    return frame.astype(object).where(frame.notna(), "–")


def tabulate_precision(bench: Bench) -> pd.DataFrame:
    """Test accuracy in fp32 and bf16, in %, seed by seed, and the difference."""
    part = bench.get("precision", {})
    columns = part.get("test_top1", {"fp32": [], "bf16": []})
    frame = pd.DataFrame({"Seed": part.get("seeds", []), **columns})
    return frame.assign(**{"bf16 − fp32": frame["bf16"] - frame["fp32"]})


def tabulate_costs(results: Results) -> pd.DataFrame:
    """What each stage has cost here, and what is left of it; a row for each stage."""
    rows = []
    for row in status(results.conditions, results.store):
        records = {
            r.run_id: r for c in results.select(row.stage) if (r := results.record(c)) is not None
        }
        timings = [record.timing for record in records.values()]
        training, evaluation = (
            sum(getattr(timing, field) for timing in timings)
            for field in ("train_s", "evaluation_s")
        )
        rows.append(
            {
                "Stage": results.study.stages[row.stage].title,
                "Runs": row.conditions,
                "Done": row.done,
                "Images/s": median(t.images_per_s for t in timings) if timings else None,
                "Training": duration(training) if timings else None,
                "Evaluation": duration(evaluation) if timings else None,
                "Left": f"about {duration(row.seconds_left)}" if row.seconds_left else "–",
            }
        )
    return pd.DataFrame(rows).astype({"Images/s": float})


MACHINES = (1, 8, 64)


def tabulate_machines(results: Results) -> pd.DataFrame:
    """What the study at full scale would cost, by the rates in the records; a row for each kind.

    A machine is a card, or as many threads of a processor as a run's record tells. A card takes as
    many runs side by side as it did when it was recorded, each as slow as it was then. Every
    condition of the study is priced by its arithmetic (``progress.work``), early stopping aside,
    and taken longest first by whatever is free. Where no run on a GPU is recorded, its row is
    pending.
    """
    configs = {c.run_id: c.config for c in expand(results.study, load_scale("full"))}
    kinds: dict[str, list[RunRecord]] = {}
    for record in results.every_record.values():
        if record.seconds > 0:
            kinds.setdefault(_name_machine(record), []).append(record)
    rows = []
    for name, records in sorted(kinds.items()):
        price = _Rates(records)
        seconds = [price.seconds(config) for config in configs.values()]
        rows.append(
            {
                "Machine": name,
                "Rates from": price.basis(configs.values()),
                "Images/s": median(record.timing.images_per_s for record in records),
                "Longest run": duration(max(seconds)),
                **{
                    f"On {count}": duration(makespan(seconds, count * price.lanes))
                    for count in MACHINES
                },
            }
        )
    on_gpu = any(r.provenance.device_class == "cuda" for r in results.every_record.values())
    if not on_gpu:
        rows.append({"Machine": "GPU", "Rates from": NO_GPU})
    if not kinds:
        rows.append({"Machine": "processor", "Rates from": NO_RUN})
    columns = ["Machine", "Rates from", "Images/s", "Longest run", *(f"On {n}" for n in MACHINES)]
    return pd.DataFrame(rows, columns=columns).astype({"Images/s": float})


NO_GPU = "pending: no run on a GPU is recorded"
NO_RUN = "pending: no run is recorded"


def _name_machine(record: RunRecord) -> str:
    origin = record.provenance
    if origin.device_class == "cuda":
        return origin.device
    return f"{origin.device}, {origin.threads} thread{'' if origin.threads == 1 else 's'}"


class _Rates:
    """GFLOP/s of one run on a machine, by network and precision, from its records."""

    def __init__(self, records: Sequence[RunRecord]):
        self.runs = len(records)
        known: dict[tuple[str, str], list[float]] = {}
        for record in records:
            config = record.config
            share = record.result.history.epochs / config.epochs
            rate = work(config) * share / record.seconds
            known.setdefault((config.model.name, config.precision), []).append(rate)
        self.known = {kind: median(rates) for kind, rates in known.items()}
        lanes = [r.provenance.lanes for r in records if r.provenance.device_class == "cuda"]
        self.lanes = round(median(lanes)) if lanes else 1

    def seconds(self, config: RunConfig) -> float:
        """Of one run; a network that was not recorded is taken for a usual one."""
        rate = self.known.get((config.model.name, config.precision))
        return work(config) / (rate or median(self.known.values()))

    def basis(self, configs: Iterable[RunConfig]) -> str:
        """How many records the rates come from, and which networks they do not tell of."""
        kinds = {(config.model.name, config.precision) for config in configs}
        lacking = sorted(f"{model} in {precision}" for model, precision in kinds - set(self.known))
        told = f"{self.runs} run{'' if self.runs == 1 else 's'}"
        if self.lanes > 1:
            told += f", {self.lanes} at once"
        return f"{told}; {', '.join(lacking)} as the others" if lacking else told


def makespan(seconds: Iterable[float], machines: int) -> float:
    """When the last of some runs ends: longest first, each on the machine that is free first."""
    busy = [0.0] * machines
    for run in sorted(seconds, reverse=True):
        heapq.heapreplace(busy, busy[0] + run)
    return max(busy)


def describe_bench(bench: Bench, part: str) -> str:
    """Where and when a part was measured."""
    found = bench.get(part)
    if not found:
        return "Not measured yet: make bench."
    versions = found["versions"]
    return (
        f"Measured {found['measured'][:10]} on {found['cores']} cores ({found['processor']}), "
        f"torch {versions.get('torch', '?')}, data {found['data']}, "
        f"{name_commit(found['commit'], found['dirty'])}."
    )


def describe_precision(bench: Bench) -> str:
    """The difference that bf16 makes, with its interval, in a sentence."""
    part = bench.get("precision")
    if not part:
        return ""
    low, high = part["interval"]
    verdict = "no difference can be told" if low <= 0 <= high else "a difference is told"
    return (
        f"Mean difference over {len(part['seeds'])} seeds {_signed(part['difference'])} points, "
        f"95 % interval {_signed(low)} to {_signed(high)} (paired t): {verdict}. "
        f"{part['train_images']:,} training images, {part['epochs']} epochs, AdamW, learning rate "
        "and L2 0.001, batch 64, DAA-1."
    )


def _signed(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def describe_sweep(bench: Bench) -> str:
    """What a sweep and an import cost, in a sentence."""
    part = bench.get("sweep")
    if not part:
        return ""
    return (
        f"A sweep of {part['runs']} small runs took {part['wall_s']:.0f} s with {part['workers']} "
        f"workers, {100 * part['overhead']:.1f} % more than its runs; import cifarlib takes "
        f"{1000 * part['import_s']['cifarlib']:.0f} ms."
    )


GPU_COLUMNS = {
    "way": "Way",
    "batch_size": "Batch",
    "runs": "At once",
    "images_per_s": "Images/s",
    "tflops": "TFLOP/s",
    "left_out": "Left out",
    "failed": "Failed",
}
TARGET = 2.0
"""How many times the rate of the best plain processes concurrent runs must reach to be kept."""


def tabulate_gpu(bench: Bench) -> pd.DataFrame:
    """Training rates on a GPU: runs as a sweep trains them, and ordinary training loops."""
    rows = [row for row in _gpu_rows(bench) if "runs" in row]
    frame = pd.DataFrame(rows).reindex(columns=list(GPU_COLUMNS)).rename(columns=GPU_COLUMNS)
    return frame.dropna(axis="columns", how="all")


def tabulate_step(bench: Bench) -> pd.DataFrame:
    """The kernels that take most of a training step's time on a GPU."""
    kernels = [kernel for row in _gpu_rows(bench) for kernel in row.get("kernels", [])]
    return pd.DataFrame(kernels, columns=["Kernel", "µs", "Launches"])


def describe_gpu(bench: Bench) -> str:
    """Whether concurrent runs in one process are worth their code; what the update takes."""
    told = []
    rates = [r for r in _gpu_rows(bench) if "images_per_s" in r and r["batch_size"] == 64]
    plain = [row for row in rates if row["way"].startswith("plain")]
    ours = [row for row in rates if row["way"] == "graph"]
    if plain and ours:
        best, rival = (max(rows, key=lambda row: row["images_per_s"]) for rows in (ours, plain))
        ratio = best["images_per_s"] / rival["images_per_s"]
        told.append(
            f"At batch size 64, {best['runs']} runs at once train {ratio:.2f} times as many "
            f"images/s as the best plain processes ({rival['way'].removeprefix('plain ')}, "
            f"{rival['runs']} at once); they must reach {TARGET:g} times as many to be kept."
        )
    told += [
        f"AdamW's update takes {row['fused_us']:.0f} µs by fused kernels, "
        f"{row['foreach_us']:.0f} µs by torch's for-each ones."
        for row in _gpu_rows(bench)
        if "fused_us" in row
    ]
    return " ".join(told)


def _gpu_rows(bench: Bench) -> list[dict[str, Any]]:
    return bench.get("throughput", {}).get("rows", [])


def _markdown(bench: Bench, device: str) -> str:
    """The same tables, to be read where there is no report."""
    where = describe_bench(bench, "throughput")
    throughput = [("Throughput", tabulate_throughput(bench), where)]
    if device == "cuda":
        throughput = [
            ("Throughput", tabulate_gpu(bench), f"{describe_gpu(bench)} {where}"),
            ("A step at batch size 64", tabulate_step(bench), where),
        ]
    sections = [
        *throughput,
        ("What each choice is worth", tabulate_variants(bench), describe_bench(bench, "variants")),
        ("bf16 and accuracy", tabulate_precision(bench), describe_precision(bench)),
    ]
    text = [f"# Measured on {device}", "", "Made by `cifarlib bench`."]
    for title, frame, note in sections:
        if len(frame):
            text += ["", f"## {title}", "", _pipes(frame), "", note]
    if sweep := describe_sweep(bench):
        text += ["", "## Sweeps", "", sweep]
    return "\n".join(text) + "\n"


def _pipes(frame: pd.DataFrame) -> str:
    def cell(value: Any) -> str:
        if pd.isna(value):
            return "–"
        if isinstance(value, float):
            return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
        return str(value)

    rows = [list(map(str, frame.columns)), ["---"] * frame.shape[1]]
    rows += [[cell(v) for v in row] for row in frame.itertuples(index=False, name=None)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
