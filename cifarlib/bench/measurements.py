"""Measurements of speed, by ``cifarlib bench``: written, read, and as tidy frames."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarlib import paths
from cifarlib.checking import parse_json, read_bytes
from cifarlib.errors import ConfigError
from cifarlib.runs.provenance import name_commit
from cifarlib.runs.store import write_atomically

if TYPE_CHECKING:
    import pandas as pd

RATIOS = ("epoch_ratio", "train_gemm_fraction", "eval_ratio")
"""At the top of the file, by batch size: epoch time paper-style / ours, training arithmetic /
best bf16 matrix product, evaluation rate ours / fp32 eager."""

DEVICES = ("cpu", "cuda")

Bench = Mapping[str, Any]


def read_bench(device: str = "cpu", folder: Path = paths.BENCH) -> Bench:
    """The latest measurements of speed, by part; empty where there are none.

    Raises ``ConfigError`` for a file that is no JSON object.
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
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds no measurements; make it again: cifarlib bench")
    return content


def write_bench(parts: Bench, device: str = "cpu", folder: Path = paths.BENCH) -> list[Path]:
    """Put new measurements beside the other parts of a folder's: JSON, and Markdown to read."""
    content = {**read_bench(device, folder), **parts}
    if "throughput" in parts:
        throughput = dict(parts["throughput"])
        ratios = {name: throughput.pop(name) for name in RATIOS if name in throughput}
        content = ratios | content | ratios | {"throughput": throughput}
    content = _rounded(content)
    written = [folder / f"{device}.json", folder / f"{device}.md"]
    write_atomically(written[0], (json.dumps(content, indent=1) + "\n").encode())
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
# As frames
# ---------------------------------------------------------------------------------------------


def tabulate(bench: Bench, part: str) -> "pd.DataFrame":
    """A part's measurements with their unit in the column's name; empty where it lacks.

    ``throughput``: a row for each batch size and way, the paper's and ours. ``variants``: for each
    choice that differs from ours, and for processes side by side. ``precision``: for each seed.
    ``sweep``: one. ``gpu``: for each way of running, batch size and number of concurrent runs.
    ``kernels``: for each of a step on a GPU.
    """
    import pandas as pd  # here, for commands start without it

    rows, columns = _TABLES[part](bench)
    return pd.DataFrame(rows, columns=columns)


def _throughput(bench: Bench) -> tuple[list[Any], list[str]]:
    part = bench.get("throughput", {})
    rows = [
        {"batch_size": int(size), "way": way, **row[way]}
        | {"gflops": 3e-9 * part["forward_flops"] * row[way]["train_images_per_s"]}
        | ({name: bench[name][size] for name in RATIOS} if way == "ours" else {"epoch_ratio": 1.0})
        for size, row in part.get("batch_sizes", {}).items()
        for way in ("paper", "ours")
    ]
    rates = ["train_images_per_s", "evaluation_images_per_s", "epoch_s", "peak_memory_mb"]
    return rows, ["batch_size", "way", *rates, "gflops", *RATIOS]


def _variants(bench: Bench) -> tuple[list[Any], list[str]]:
    part = bench.get("variants", {})
    rows = []
    for name in ("train_images_per_s", "processes_images_per_s"):
        rates = part.get(name, {})
        first = next(iter(rates.values()), 1.0)
        times = part.get("first_epoch_s", {}) if name.startswith("train") else {}
        rows += [[choice, rate, rate / first, times.get(choice)] for choice, rate in rates.items()]
    return rows, ["choice", "train_images_per_s", "rate_ratio", "first_epoch_s"]


def _precision(bench: Bench) -> tuple[list[Any], list[str]]:
    part = bench.get("precision", {"seeds": [], "test_top1": {"fp32": [], "bf16": []}})
    pairs = zip(part["seeds"], *(part["test_top1"][name] for name in ("fp32", "bf16")), strict=True)
    rows = [[seed, fp32, bf16, bf16 - fp32] for seed, fp32, bf16 in pairs]
    return rows, ["seed", "fp32", "bf16", "difference"]


