"""The sweep on a Ray cluster: two nodes on this machine, one of which is lost in mid-sweep."""

import contextlib
import importlib.util
import io
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pytest
from conftest import DEADLINE, SET_TINY, make_record, tiny_conditions, tiny_store, wait_for

from cifarlib import cli, data
from cifarlib.config import DATASETS
from cifarlib.errors import DataError, RunError
from cifarlib.runs import checkpoints, executors, progress, ray_executor, ray_node, sweep
from cifarlib.runs.ray_executor import RayExecutor, gpu_share
from cifarlib.runs.ray_node import Relay, serve_task
from cifarlib.runs.running import checkpoint_epoch
from cifarlib.runs.store import RecordStore
from cifarlib.runs.weights import build_network
from cifarlib.runs.worker import Message, RunJob

needs_ray = pytest.mark.skipif(
    not importlib.util.find_spec("ray"), reason="Ray is not installed: pip install '.[ray]'"
)

# Ray takes 127.0.0.1 to mean an address that others reach, unless it is told that there are none.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

pytestmark = pytest.mark.long

LONG = ("epochs.200=6",)
NAMES = ("stage1-long/9", "stage1-long/13", "stage1-base/1")  # 6, 6 and 1 epochs

# ---------------------------------------------------------------------------------------------
# A cluster
# ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cluster():
    """A head, where the sweeps run, and a second node, each with one CPU, bound to 127.0.0.1."""
    folder = tempfile.mkdtemp(prefix="ray-")  # short: it holds sockets, whose paths are
    changed = {"TMPDIR": folder, "RAY_TMPDIR": folder}
    before = {name: os.environ.get(name) for name in changed}
    os.environ.update(changed)
    from ray.cluster_utils import Cluster

    made = Cluster()
    try:
        for _ in range(2):
            add_node(made)
        yield made
    finally:
        made.shutdown()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
        shutil.rmtree(folder, ignore_errors=True)


def add_node(cluster):
    return cluster.add_node(
        node_ip_address="127.0.0.1",
        num_cpus=1,
        num_gpus=0,
        # For several checkpoints of 78 MB. One that a lost task leaves pinned would, in a smaller
        # store, keep every other waiting: Ray grants what arguments need up to 7 tenths of it.
        object_store_memory=400 << 20,
        include_dashboard=False,
    )


def second_node(cluster):
    """The node that is not the head, a new one where it was lost."""
    others = [node for node in cluster.list_all_nodes() if node is not cluster.head_node]
    return others[0] if others else add_node(cluster)


def sweep_on(cluster, conditions, store: RecordStore, **settings) -> tuple[executors.Outcome, list]:
    """A sweep on a cluster with one thread a run: its outcome, and the lines it said."""
    said = io.StringIO()
    executor = partial(RayExecutor, address=cluster.address)
    with contextlib.redirect_stderr(said):
        outcome = sweep.sweep(
            conditions, store, device="cpu", threads=1, executor=executor, **settings
        )
    return outcome, said.getvalue().splitlines()


def workers_of(node) -> list[psutil.Process]:
    """The processes of a node that carry out tasks."""
    (raylet,) = node.all_processes["raylet"]
    return psutil.Process(raylet.process.pid).children(recursive=True)


def lose(cluster, node) -> None:
    """What a power cut does."""
    family = workers_of(node)
    cluster.remove_node(node, allow_graceful=False)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def is_on(node, name: str) -> bool:
    """Whether a node carries out a task."""
    titles = []
    for process in workers_of(node):
        with contextlib.suppress(psutil.Error):
            titles += process.cmdline()[:1]
    return any(title.startswith(f"ray::{name}") for title in titles)


# ---------------------------------------------------------------------------------------------
# Sweeps
# ---------------------------------------------------------------------------------------------


@needs_ray
def test_nodes_with_another_cifarlib_are_refused(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_executor, "ENGINE", 1000)
    with pytest.raises(RunError, match=r"has cifarlib .* with engine \d+, the sweep .* 1000; inst"):
        sweep_on(cluster, tiny_conditions(NAMES[2]), tiny_store(tmp_path))
    assert list((tmp_path / "state").glob("*.lock")) == []


