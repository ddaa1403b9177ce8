"""How far a study is, and what the rest costs."""

import time
from dataclasses import replace

import pytest
from conftest import make_record, tiny_conditions, write_records

from cifarlib import models
from cifarlib.config import ModelConfig
from cifarlib.runs import locks, progress
from cifarlib.runs.display import Display
from cifarlib.runs.store import DIGEST_BYTES, EPOCH_BYTES, RecordStore
from cifarlib.runs.worker import DescribeJob, RunJob


def test_status_counts_what_is_done_running_and_pending(tmp_path):
    """A lock that a dead process has left says nothing."""
    store = RecordStore(tmp_path)
    chosen = tiny_conditions()
    write_records(store, chosen[:3])
    store.state.mkdir()
    (store.state / f"{chosen[4].run_id}.lock").write_bytes(b"")
    with locks.lock(store.state / f"{chosen[3].run_id}.lock"):
        rows = {row.stage: row for row in progress.status(chosen, store)}
    base = rows["stage1-base"]
    assert (base.conditions, base.done, base.running, base.pending) == (36, 3, 1, 32)
    long = rows["stage1-long"]
    assert (long.conditions, long.done, long.running, long.pending) == (2, 0, 0, 2)
    assert base.seconds_left > 0


def test_a_run_that_two_stages_share_is_paid_once(tmp_path):
    (condition,) = tiny_conditions("stage1-base/1")
    shared = replace(condition, stage="another-stage")
    first, second = progress.status([condition, shared], RecordStore(tmp_path))
    assert first.seconds_left > 0
    assert second.seconds_left == 0


@pytest.mark.parametrize(("epoch", "left"), [(1, 2 / 3), (3, 0), (2**31, 0)])
def test_what_a_checkpoint_holds_is_not_paid_again(tmp_path, epoch, left):
    store = RecordStore(tmp_path)
    (condition,) = tiny_conditions("stage1-long/9")
    (whole,) = progress.status([condition], store)
    store.state.mkdir(parents=True)
    head = bytes(DIGEST_BYTES) + epoch.to_bytes(EPOCH_BYTES, "big")
    (store.state / f"{condition.run_id}.pt").write_bytes(head)
    (rest,) = progress.status([condition], store)
    assert rest.seconds_left == pytest.approx(left * whole.seconds_left)


@pytest.mark.parametrize("name", progress.NETWORKS)
def test_work_is_counted_with_the_networks_own_cost(name):
    model = models.build_model(ModelConfig(name=name, initialization="kaiming"), 0.0, seed=0)
    counted = models.count_flops(model, 32) / 1e9
    assert progress.NETWORKS[name].gflop == pytest.approx(counted, rel=0.01)


def test_work_counts_training_three_times_and_every_evaluation():
    (condition,) = tiny_conditions("stage1-long/9", overrides=("evaluation.test_every=2",))
    trained = 3 * 3 * 20  # passes, epochs, images
    evaluated = 20 * 2 + 10 * (3 + 2) + 10 * (1 + 2)
    expected = (trained + progress.EVALUATION * evaluated) * progress.NETWORKS["residual"].gflop
    assert progress.work(condition.config) == pytest.approx(expected)
    larger = tiny_conditions("stage3/1", overrides=("image_size=64",))[0]
    smaller = tiny_conditions("stage3/1", overrides=("image_size=32",))[0]
    assert progress.work(larger.config) == pytest.approx(4 * progress.work(smaller.config))


def test_prices_come_from_records(monkeypatch):
    monkeypatch.setattr(progress, "cores", lambda: 2)
    (condition,) = tiny_conditions("stage1-long/9")
    config = condition.config
    prices = progress.Prices()
    assert prices.seconds(config) == pytest.approx(
        progress.work(config) / progress.DEFAULT_GFLOPS["cpu"]["fp32"]
    )
    prices.add(make_record(condition, train_s=18.0, evaluation_s=2.0, threads=2))
    assert prices.seconds(config) == pytest.approx(20.0)
    one_core = progress.Prices([make_record(condition, train_s=18.0, evaluation_s=2.0, threads=1)])
    assert one_core.seconds(config) == pytest.approx(10.0)  # the other core does as much


def test_prices_come_from_other_records_of_the_folder_where_no_run_is_recorded(tmp_path):
    """Of one's own sizes nothing is recorded yet, but the machine's speed is known."""
    store = RecordStore(tmp_path)
    (other,) = tiny_conditions("stage1-base/1")
    store.write(make_record(other, train_s=18.0, evaluation_s=2.0))
    (condition,) = tiny_conditions("stage1-base/1", overrides=("data.train_size=200",))
    (row,) = progress.status([condition], store)
    share = progress.work(condition.config) / progress.work(other.config)
    known = progress.Prices([store.read_run(other.run_id)]).seconds(other.config)
    assert row.seconds_left == pytest.approx(share * known)


