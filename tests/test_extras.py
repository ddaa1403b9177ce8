"""Without torch: what reads records works, what trains says in one sentence what to install."""

import os
import subprocess
import sys

import pytest
from conftest import SET_TINY, make_record, tiny_conditions, tiny_store

from cifarlib import extras, paths
from cifarlib.errors import MissingPackageError

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""

NEEDS_TORCH = (
    "cifarlib: this needs torch, which is not installed: pip install 'cifarlib[train]', or in a "
    "checkout `make .venv/.installed`"
)


@pytest.fixture(scope="module")
def without_torch(tmp_path_factory):
    """Run a command in a process, and kernels and workers of it, that find no torch."""
    folder = tmp_path_factory.mktemp("blocker")
    (folder / "sitecustomize.py").write_text(BLOCKER, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(paths.ROOT)])}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cifarlib.cli", *arguments]
        return subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, cwd=folder
        )

    return run


@pytest.fixture(scope="module")
def build(tmp_path_factory) -> str:
    """A build folder with one record of many."""
    folder = tmp_path_factory.mktemp("build")
    (condition,) = tiny_conditions("stage1-daa1/13")
    tiny_store(folder).write(make_record(condition))
    return str(folder)


def test_the_blocker_hides_torch(without_torch):
    assert without_torch("status").returncode == 0
    found = subprocess.run(
        [sys.executable, "-c", BLOCKER + "import torch"], capture_output=True, text=True
    )
    assert "No module named 'torch'" in found.stderr


@pytest.mark.parametrize(
    "command",
    [
        ("run", "stage1-daa1/5"),
        ("sweep",),
        ("verify", "--run", "stage1-daa1/13"),
    ],
    ids=lambda command: command[0],
)
def test_a_command_that_trains_says_what_to_install(command, without_torch, build):
    done = without_torch(*command, "--out", build, *SET_TINY)
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (2, "", [NEEDS_TORCH])


def test_a_command_that_imports_torch_says_what_to_install(without_torch, tmp_path):
    done = without_torch("bench", "--out", str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (2, "", [NEEDS_TORCH])


@pytest.mark.parametrize(
    "command",
    [("status",), ("why", "stage1-daa1/5"), ("report", "--only", "stage1", "--set", "epochs.10=1")],
    ids=lambda command: command[0],
)
def test_a_command_that_reads_records_needs_no_torch(command, without_torch, build):
    done = without_torch(*command[:1], "--out", build, *SET_TINY, *command[1:])
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert done.stdout


def test_builds_are_compared_and_packed_without_torch(without_torch, build, tmp_path):
    assert without_torch("diff", build, build).returncode == 0
    done = without_torch("export", "--out", build, "--to", str(tmp_path / "x.zip"), *SET_TINY)
    assert (done.returncode, (tmp_path / "x.zip").exists()) == (0, True), done.stderr


def test_a_sweep_with_nothing_to_train_needs_no_torch(without_torch, tmp_path):
    store = tiny_store(tmp_path)
    for condition in tiny_conditions():
        store.write(make_record(condition))
    done = without_torch("sweep", "--out", str(tmp_path), *SET_TINY)
    assert (done.returncode, done.stderr) == (0, "nothing is missing\n")


def test_every_extra_package_is_named_with_its_extra():
    assert "cifarlib[lab]" in str(extras.missing("ipywidgets"))
    assert extras.explain(ModuleNotFoundError("", name="torch.nn")).args == (NEEDS_TORCH[10:],)
    assert extras.explain(ModuleNotFoundError("", name="nothing")) is None


def test_require_raises_for_the_first_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"needs ray.*cifarlib\[ray\]"):
        extras.require("torch", "ray")