@needs_ray
def test_a_sweep_that_is_stopped_or_killed_goes_on(cluster, tmp_path):
    """First Ctrl-C between a record and a checkpoint, then a kill in the middle of a run."""
    store = tiny_store(tmp_path)
    conditions = [c for c in tiny_conditions(overrides=LONG) if c.stage == "stage1-long"]
    command = [sys.executable, "-c", DRIVER, "sweep", "--stage", "stage1-long", *SET_TINY]
    command += ["--set", *LONG, "--out", str(tmp_path), "--device", "cpu", "--workers", "1"]
    command += ["--executor", "ray", "--address", cluster.address, "--checkpoint-every", "1"]

    code, said = stop_when(lambda: store.run_ids() and begun_in(store), signal.SIGINT, command)
    assert code == 130
    assert said[-1] == "cifarlib: stopped; the same command goes on from here"
    finished = {name: store.run_path(name).read_bytes() for name in store.run_ids()}
    assert 0 < len(finished) < len(conditions)
    kept = [path.read_bytes() for path in begun_in(store)]
    assert kept
    assert all(checkpoints.unpack_checkpoint(content) for content in kept)
    nodes = cluster.list_all_nodes()
    wait_for(lambda: not any(is_on(n, "stage1-long") for n in nodes), "the end of the tasks")

    for checkpoint in store.state.glob("*.pt"):
        checkpoint.unlink()
    code, _ = stop_when(lambda: list(store.state.glob("*.pt")), signal.SIGKILL, command)
    assert code == -signal.SIGKILL
    begun = [c for c in conditions if (store.state / f"{c.run_id}.pt").exists()]
    outcome, _ = sweep_on(cluster, begun, store, checkpoint_every=1)
    assert outcome == executors.Outcome(done=len(begun))
    assert [store.read_run(c.run_id).provenance.resumed for c in begun] == [1] * len(begun)
    assert finished == {name: store.run_path(name).read_bytes() for name in finished}


DRIVER = """
import sys
from cifarlib import cli
code = cli.main(sys.argv[1:])
assert "torch" not in sys.modules, "the sweep's machine imported torch"
sys.exit(code)
"""


def begun_in(store: RecordStore) -> list[Path]:
    """The checkpoints of runs that have no record."""
    done = store.run_ids()
    return [path for path in store.state.glob("*.pt") if path.stem not in done]


def stop_when(happened, number: int, command: list[str]) -> tuple[int, list[str]]:
    """Send a command a signal once something has happened: its exit code, and what it said."""
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        wait_for(happened, "what the signal waits for")
        os.killpg(process.pid, number)
        said = process.communicate(timeout=DEADLINE)[1].splitlines()
    finally:
        process.kill()
    return process.returncode, said


@needs_ray
def test_a_sweep_in_slices_ends_in_time_and_goes_on_here_or_there(cluster, tmp_path, monkeypatch):
    """A run too long for its slice stops at an epoch's border; what has no time is not begun."""
    monkeypatch.setattr(progress.Prices, "seconds", lambda _, config: 4.0 * config.epochs)
    long, other = conditions = tiny_conditions(*NAMES[:2], overrides=("epochs.200=500",))
    store = tiny_store(tmp_path)

    for _ in range(4):  # on a busy machine, a slice may end before the first epoch does
        deadline = time.monotonic() + 32
        outcome, said = sweep_on(cluster, conditions, store, workers=1, deadline=deadline)
        assert time.monotonic() < deadline
        assert (outcome.stopped, outcome.left, outcome.done) == ([long.name], [other.name], 0)
        assert outcome.failed == outcome.retried == {}
        assert outcome.seconds_left > 0
        if left := [*store.state.iterdir()]:
            break
    (checkpoint,) = left  # and no lock
    epoch = checkpoint_epoch(checkpoint)
    at_border = f"{long.name}: stopped after epoch {epoch} of 500, its checkpoint is kept"
    too_busy = f"{long.name}: stopped within an epoch"  # whose node was too slow to say so in time
    assert said[-1] in (at_border, too_busy)
    assert checkpoints.unpack_checkpoint(checkpoint.read_bytes())

    deadline = time.monotonic() + 14
    with contextlib.redirect_stderr(io.StringIO()):
        outcome = sweep.sweep(
            conditions, store, device="cpu", threads=1, workers=1, deadline=deadline
        )
    assert (outcome.stopped, outcome.left) == ([long.name], [other.name])
    assert checkpoint_epoch(checkpoint) > epoch