def test_prices_come_from_another_scale_where_the_folder_is_empty(tmp_path, monkeypatch):
    monkeypatch.setattr(progress.paths, "BUILD", tmp_path)
    (condition,) = tiny_conditions("stage1-base/1")
    record = make_record(condition, train_s=18.0, evaluation_s=2.0)
    RecordStore(tmp_path / "lite").write(record)
    known, default = progress.Prices([record]), progress.Prices()
    for folder, prices in ((tmp_path / "full", known), (tmp_path / "a" / "full", default)):
        (row,) = progress.status([condition], RecordStore(folder))
        assert row.seconds_left == pytest.approx(prices.seconds(condition.config))


def test_a_run_that_went_on_with_other_threads_took_the_time_of_the_clock():
    (condition,) = tiny_conditions("stage1-long/9")
    timing = {"train_s": 18.0, "evaluation_s": 2.0, "cpu_s": 24.0, "threads": 2}
    assert make_record(condition, **timing).seconds == 12.0
    changed = make_record(condition, **timing, changes=("from epoch 2: 2 instead of 1 threads",))
    assert changed.seconds == 20.0


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_prices_come_from_records_of_their_device_class_only(device):
    (condition,) = tiny_conditions("stage1-long/9")
    ours, other = device, "cuda" if device == "cpu" else "cpu"
    foreign = make_record(condition, train_s=500.0, evaluation_s=1.0, device_class=other)
    prices = progress.Prices([foreign], device)
    assert prices.seconds(condition.config) == pytest.approx(
        progress.work(condition.config) / progress.DEFAULT_GFLOPS[ours]["fp32"]
    )
    settings = {"threads": progress.cores(), "lanes": 1}
    prices.add(make_record(condition, train_s=1.0, evaluation_s=1.0, device_class=ours, **settings))
    prices.add(foreign)
    assert prices.seconds(condition.config) == pytest.approx(2.0)


def test_prices_are_those_of_the_device_that_is_there(monkeypatch):
    (condition,) = tiny_conditions("stage1-long/9")
    seconds = {}
    for there in (False, True):
        monkeypatch.setattr(progress.Path, "exists", lambda path, there=there: there)
        seconds[there] = progress.Prices().seconds(condition.config)
    assert seconds[False] > 50 * seconds[True]


def test_epochs_that_early_stopping_spared_are_not_counted():
    (condition,) = tiny_conditions("stage1-long/9")
    whole = progress.Prices([make_record(condition, train_s=29.0, evaluation_s=1.0)])
    third = progress.Prices([make_record(condition, trained=1, train_s=9.0, evaluation_s=1.0)])
    assert whole.seconds(condition.config) == pytest.approx(third.seconds(condition.config))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (9000, "2.5 h")],
)
def test_durations_are_said_as_a_person_does(seconds, text):
    assert progress.duration(seconds) == text


def test_a_sweep_says_at_once_what_it_does_before_the_first_run(tmp_path, capsys):
    jobs = [DescribeJob("data set cifar10", "cifar10"), DescribeJob("residual network")]
    Display(jobs, 0, progress.Prices(), 1, 1, RecordStore(tmp_path)).close()
    said = capsys.readouterr().err.splitlines()
    assert said[-1].endswith("may take a minute: data set cifar10, residual network")
    Display([], 0, progress.Prices(), 1, 1, RecordStore(tmp_path)).close()
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("spent", "left"), [(30, "as priced"), (600, "as long again")])
def test_what_is_left_follows_the_sweeps_own_pace(tmp_path, spent, left):
    conditions = tiny_conditions("stage1-long/9", "stage1-long/13")
    jobs = [RunJob(c.run_id, c.name, c.config) for c in conditions]
    shown = Display(jobs, 0, progress.Prices(), 1, 1.0, RecordStore(tmp_path))
    priced = shown.seconds_left()
    config = jobs[0].config
    shown.images[jobs[0].run_id] = config.epochs * config.data.train_size  # half of the work
    shown.begun = *shown.begun[:2], time.monotonic() - spent
    assert shown.seconds_left() == pytest.approx(priced / 2 if left == "as priced" else spent, 0.01)
    shown.close()


def test_what_a_lost_worker_trained_is_left_to_do_again(tmp_path):
    (condition,) = tiny_conditions("stage1-long/9")
    job = RunJob(condition.run_id, condition.name, condition.config)
    shown = Display([job], 0, progress.Prices(), 1, 1.0, RecordStore(tmp_path))
    priced = shown.seconds_left()
    shown.advance(job, condition.config.data.train_size)
    assert shown.seconds_left() < priced
    shown.drop(job)  # there is no checkpoint
    assert shown.seconds_left() == priced
    shown.close()


def test_makespan_begins_with_the_longest_runs():
    assert progress.makespan([3, 1, 2, 4], 1) == 10
    assert progress.makespan([3, 1, 2, 4], 2) == 5  # 4 and 1, 3 and 2
    assert progress.makespan([3, 1, 2, 4], 8) == 4
    assert progress.makespan([], 8) == 0