def _sweep(bench: Bench) -> tuple[list[Any], list[str]]:
    columns = ["runs", "workers", "wall_s", "runs_s", "overhead"]
    return [bench["sweep"]] if "sweep" in bench else [], columns


def _gpu(bench: Bench) -> tuple[list[Any], list[str]]:
    rows = [row for row in bench.get("throughput", {}).get("rows", []) if "runs" in row]
    columns = ["way", "batch_size", "runs", "images_per_s", "tflops", "left_out", "failed"]
    return rows, [name for name in columns if any(name in row for row in rows)] or columns[:5]


def _kernels(bench: Bench) -> tuple[list[Any], list[str]]:
    rows = bench.get("throughput", {}).get("rows", [])
    found = [kernel for row in rows for kernel in row.get("kernels", [])]
    return found, ["kernel", "us", "launches"]


_TABLES = {
    "throughput": _throughput,
    "variants": _variants,
    "precision": _precision,
    "sweep": _sweep,
    "gpu": _gpu,
    "kernels": _kernels,
}

TARGET = 2.0
"""How many times the rate of the best plain processes concurrent runs must reach to be kept."""


def describe_gpu(bench: Bench) -> str:
    """Whether concurrent runs in one process are worth their code; what the update takes."""
    measured, told = bench.get("throughput", {}).get("rows", []), []
    rates = [r for r in measured if "images_per_s" in r and r["batch_size"] == 64]
    plain = [row for row in rates if row["way"].startswith("plain")]
    ours = [row for row in rates if row["way"] == "graph"]
    if plain and ours:
        best, rival = (max(rows, key=lambda row: row["images_per_s"]) for rows in (ours, plain))
        ratio = best["images_per_s"] / rival["images_per_s"]
        told.append(
            f"At batch size 64, {best['runs']} concurrent runs train {ratio:.2f} times as many "
            f"images/s as the best plain processes ({rival['way'].removeprefix('plain ')}, "
            f"{rival['runs']} at once); they must reach {TARGET:g} times as many to be kept."
        )
    told += [
        f"AdamW's update takes {row['fused_us']:.0f} µs with fused kernels, "
        f"{row['foreach_us']:.0f} µs with torch's for-each ones."
        for row in measured
        if "fused_us" in row
    ]
    return " ".join(told)


def describe(bench: Bench, part: str) -> str:
    """Where and when a part was measured, in a sentence."""
    found = bench.get(part)
    if not found:
        return "Not measured yet: make bench."
    processor = found.get("device", found["processor"])
    return (
        f"Measured {found['measured'][:10]} on {found['cores']} cores ({processor}), "
        f"torch {found['versions'].get('torch', '?')}, data {found['data']}, "
        f"{name_commit(found['commit'], found['dirty'])}."
    )


# ---------------------------------------------------------------------------------------------
# As Markdown
# ---------------------------------------------------------------------------------------------

_TITLES = {
    "throughput": "Throughput: the paper's way beside ours",
    "gpu": "Throughput",
    "kernels": "A step at batch size 64, the longest kernels",
    "variants": "One choice changed",
    "precision": "Test accuracy by precision, %",
    "sweep": "A sweep of small runs",
}


def _markdown(bench: Bench, device: str) -> str:
    """The frames, to be read where there is no report."""
    text = [f"# Measured on {device}", "", "Made by `cifarlib bench`."]
    for part in (
        ("throughput", "variants", "precision", "sweep") if device == "cpu" else ("gpu", "kernels")
    ):
        frame = tabulate(bench, part)
        if len(frame):
            where = describe(bench, part if part in bench else "throughput")
            said = f"{describe_gpu(bench)} {where}" if part == "gpu" else where
            text += ["", f"## {_TITLES[part]}", "", _pipes(frame), "", said.strip()]
    return "\n".join(text) + "\n"


def _pipes(frame: "pd.DataFrame") -> str:
    def cell(value: Any) -> str:
        if isinstance(value, float):
            return (
                f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}" if value == value else "–"
            )
        return "–" if value is None else str(value)

    rows = [[name.replace("_", " ") for name in frame], ["---"] * frame.shape[1]]
    rows += [[cell(v) for v in row] for row in frame.itertuples(index=False, name=None)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