@needs_ray
def test_a_run_that_no_node_has_room_for_is_refused(cluster, tmp_path):
    executor = partial(RayExecutor, address=cluster.address)
    with pytest.raises(RunError, match="no node of the cluster has 99 CPUs for a run; ask for"):
        sweep.sweep(tiny_conditions(NAMES[2]), tiny_store(tmp_path), threads=99, executor=executor)


@needs_ray
def test_a_lost_node_costs_an_epoch_and_changes_no_result(cluster, tmp_path):
    """It is killed once a run of its has handed back a checkpoint; the head takes that run up."""
    conditions = tiny_conditions(*NAMES, overrides=LONG)
    conditions.sort(key=lambda c: -c.config.epochs)  # a long one for each node, first
    store, doomed, lost = tiny_store(tmp_path / "cluster"), second_node(cluster), []

    def watch(message: Message) -> None:
        if message.kind == "checkpoint" and not lost:
            for condition in conditions:
                kept = (store.state / f"{condition.run_id}.pt").exists()
                if kept and is_on(doomed, condition.name):
                    lose(cluster, doomed)
                    lost.append(condition)
                    return

    settings = {"checkpoint_every": 1, "watch": watch, "keep_weights": True}
    outcome, said = sweep_on(cluster, conditions, store, **settings)
    assert outcome == executors.Outcome(done=3)
    assert said[0].startswith("0 of 3 runs are recorded; 3 to go, workers: 2, about ")
    (victim,) = lost
    line = f"{victim.name}: its node or its process is lost; to be taken up again"
    assert line in said
    assert store.read_run(victim.run_id).provenance.resumed == 1
    kept = store.weights_path(victim.run_id).parent
    assert list(store.state.iterdir()) == [kept]  # no lock, no checkpoint
    assert len(list(kept.iterdir())) == 3

    local = tiny_store(tmp_path / "local")
    with contextlib.redirect_stderr(io.StringIO()):
        sweep.sweep(conditions, local, device="cpu", threads=1, workers=2)
    for condition in conditions:
        ours, theirs = (s.read_run(condition.run_id) for s in (store, local))
        assert ours.result == theirs.result
        assert ours.provenance.threads == theirs.provenance.threads == 1
        build_network(theirs, store.weights_path(condition.run_id))  # refuses other weights


# ---------------------------------------------------------------------------------------------
# Without a cluster
# ---------------------------------------------------------------------------------------------


