"""Measurements of a GPU: each way works, here on the CPU, and no number is a time's check."""

import json

import pytest
import torch

from cifarlib import cli, training
from cifarlib.bench import cuda as bench_cuda
from cifarlib.bench import plain_training
from cifarlib.errors import RunError

CPU = torch.device("cpu")
FEW = bench_cuda.Settings(CPU, steps=3, epochs=1)


def test_no_measurement_is_begun_that_would_not_end_in_time():
    rows = list(bench_cuda.measure(FEW, seconds=0))
    assert all("left_out" in row for row in rows)
    told = {(row["way"], row.get("batch_size"), row.get("runs")) for row in rows}
    for runs in (1, 2, 4, 8, 16):
        assert ("graph", 64, runs) in told
    for size in (32, 64, 128, 256):
        assert ("graph", size, 8) in told
    assert {"eager", "plain graph", "plain compile"} <= {way for way, _, _ in told}
    assert {"kernels of a step", "update by AdamW"} <= {way for way, _, _ in told}


def test_a_way_that_fails_leaves_the_others(monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("no speed\nin two lines")

    first, second, *_ = bench_cuda._plan(FEW)
    monkeypatch.setattr(bench_cuda, "_plan", lambda settings: [first, second])
    monkeypatch.setattr(bench_cuda, "_measure_runs", fail)
    monkeypatch.setattr(bench_cuda, "_measure_eager", lambda *_: 123.0)
    failed, measured = bench_cuda.measure(FEW, seconds=60)
    assert failed["failed"] == "ZeroDivisionError: no speed"
    assert (measured["way"], measured["images_per_s"]) == ("eager", 123.0)


@pytest.mark.integration
def test_runs_are_measured_eager_and_at_once():
    assert bench_cuda._measure_eager(FEW, 32) > 0
    assert bench_cuda._measure_runs(FEW, 32, 2) > 0


def test_arithmetic_is_three_forward_passes_an_image():
    row = bench_cuda._as_rate(10_000.0)
    assert row == {"images_per_s": 10_000.0, "tflops": pytest.approx(8.187)}


def test_a_step_is_profiled_and_an_update_timed():
    found = bench_cuda.profile_step(FEW, 32)
    names = [name for name, _, _ in found["kernels"]]
    assert found["launched"] >= sum(times for _, _, times in found["kernels"]) > len(names)
    assert found["busy_us"] >= sum(us for _, us, _ in found["kernels"]) > 0
    update = bench_cuda.measure_update(FEW, repeats=1)
    assert min(update["fused_us"], update["foreach_us"]) > 0


@pytest.fixture
def forked(monkeypatch, fork_server):
    monkeypatch.setattr(plain_training, "multiprocessing", fork_server)


@pytest.mark.usefixtures("forked")
def test_plain_processes_train_side_by_side():
    rate = plain_training.measure_processes("eager", 2, 4, 2, CPU, images=50)
    assert rate > 0


@pytest.mark.usefixtures("forked")
def test_a_plain_process_that_fails_ends_the_others():
    with pytest.raises(RunError, match="one of 2 processes failed"):
        plain_training.measure_processes("eager", 2, 4, 2, CPU, images=0)


def test_each_row_is_written_and_said_at_once(monkeypatch, tmp_path, capsys):
    written = []

    def measure(settings, seconds):
        assert (settings.device.type, seconds) == ("cuda", 30)
        labels = {"batch_size": 64, "runs": 8}
        yield {"way": "graph", **labels, "images_per_s": 90_000.0, "tflops": 73.7, "at_s": 4.0}
        written.append(json.loads((tmp_path / "cuda.json").read_text())["throughput"])
        yield {"way": "update by AdamW", "fused_us": 31.25, "foreach_us": 95.0, "at_s": 9.0}
        kernels = [["a kernel", 12.5, 3]]
        yield {"way": "kernels of a step", "launched": 90, "kernels": kernels, "at_s": 9.6}

    monkeypatch.setattr(bench_cuda, "measure", measure)
    monkeypatch.setattr(training, "resolve_device", torch.device)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    command = ["bench", "--device", "cuda", "--seconds", "30", "--out", str(tmp_path)]
    assert cli.main(command) == 0
    assert [row["way"] for row in written[0]["rows"]] == ["graph"]
    assert written[0]["data"] == "random images"
    said = capsys.readouterr()
    assert said.err.splitlines() == [
        "[   4 s] graph, 8 at once, batch 64: 90,000 images/s, 73.7 TFLOP/s",
        "[   9 s] update by AdamW: fused_us 31.25, foreach_us 95",
        "[  10 s] kernels of a step: launched 90",
        "      12.5 µs, 3 times: a kernel",
    ]
    assert said.out.startswith("# Measured on cuda")
    assert cli.main([*command, "--part", "sweep"]) == 2


def test_a_fault_while_measuring_is_raised():
    def fail(epoch):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        bench_cuda._speed([lambda epoch: None, fail], 10, 1)
