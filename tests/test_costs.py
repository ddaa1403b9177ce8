"""Costs: measurements read and written, and shown as they are."""

import json

import pytest
from conftest import make_record, tiny_conditions

from cifarlib import costs
from cifarlib.errors import ConfigError
from cifarlib.records import open_results

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
    path, _ = costs.write_bench({"throughput": THROUGHPUT}, folder=tmp_path)
    content = json.loads(path.read_text())
    assert list(content) == [costs.DIGEST, *costs.RATIOS, "throughput"]
    assert content["train_gemm_fraction"] == {"64": 0.81235}
    assert not set(costs.RATIOS) & set(content["throughput"])
    assert {costs.DIGEST: content[costs.DIGEST]} | costs.read_bench(folder=tmp_path) == content


def test_a_part_measured_again_leaves_the_others(tmp_path):
    costs.write_bench({"throughput": THROUGHPUT}, folder=tmp_path)
    costs.write_bench({"variants": VARIANTS}, folder=tmp_path)
    faster = THROUGHPUT | {"epoch_ratio": {"64": 4.0}}
    path, text = costs.write_bench({"throughput": faster}, folder=tmp_path)
    content = json.loads(path.read_text())
    assert content["epoch_ratio"] == {"64": 4.0}
    assert content["variants"] == VARIANTS
    assert "| 64 | ours | 100 | 400 | 200 | – | 81.9 | 4 | 0.812 | 2 |" in text.read_text()


def test_nothing_measured_shows_empty_tables(tmp_path):
    assert costs.read_bench(folder=tmp_path) == {}
    assert costs.tabulate_throughput({}).shape == (0, 10)
    assert costs.tabulate_variants({}).shape == (0, 4)
    assert costs.tabulate_precision({}).shape == (0, 4)
    assert costs.describe_bench({}, "throughput") == "Not measured yet: make bench."
    assert costs.describe_precision({}) == costs.describe_sweep({}) == ""


