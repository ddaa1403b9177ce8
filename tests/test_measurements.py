"""Measurements of speed: written, read, and as frames."""

import json

import pytest

from cifarlib.bench import measurements
from cifarlib.errors import ConfigError

WHERE = {
    "measured": "2025-01-02T03:04:05+00:00",
    "processor": "a processor",
    "cores": 2,
    "versions": {"torch": "2.11.0"},
    "commit": "0123456789abcdef",
    "dirty": False,
    "data": "cifar10",
}
RATES = {"train_images_per_s": 100.0, "evaluation_images_per_s": 400.0, "gflops": 81.9}
PAPER = {"batch_size": 64, "way": "paper", "epoch_s": 600.0, "peak_memory_mb": 900.0} | RATES
OURS = {"batch_size": 64, "way": "ours", "epoch_s": 200.0, "epoch_ratio": 3.0} | RATES
OURS |= {"train_gemm_fraction": 0.8123456789, "eval_ratio": 2.0}
THROUGHPUT = WHERE | {"rows": [PAPER | {"epoch_ratio": 1.0}, OURS]}
VARIANTS = WHERE | {
    "rows": [
        {"choice": "ours", "train_images_per_s": 100.0, "rate_ratio": 1.0, "first_epoch_s": 9.0},
        {"choice": "one process", "train_images_per_s": 80.0, "rate_ratio": 1.0},
    ]
}


def test_a_part_measured_again_leaves_the_others(tmp_path):
    measurements.write_bench({"throughput": THROUGHPUT}, folder=tmp_path)
    measurements.write_bench({"variants": VARIANTS}, folder=tmp_path)
    faster = THROUGHPUT | {"rows": [OURS | {"epoch_ratio": 4.0}]}
    path, text = measurements.write_bench({"throughput": faster}, folder=tmp_path)
    content = json.loads(path.read_text())
    assert content["variants"] == VARIANTS
    row = next(line for line in text.read_text().splitlines() if " ours " in line)
    assert row.split() == ["64", "ours", "100", "400", "200", "–", "81.9", "4", "0.81235", "2"]
    assert measurements.read_bench(folder=tmp_path) == content


def test_nothing_measured_gives_empty_frames(tmp_path):
    assert measurements.read_bench(folder=tmp_path) == {}
    for part in measurements.TABLES:
        assert measurements.tabulate({}, part).empty
    assert measurements.describe({}, "throughput") == "Not measured yet: make bench."
    assert measurements.describe_gpu({}) == ""


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "cpu.json").write_text(content)
    with pytest.raises(ConfigError, match=r"cpu\.json .*cifarlib bench"):
        measurements.read_bench(folder=tmp_path)


def test_a_part_has_its_frame():
    rates = measurements.tabulate({"throughput": THROUGHPUT}, "throughput")
    assert rates["epoch_s"].tolist() == [600, 200]
    assert rates["eval_ratio"].isna().tolist() == [True, False]
    choices = measurements.tabulate({"variants": VARIANTS}, "variants")
    assert choices["first_epoch_s"].isna().tolist() == [False, True]


def test_it_is_said_where_and_when_a_part_was_measured():
    said = measurements.describe({"throughput": WHERE | {"cores": 1}}, "throughput")
    assert said.startswith(
        "Measured 2025-01-02 on 1 core (a processor), torch 2.11.0, data cifar10"
    )


GPU_ROWS = [
    {"way": "graph", "batch_size": 64, "runs": 1, "images_per_s": 20_000.0, "tflops": 16.4},
    {"way": "graph", "batch_size": 64, "runs": 8, "images_per_s": 90_000.0, "tflops": 73.7},
    {"way": "graph", "batch_size": 256, "runs": 8, "images_per_s": 99_000.0, "tflops": 81.1},
    {"way": "eager", "batch_size": 64, "runs": 1, "failed": "RuntimeError: no room"},
    {"way": "update by AdamW", "fused_us": 31.2, "foreach_us": 95.0},
    {"way": "plain graph", "batch_size": 64, "runs": 8, "images_per_s": 60_000.0, "tflops": 49.1},
    {"way": "plain compile", "batch_size": 64, "runs": 1, "left_out": "would take 60 s"},
    {"way": "kernels of a step", "batch_size": 64, "kernels": [["a kernel", 12.5, 3]]},
]


def test_runs_on_a_gpu_are_shown_beside_plain_processes(tmp_path):
    part = WHERE | {"device": "a GPU", "rows": GPU_ROWS}
    path, text = measurements.write_bench({"throughput": part}, "cuda", tmp_path)
    assert path.name == "cuda.json"
    bench = measurements.read_bench("cuda", tmp_path)
    frame = measurements.tabulate(bench, "gpu")
    assert frame["way"].tolist() == ["graph"] * 3 + ["eager", "plain graph", "plain compile"]
    assert frame.iloc[1]["images_per_s"] == 90_000
    assert frame["failed"].dropna().tolist() == ["RuntimeError: no room"]
    assert measurements.describe_gpu(bench) == (
        "At batch size 64, 8 concurrent runs train 1.50 times as many images/s as the best plain "
        "processes (graph, 8 at once); they must reach 2 times as many to be kept. AdamW's update "
        "takes 31 µs with fused kernels, 95 µs with torch's for-each ones."
    )
    said = text.read_text()
    assert ["graph", "64", "8", "90,000", "73.7"] in [x.split()[:5] for x in said.splitlines()]
    assert ["a", "kernel", "12.5", "3"] in [x.split() for x in said.splitlines()]
    assert "1.50 times as many" in said


def test_half_a_measurement_of_a_gpu_is_shown_too(tmp_path):
    """Each row is written as soon as it is known."""
    part = WHERE | {"device": "a GPU", "rows": GPU_ROWS[:1]}
    _, text = measurements.write_bench({"throughput": part}, "cuda", tmp_path)
    assert text.read_text().splitlines()[-4].split() == ["graph", "64", "1", "20,000", "16.4"]
    assert measurements.describe_gpu(measurements.read_bench("cuda", tmp_path)) == ""
