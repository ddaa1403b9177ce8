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
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from conftest import DEADLINE, SET_TINY, tiny_conditions, tiny_store, wait_for

from cifarlib import cli, data
from cifarlib.config import DATASETS
from cifarlib.errors import DataError, RunError
from cifarlib.runs import checkpoints, executors, progress, ray_executor, sweep, worker
from cifarlib.runs.ray_executor import RayExecutor, gpu_share
from cifarlib.runs.ray_node import Desk, serve_task
from cifarlib.runs.store import RecordStore
from cifarlib.runs.weights import build_network
from cifarlib.runs.worker import Message, RunJob, Settings

needs_ray = pytest.mark.skipif(
    not importlib.util.find_spec("ray"), reason="Ray is not installed: pip install '.[ray]'"
)

# Ray takes 127.0.0.1 to mean an address that others reach, unless it is told that there are none.
os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

pytestmark = pytest.mark.long

LONG = ("epochs.200=6",)
LOST = "its node or its process is lost; to be taken up again"
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
    """The processes of a node that run tasks."""
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
    """Whether a node runs a task."""
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
    kept = begun_in(store)
    assert kept
    assert all(checkpoints.read_checkpoint(path, store, print) for path in kept)
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
    epoch = store.checkpoint_epoch(checkpoint.stem)
    at_border = f"{long.name}: stopped after epoch {epoch} of 500, its checkpoint is kept"
    too_busy = f"{long.name}: stopped within an epoch"  # whose node was too slow to say so in time
    assert said[-1] in (at_border, too_busy)
    assert checkpoints.read_checkpoint(checkpoint, store, print)

    deadline = time.monotonic() + 14
    with contextlib.redirect_stderr(io.StringIO()):
        outcome = sweep.sweep(
            conditions, store, device="cpu", threads=1, workers=1, deadline=deadline
        )
    assert (outcome.stopped, outcome.left) == ([long.name], [other.name])
    assert store.checkpoint_epoch(checkpoint.stem) > epoch


@needs_ray
def test_a_run_that_no_node_has_room_for_is_refused(cluster, tmp_path):
    executor = partial(RayExecutor, address=cluster.address)
    with pytest.raises(RunError, match="no node of the cluster has 99 CPUs for a run"):
        sweep.sweep(tiny_conditions(NAMES[2]), tiny_store(tmp_path), threads=99, executor=executor)


@needs_ray
def test_a_lost_node_costs_an_epoch_and_changes_no_result(cluster, tmp_path, monkeypatch):
    """It is killed once a run of its has handed back a checkpoint; the head takes that run up."""
    conditions = tiny_conditions(*NAMES, overrides=LONG)
    conditions.sort(key=lambda c: -c.config.epochs)  # a long one for each node, first
    store, doomed, lost = tiny_store(tmp_path / "cluster"), second_node(cluster), []

    def lose_node(executor: RayExecutor, job: RunJob, message: Message) -> bool:
        if message.kind == "checkpoint" and not lost and is_on(doomed, job.name):
            lose(cluster, doomed)
            lost.append(job)
        return executors.Executor.hear(executor, job, message)

    monkeypatch.setattr(RayExecutor, "hear", lose_node)
    settings = {"checkpoint_every": 1, "keep_weights": True}
    outcome, said = sweep_on(cluster, conditions, store, **settings)
    assert outcome == executors.Outcome(done=3)
    assert said[0].startswith("0 of 3 runs are recorded; 3 to go, workers: 2, about ")
    (victim,) = lost
    assert f"{victim.name}: {LOST}" in said
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
    assert said.startswith(f"cifarlib: there is no Ray cluster to join at {address} (")


def test_an_address_is_for_ray_only(tmp_path, capsys):
    said = refused(["--address", "127.0.0.1:6379"], tmp_path, capsys)
    assert said == "cifarlib: --address is of a Ray cluster; add --executor ray"


# ---------------------------------------------------------------------------------------------
# A node's part, without Ray
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def desk(monkeypatch):
    """A desk whose methods are called at once, as if they were an actor's."""
    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(get=lambda value: value))
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")  # which a node sets, as it does the next
    monkeypatch.setattr(worker, "LEAST_WORK", worker.LEAST_WORK)
    own = Desk()
    methods = {name: SimpleNamespace(remote=getattr(own, name)) for name in ("begin", "put")}
    return SimpleNamespace(take=own.take, **methods)


def serve_on_node(desk, state: Path, end: float | None = None, files=None) -> Message:
    (condition,) = tiny_conditions(NAMES[0])
    job = RunJob(condition.run_id, condition.name, condition.config, keep_weights=True)
    settings = Settings("cpu", 1, 1, end)
    packed = pickle.dumps((job, settings, state / f"{job.run_id}.pt", 0.0))
    return serve_task(packed, files, desk)


def test_a_node_hands_a_run_back_when_its_time_is_over_and_goes_on_from_there(desk, tmp_path):
    for epoch in (1, 2):
        said = serve_on_node(desk, tmp_path, end=time.time())
        assert (said.kind, said.text) == ("stopped", f"stopped after epoch {epoch} of 3")
        assert desk.take()[-1] == (NAMES[0], Message("checkpoint", epoch=epoch))
    said = serve_on_node(desk, tmp_path)
    assert (NAMES[0], Message("note", text=LOST)) in desk.take()
    assert (said.kind, said.record.provenance.resumed) == ("done", 2)
    path = tmp_path / f"{said.record.run_id}.pt"
    path.write_bytes(said.content)
    build_network(said.record, path)  # refuses other weights


def test_a_worker_that_ends_without_a_word_is_a_failure(desk, tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "run_job", lambda *_: None)
    said = serve_on_node(desk, tmp_path)
    assert (said.kind, said.text) == ("failed", "it ended without a word")


def test_what_ends_a_whole_sweep_names_the_node(desk, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    files = {file: np.zeros(9, np.uint8) for file in DATASETS["synthetic"].files}
    said = serve_on_node(desk, tmp_path, files=("synthetic", files))
    assert said.kind == "fatal"
    assert said.text.startswith(f"{socket.gethostname()}: ")


def test_a_data_set_is_put_in_place_once_and_verified(tmp_path):
    source, asked = data.find("synthetic"), []

    def read(file: str) -> bytes:
        asked.append(file)
        return (source / file).read_bytes()

    folder = data.install("synthetic", tmp_path, read)
    assert data.install("synthetic", tmp_path, read) == folder
    assert sorted(asked) == sorted(DATASETS["synthetic"].files)
    data.verify(DATASETS["synthetic"], folder)
    with pytest.raises(DataError, match="is damaged"):
        data.install("synthetic", tmp_path / "other", lambda file: read(file)[:-1])
    assert list((tmp_path / "other").iterdir()) == []


def test_a_run_of_larger_batches_takes_more_of_a_gpu():
    configs = sorted((c.config for c in tiny_conditions()), key=lambda c: c.batch_size)
    shares = {c.batch_size: gpu_share(c) for c in configs if c.model.name == "residual"}
    assert list(shares.values()) == sorted(shares.values())
    assert 1 / executors.LANES == shares[32] < shares[256] <= 1
