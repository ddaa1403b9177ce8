"""A run trained beside the program that asked for it."""

import pytest
from conftest import tiny_conditions, tiny_store, wait_for

from cifarlib.explore.collection import find_mistakes
from cifarlib.explore.launch import Launch, Progress
from cifarlib.locks import lock
from cifarlib.sweep.executors import Outcome
from cifarlib.sweep.worker import Message


def follow(launch: Launch, act=lambda progress: None) -> Progress:
    """Poll a launch until it ends, acting on what is heard."""

    def ended():
        act(launch.poll(0.2))
        return launch.progress.ended

    wait_for(ended, "the end of the run")
    return launch.progress


def test_a_launch_trains_a_run_and_tells_each_epoch(tmp_path):
    (condition,) = tiny_conditions("stage1-long/13")
    store = tiny_store(tmp_path)
    progress = follow(Launch(condition.config, store, condition.name, "cpu"))
    record = store.read_run(condition.run_id)
    assert progress.state == "done", progress.sentence
    assert progress.images == 3 * 20
    heard = {1: record.accuracy("validation", epoch=1), 2: record.accuracy("validation", epoch=2)}
    assert progress.accuracies == pytest.approx(heard)  # the last is in the record
    wrong, _ = find_mistakes(record)  # in the order of the data set's images
    assert 100 * (10 - wrong) / 10 == record.accuracy("test")


def test_a_launch_stops_when_it_is_asked_to(tmp_path):
    (condition,) = tiny_conditions("stage1-long/13")
    config = condition.config.model_copy(update={"epochs": 10_000})
    store = tiny_store(tmp_path)
    launch = Launch(config, store, condition.name, "cpu")
    progress = follow(launch, lambda heard: launch.stop() if heard.epoch == 2 else None)
    assert progress.state == "stopped", progress.sentence
    assert store.run_ids() == []
    assert not launch.process.is_alive()
    with lock(store.state / f"{launch.run_id}.lock") as held:
        assert held


def test_a_launch_stops_before_it_has_begun(tmp_path):
    (condition,) = tiny_conditions("stage1-daa1/1")
    launch = Launch(condition.config, tiny_store(tmp_path), condition.name, "cpu")
    launch.stop()
    assert follow(launch).state == "stopped"


def test_what_cannot_go_on_is_said_in_a_sentence(tmp_path):
    (condition,) = tiny_conditions("stage1-daa1/1")
    store = tiny_store(tmp_path)
    (tmp_path / "state").write_text("a file where a folder must be")
    progress = follow(Launch(condition.config, store, condition.name, "cpu"))
    assert progress.state == "failed"
    assert "cannot be written" in progress.sentence
    assert "\n" not in progress.sentence


@pytest.mark.parametrize(
    ("said", "state", "sentence"),
    [
        (Message("images", images=5), "training", ""),
        (Message("note", text="training from the start"), "starting", "training from the start"),
        (Outcome(done=1), "done", ""),
        (Outcome(failed={"x": "ValueError: no"}), "failed", "ValueError: no"),
        (Outcome(unavailable={"x": "weights are missing"}), "failed", "weights are missing"),
        ("the disk is full", "failed", "the disk is full"),
        (None, "stopped", ""),
    ],
)
def test_progress_is_what_was_heard(said, state, sentence):
    progress = Progress()
    progress.hear(said)
    assert (progress.state, progress.sentence) == (state, sentence)


def test_a_process_that_dies_without_a_word_has_failed(tmp_path):
    (condition,) = tiny_conditions("stage1-daa1/1")
    launch = Launch(condition.config, tiny_store(tmp_path), condition.name, "cpu")
    launch.process.kill()
    progress = follow(launch)
    assert progress.state == "failed"
    assert "ended with code -9" in progress.sentence
