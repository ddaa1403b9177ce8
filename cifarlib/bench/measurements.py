"""Measurements of speed, by ``cifarlib bench``: written, read, and as tidy frames."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarlib import paths
from cifarlib.checking import parse_json, read_bytes
from cifarlib.errors import ConfigError
from cifarlib.formatting import say_count
from cifarlib.runs.provenance import name_commit
from cifarlib.runs.store import write_atomically

if TYPE_CHECKING:
    import pandas as pd

DEVICES = ("cpu", "cuda")
RATES = ("train_images_per_s", "evaluation_images_per_s", "epoch_s", "peak_memory_mb", "gflops")
RATIOS = ("epoch_ratio", "train_gemm_fraction", "eval_ratio")
"""Epoch time paper-style / ours, training arithmetic / best bf16 matrix product, evaluation rate
ours / fp32 eager."""

TABLES = {  # part: (title, columns)
    "throughput": (
        "Throughput: the paper's way beside ours",
        ("batch_size", "way", *RATES, *RATIOS),
    ),
    "variants": (
        "One choice changed",
        ("choice", "train_images_per_s", "rate_ratio", "first_epoch_s"),
    ),
    "sweep": ("A sweep of small runs", ("runs", "workers", "wall_s", "runs_s", "overhead")),
    "gpu": (
        "Throughput",
        ("way", "batch_size", "runs", "images_per_s", "tflops", "left_out", "failed"),
    ),
    "kernels": ("A step at batch size 64, the longest kernels", ("kernel", "us", "launches")),
}
TARGET = 2.0
"""How many times the rate of the best plain processes concurrent runs must reach to be kept."""

Bench = Mapping[str, Any]


def read_bench(device: str = "cpu", folder: Path = paths.BENCH) -> Bench:
    """The latest measurements of speed, by part; empty where there are none.

    Raises ``ConfigError`` for a file that is no JSON object.
    """
    path = folder / f"{device}.json"
    try:
        content = parse_json(read_bytes(path))
        if not isinstance(content, dict):
            raise ValueError("no JSON object")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} holds no measurements; make it again: cifarlib bench") from error
    return content


def write_bench(parts: Bench, device: str = "cpu", folder: Path = paths.BENCH) -> list[Path]:
    """Put new measurements beside the other parts of a folder's: JSON, and Markdown to read."""
    content = _rounded({**read_bench(device, folder), **parts})
    text = f"# Measured on {device}\n\nMade by `cifarlib bench`.\n"
    for part, (title, _) in TABLES.items():
        frame = tabulate(content, part)
        if len(frame) and (part in ("gpu", "kernels")) == (device == "cuda"):
            table = frame.to_string(index=False, na_rep="–", float_format="{:,.6g}".format)
            said = [describe_gpu(content)] if part == "gpu" else []
            said += [describe(content, part if part in content else "throughput")]
            text += f"\n## {title}\n\n```text\n{table}\n```\n\n{' '.join(said).strip()}\n"
    written = [folder / f"{device}.json", folder / f"{device}.md"]
    write_atomically(written[0], (json.dumps(content, indent=1) + "\n").encode())
    write_atomically(written[1], text.encode())
    return written


def _rounded(value: Any) -> Any:
    """Measured values to five digits, for no clock is better; keys as JSON has them."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {str(key): _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


def tabulate(bench: Bench, part: str) -> "pd.DataFrame":
    """A part's measurements with their unit in the column's name; empty where it lacks.

    ``throughput``: a row for each batch size and way, the paper's and ours. ``variants``: for each
    choice that differs from ours, and for processes side by side. ``sweep``: one. ``gpu``: for
    each way of running, batch size and number of concurrent runs. ``kernels``: for each of a step
    on a GPU.
    """
    import pandas as pd  # here, for commands start without it

    on_gpu = bench.get("throughput", {}).get("rows", [])
    match part:
        case "gpu":
            rows = [row for row in on_gpu if "runs" in row]
        case "kernels":
            rows = [kernel for row in on_gpu for kernel in row.get("kernels", [])]
        case _:
            rows = bench.get(part, {}).get("rows", [])
    frame = pd.DataFrame(rows, columns=list(TABLES[part][1]))
    return frame.dropna(axis="columns", how="all") if part == "gpu" and rows else frame


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
        f"Measured {found['measured'][:10]} on {say_count(found['cores'], 'core')} ({processor}), "
        f"torch {found['versions'].get('torch', '?')}, data {found['data']}, "
        f"{name_commit(found['commit'], found['dirty'])}."
    )
