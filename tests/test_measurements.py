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
RATES = {"train_images_per_s": 100.0, "evaluation_images_per_s": 400.0, "epoch_s": 600.0}
PAPER, OURS = RATES | {"peak_memory_mb": 900.0}, RATES | {"epoch_s": 200.0, "peak_memory_mb": None}
THROUGHPUT = WHERE | {
    "forward_flops": 273e6,
    "batch_sizes": {"64": {"paper": PAPER, "ours": OURS}},
    "epoch_ratio": {"64": 3.0},
    "train_gemm_fraction": {"64": 0.8123456789},
    "eval_ratio": {"64": 2.0},
}
VARIANTS = WHERE | {
    "train_images_per_s": {"ours": 100.0, "fp32": 50.0},
    "first_epoch_s": {"ours": 9.0, "fp32": 18.0},
    "processes_images_per_s": {"one": 80.0, "two": 120.0},
}
PRECISION = WHERE | {
    "seeds": [1, 2],
    "train_images": 2700,
    "epochs": 6,
    "test_top1": {"fp32": [40.0, 41.0], "bf16": [40.5, 40.0]},
    "difference": -0.25,
    "interval": [-9.0, 8.5],
}


def test_ratios_stand_at_the_top_to_five_digits(tmp_path):
    path, _ = measurements.write_bench({"throughput": THROUGHPUT}, folder=tmp_path)
    content = json.loads(path.read_text())
    assert list(content) == [*measurements.RATIOS, "throughput"]
    assert content["train_gemm_fraction"] == {"64": 0.81235}
    assert not set(measurements.RATIOS) & set(content["throughput"])
    assert measurements.read_bench(folder=tmp_path) == content


def test_a_part_measured_again_leaves_the_others(tmp_path):
    measurements.write_bench({"throughput": THROUGHPUT}, folder=tmp_path)
    measurements.write_bench({"variants": VARIANTS}, folder=tmp_path)
    faster = THROUGHPUT | {"epoch_ratio": {"64": 4.0}}
    path, text = measurements.write_bench({"throughput": faster}, folder=tmp_path)
    content = json.loads(path.read_text())
    assert content["epoch_ratio"] == {"64": 4.0}
    assert content["variants"] == VARIANTS
    row = next(line for line in text.read_text().splitlines() if " ours " in line)
    assert row.split() == ["64", "ours", "100", "400", "200", "–", "81.9", "4", "0.81235", "2"]


def test_nothing_measured_gives_empty_frames(tmp_path):
    assert measurements.read_bench(folder=tmp_path) == {}
    for part in measurements.TITLES:
        assert measurements.tabulate({}, part).empty
    assert measurements.describe({}, "throughput") == "Not measured yet: make bench."
    assert measurements.describe_gpu({}) == ""


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "cpu.json").write_text(content)
    with pytest.raises(ConfigError, match=r"cpu\.json .*cifarlib bench"):
        measurements.read_bench(folder=tmp_path)


def test_each_part_has_its_frame(tmp_path):
    measurements.write_bench({"throughput": THROUGHPUT}, folder=tmp_path)
    rates = measurements.tabulate(measurements.read_bench(folder=tmp_path), "throughput")
    assert rates["way"].tolist() == ["paper", "ours"]
    assert rates["epoch_s"].tolist() == [600, 200]
    assert rates["epoch_ratio"].tolist() == [1, 3]
    assert rates["gflops"].tolist() == pytest.approx([81.9, 81.9])
    assert rates["eval_ratio"].isna().tolist() == [True, False]
    choices = measurements.tabulate({"variants": VARIANTS}, "variants").set_index("choice")
    assert choices["rate_ratio"].to_dict() == {"ours": 1, "fp32": 0.5, "one": 1, "two": 1.5}
    assert choices["first_epoch_s"].dropna().to_dict() == {"ours": 9, "fp32": 18}
    seeds = measurements.tabulate({"precision": PRECISION}, "precision")
    assert seeds["difference"].tolist() == [0.5, -1.0]


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