def refused(arguments: list[str], folder: Path, capsys) -> str:
    tiny_store(folder)
    assert cli.main(["sweep", "--out", str(folder), *SET_TINY, *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_without_ray_there_is_one_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert refused(["--executor", "ray"], tmp_path, capsys) == (
        "cifarlib: this needs ray, which is not installed: pip install 'cifarlib[ray]', or in a "
        "checkout `make .venv/.installed`"
    )


@needs_ray
@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere"])
def test_an_address_without_a_cluster_gets_one_sentence(address, tmp_path, capsys):
    said = refused(["--executor", "ray", "--address", address], tmp_path, capsys)
    assert said.startswith(f"cifarlib: --address {address}: no Ray cluster answers there (")


def test_an_address_is_for_ray_only(tmp_path, capsys):
    said = refused(["--address", "127.0.0.1:6379"], tmp_path, capsys)
    assert said == "cifarlib: --address is of a Ray cluster; add --executor ray"


# ---------------------------------------------------------------------------------------------
# Messages, data and cards
# ---------------------------------------------------------------------------------------------


def make_relay(folder: Path, **settings) -> Relay:
    (condition,) = tiny_conditions(NAMES[0])
    job = RunJob(condition.run_id, condition.name, condition.config)
    relay = Relay(job, RecordStore(folder), **settings)
    relay.checkpoint.parent.mkdir(parents=True)
    relay.checkpoint.write_bytes(b"a state")
    return relay


def test_images_are_counted_together(tmp_path):
    relay = make_relay(tmp_path, every_checkpoint=True)
    relay.IMAGES = 0.2
    for _ in range(3):
        relay.send(Message("images", images=20))
    time.sleep(0.2)
    relay.send(Message("images", images=20))
    relay.send(Message("failed"))
    assert [(m.kind, m.images) for m in relay] == [("images", 80), ("failed", 0)]


@pytest.mark.parametrize("every", [True, False])
def test_a_checkpoint_is_handed_back_with_its_content(tmp_path, every):
    """Each that was asked for by number of epochs; else those that are worth it, and the last."""
    relay = make_relay(tmp_path, every_checkpoint=every)
    relay.send(Message("checkpoint", epoch=1))
    relay.send(Message("stopped", text="stopped after epoch 2"))
    kinds = ["checkpoint"] * (1 + every) + ["stopped"]
    messages = list(relay)
    assert [m.kind for m in messages] == kinds
    assert all(m.content == b"a state" for m in messages if m.kind == "checkpoint")


def test_a_worker_that_ends_without_a_word_leaves_nobody_waiting(monkeypatch):
    monkeypatch.setattr(ray_node, "carry_out", lambda *_: None)
    (condition,) = tiny_conditions(NAMES[0])
    packed = pickle.dumps(RunJob(condition.run_id, condition.name, condition.config))
    assert list(serve_task(packed, None, None, "cpu", 1, None, None)) == []


def test_what_ends_a_whole_sweep_names_the_node(tmp_path):
    relay = make_relay(tmp_path, every_checkpoint=True)
    relay.send(Message("fatal", text="the disk is full"))
    (message,) = relay
    assert message.text == f"{socket.gethostname()}: the disk is full"


def test_a_node_hands_a_run_back_when_its_time_is_over_and_goes_on_from_there(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # which a node sets
    (condition,) = tiny_conditions(NAMES[0])
    job = RunJob(condition.run_id, condition.name, condition.config, keep_weights=True)
    packed = pickle.dumps(job)
    checkpoint, said = None, []
    for end in (time.time(), time.time(), None):
        messages = list(serve_task(packed, None, checkpoint, "cpu", 1, None, end))
        checkpoint = next((m.content for m in messages if m.kind == "checkpoint"), None)
        said.append((messages[-1].kind, messages[-1].text))
    assert said == [
        ("stopped", "stopped after epoch 1 of 3"),
        ("stopped", "stopped after epoch 2 of 3"),
        ("done", ""),
    ]
    record = messages[-1].record
    assert record.run_id == condition.run_id
    assert record.provenance.resumed == 2
    path = tmp_path / f"{record.run_id}.pt"
    path.write_bytes(messages[-1].content)
    build_network(record, path)  # refuses other weights


def test_a_data_set_is_put_in_place_once_and_verified(tmp_path):
    source, asked = data.find("synthetic"), []

    def read(file: str) -> bytes:
        asked.append(file)
        return (source / file).read_bytes()

    folder = data.install("synthetic", tmp_path, read)
    assert sorted(asked) == sorted(DATASETS["synthetic"].files)
    assert data.install("synthetic", tmp_path, read) == folder
    assert len(asked) == len(DATASETS["synthetic"].files)
    data.verify(DATASETS["synthetic"], folder)
    with pytest.raises(DataError, match="is damaged"):
        data.install("synthetic", tmp_path / "other", lambda file: read(file)[:-1])
    assert list((tmp_path / "other").iterdir()) == []


def test_a_run_of_larger_batches_takes_more_of_a_card():
    configs = sorted((c.config for c in tiny_conditions()), key=lambda c: c.batch_size)
    shares = {c.batch_size: gpu_share(c) for c in configs if c.model.name == "residual"}
    assert list(shares.values()) == sorted(shares.values())
    assert 1 / executors.LANES == shares[32] < shares[256] <= 1


def test_a_record_survives_the_way(tmp_path):
    """It is written by the sweep's machine exactly as the node would have."""

    (condition,) = tiny_conditions(NAMES[0])
    record = make_record(condition)
    there = pickle.loads(pickle.dumps(Message("done", record=record))).record
    ours, theirs = RecordStore(tmp_path / "ours"), RecordStore(tmp_path / "theirs")
    assert ours.write(there).read_bytes() == theirs.write(record).read_bytes()
    assert np.array_equal(there.result.predictions.weights, record.result.predictions.weights)