@pytest.mark.parametrize("content", ["{", "[]"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "cpu.json").write_text(content)
    with pytest.raises(ConfigError, match=r"cpu\.json .*cifarlib bench"):
        costs.read_bench(folder=tmp_path)


def test_throughput_has_a_row_for_each_way(tmp_path):
    costs.write_bench({"throughput": THROUGHPUT}, folder=tmp_path)
    frame = costs.tabulate_throughput(costs.read_bench(folder=tmp_path))
    assert frame["Epoch, s"].tolist() == [600, 200]
    assert frame["Epoch ratio"].tolist() == [1, 3]
    assert frame["GFLOP/s"].tolist() == pytest.approx([81.9, 81.9])
    assert frame["Evaluation / fp32"].tolist() == ["–", 2]


def test_choices_are_set_beside_what_they_change():
    frame = costs.tabulate_variants({"variants": VARIANTS}).set_index("Choice")
    assert frame["Beside ours"].to_dict() == {"ours": 1, "fp32": 0.5, "one": 1, "two": 1.5}


def test_the_difference_of_precisions_comes_with_its_interval():
    frame = costs.tabulate_precision({"precision": PRECISION})
    assert frame["bf16 − fp32"].tolist() == [0.5, -1.0]
    said = costs.describe_precision({"precision": PRECISION})
    assert "2 seeds −0.25 points" in said
    assert "−9.00 to +8.50 (paired t): no difference can be told" in said
    clear = PRECISION | {"interval": [0.1, 0.4]}
    assert "a difference is told" in costs.describe_precision({"precision": clear})


def test_stages_sum_what_their_records_took(tmp_path):
    results = open_results("smoke", (), tmp_path)
    long = results.select("stage1-long")
    results.store.write(make_record(long[0], train_s=3600.0, evaluation_s=600.0))
    frame = costs.tabulate_costs(open_results("smoke", (), tmp_path)).set_index("Stage")
    row = frame.loc[results.study.stages["stage1-long"].title]
    assert (row["Runs"], row["Done"], row["Training"], row["Evaluation"]) == (
        *(2, 1),
        *("60 min", "10 min"),
    )
    other = frame.loc[results.study.stages["stage1-base"].title]
    assert other["Done"] == 0
    assert other["Left"].startswith("about ")
    assert len(tiny_conditions()) == frame["Runs"].sum()


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
    path, text = costs.write_bench({"throughput": part}, "cuda", tmp_path)
    assert path.name == "cuda.json"
    bench = costs.read_bench("cuda", tmp_path)
    frame = costs.tabulate_gpu(bench)
    assert frame["Way"].tolist() == ["graph"] * 3 + ["eager", "plain graph", "plain compile"]
    assert frame.iloc[1]["Images/s"] == 90_000
    assert frame["Failed"].dropna().tolist() == ["RuntimeError: no room"]
    assert costs.describe_gpu(bench) == (
        "At batch size 64, 8 runs at once train 1.50 times as many images/s as the best plain "
        "processes (graph, 8 at once); they must reach 2 times as many to be kept. AdamW's update "
        "takes 31 µs by fused kernels, 95 µs by torch's for-each ones."
    )
    said = text.read_text()
    assert "| graph | 64 | 8 | 90,000 | 73.7 |" in said
    assert "| a kernel | 12.5 | 3 |" in said
    assert "1.50 times as many" in said


def test_half_a_measurement_of_a_gpu_is_shown_too(tmp_path):
    """Each row is written as soon as it is known."""
    part = WHERE | {"device": "a GPU", "rows": GPU_ROWS[:1]}
    _, text = costs.write_bench({"throughput": part}, "cuda", tmp_path)
    assert "| graph | 64 | 1 | 20,000 | 16.4 |" in text.read_text()
    assert costs.describe_gpu(costs.read_bench("cuda", tmp_path)) == ""


# ---------------------------------------------------------------------------------------------
# The whole study, on paper
# ---------------------------------------------------------------------------------------------


def test_the_longest_runs_go_first():
    assert costs.makespan([3, 1, 2, 4], 1) == 10
    assert costs.makespan([3, 1, 2, 4], 2) == 5  # 4 and 1, 3 and 2
    assert costs.makespan([3, 1, 2, 4], 8) == 4
    assert costs.makespan([], 8) == 0


def test_without_records_every_machine_is_pending(tmp_path):
    frame = costs.tabulate_machines(open_results("smoke", (), tmp_path))
    assert frame["Machine"].tolist() == ["GPU", "processor"]
    assert frame["Rates from"].tolist() == [costs.NO_GPU, costs.NO_RUN]
    assert frame.drop(columns=["Machine", "Rates from"]).isna().all(axis=None)


def test_the_study_is_priced_by_the_machines_in_the_records(tmp_path):
    results = open_results("smoke", (), tmp_path)
    card = {"device": "a card", "device_class": "cuda"}
    conditions = results.conditions
    results.store.write(make_record(conditions[0], train_s=7.0, evaluation_s=3.0))
    results.store.write(make_record(conditions[1], train_s=0.7, evaluation_s=0.3, **card))
    frame = costs.tabulate_machines(open_results("smoke", (), tmp_path)).set_index("Machine")
    assert list(frame.index) == ["a card", "a processor, 1 thread"]
    assert frame.loc["a card", "Rates from"].startswith("1 run; densenet121 in bf16, resnet18 in")
    hours = {
        name: [float(row[f"On {n}"].removesuffix(" h")) for n in costs.MACHINES]
        for name, row in frame.iterrows()
    }
    one, eight, many = hours["a card"]
    assert one > eight >= many > 0  # at last, the longest run alone decides
    assert one / 8 <= eight + 0.1
    assert hours["a processor, 1 thread"][0] == pytest.approx(10 * one, rel=0.01)
    longest = float(frame.loc["a card", "Longest run"].removesuffix(" h"))
    assert many >= longest


def test_a_card_takes_as_many_runs_at_once_as_it_did(tmp_path):
    results = open_results("smoke", (), tmp_path)
    card = {"device": "a card", "device_class": "cuda"}
    hours, longest = [], []
    for lanes in (1, 8):
        results.store.write(make_record(results.conditions[0], lanes=lanes, **card))
        frame = costs.tabulate_machines(open_results("smoke", (), tmp_path))
        hours.append([float(frame[f"On {n}"][0].removesuffix(" h")) for n in costs.MACHINES])
        longest.append(frame["Longest run"][0])
    assert frame["Rates from"][0].startswith("1 run, 8 at once; ")
    assert hours[1][0] == hours[0][1]  # one card with eight lanes, eight cards with one
    assert longest[0] == longest[1]  # a run is as slow as it was recorded
    assert hours[1][2] == float(longest[1].removesuffix(" h"))
