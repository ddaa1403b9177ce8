"""Measurements of speed: what is compared is what it says, and no number is a time's check."""

import math

import pytest
import torch

from cifarlib import cli
from cifarlib.bench import measurements
from cifarlib.bench import throughput as bench
from cifarlib.config import SPLITS
from cifarlib.runs.inputs import load_inputs
from cifarlib.training import Run


def configuration(**changed):
    return bench.make_config("synthetic", 180, 64, **changed)


def test_the_study_proportions_are_kept():
    config = configuration()
    sizes = [getattr(config.data, f"{split}_size") for split in SPLITS]
    assert sizes == [180, 20, 40]
    assert (config.optimizer.name, config.learning_rate, config.batch_size) == ("adamw", 0.001, 64)
    assert config.evaluation.train_every == config.evaluation.test_every == 1
    assert configuration(precision="fp32").precision == "fp32"


@pytest.mark.integration
def test_the_paper_style_loop_trains_the_same_network_on_the_same_images():
    config = configuration(precision="fp32")
    inputs = load_inputs(config, bench.CPU)
    loop = bench.PaperLoop(config, inputs)
    ours = Run(config, inputs, bench.CPU)
    first = {name: value.clone() for name, value in loop.model.state_dict().items()}
    assert all(torch.equal(value, ours.model.state_dict()[name]) for name, value in first.items())
    loop.evaluate()
    assert all(torch.equal(first[name], value) for name, value in loop.model.state_dict().items())
    loop.train_epoch()
    assert not torch.equal(first["fc.weight"], loop.model.fc.weight)
    assert {name: len(loader.dataset) for name, loader in loop.loaders.items()} == {
        name: len(getattr(inputs, name)) for name in SPLITS
    }


@pytest.mark.integration
def test_throughput_gives_every_number_of_its_table(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "BATCH_SIZES", (64,))
    monkeypatch.setattr(bench, "matrix_rate", lambda precision: 1e12)
    found = bench.measure_throughput("synthetic", 180, 1)
    paper, ours = found["rows"]
    assert min(paper["train_images_per_s"], paper["evaluation_images_per_s"]) > 0
    assert ours["epoch_ratio"] == paper["epoch_s"] / ours["epoch_s"]
    assert ours["train_gemm_fraction"] == 1e9 * ours["gflops"] / 1e12
    where = bench.describe_machine("synthetic")
    measurements.write_bench({"throughput": where | found}, folder=tmp_path)
    frame = measurements.tabulate(measurements.read_bench(folder=tmp_path), "throughput")
    assert frame["epoch_s"].map(math.isfinite).all()


def test_choices_change_what_they_name():
    config = configuration()
    run = Run(config, load_inputs(config, bench.CPU), bench.CPU)
    assert any(type(m) is bench.Convolution for m in run.model.modules())
    bench._channels_first(run)
    assert not any(type(m) is bench.Convolution for m in run.model.modules())
    assert run.model.stem1.conv.weight.is_contiguous()
    bench._plain_optimizer(run)
    assert not run.optimizer.defaults["fused"]


def test_two_processes_train_side_by_side(monkeypatch, fork_server):
    monkeypatch.setattr(bench, "multiprocessing", fork_server)
    assert bench._together(configuration(), 2, 1, {}) > 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--part", "speed"], "there is no part 'speed'; did you mean 'sweep'?"),
        (["--seconds", "9"], "--seconds is for --device cuda; on a processor, choose a --part"),
    ],
)
def test_what_cannot_be_measured_is_said_in_a_sentence(options, told, capsys):
    assert cli.main(["bench", "--device", "cpu", *options]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith(f"cifarlib: {told}")
