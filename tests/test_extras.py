"""Without torch: what reads records works, what trains says in one sentence what to install."""

import subprocess
import sys

import pytest
from conftest import BLOCKER, SET_TINY, make_record, tiny_conditions, tiny_store, write_records

from cifarlib import extras
from cifarlib.errors import MissingPackageError

NEEDS_TORCH = (
    "cifarlib: this needs torch, which is not installed: pip install 'cifarlib[train]', or in a "
    "checkout `make .venv/.installed`"
)


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
    [("run", "stage1-daa1/5"), ("sweep",), ("verify", "--run", "stage1-daa1/13")],
    ids=lambda command: command[0],
)
def test_a_command_that_trains_says_what_to_install(command, without_torch, build):
    done = without_torch(*command, "--out", build, *SET_TINY)
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (2, "", [NEEDS_TORCH])


def test_a_command_that_imports_torch_says_what_to_install(without_torch, tmp_path):
    done = without_torch("bench", "--out", str(tmp_path))
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (2, "", [NEEDS_TORCH])


def test_commands_that_read_records_need_no_torch(without_torch, build, tmp_path):
    """The command ``report`` finds none, either: see the fixture of that name."""
    options = ("--out", build, *SET_TINY)
    for command in (
        ("status", *options),
        ("why", "stage1-daa1/5", *options),
        ("diff", build, build),
        ("export", "--to", str(tmp_path / "x.zip"), *options),
    ):
        done = without_torch(*command)
        assert done.returncode == 0, done.stderr


def test_a_sweep_with_nothing_to_train_needs_no_torch(without_torch, tmp_path):
    store = tiny_store(tmp_path)
    write_records(store, tiny_conditions())
    done = without_torch("sweep", "--out", str(tmp_path), *SET_TINY)
    assert (done.returncode, done.stderr) == (0, "nothing is missing\n")


def test_every_extra_package_is_named_with_its_extra():
    assert "cifarlib[ray]" in str(extras.missing("ray"))
    assert extras.explain(ModuleNotFoundError("", name="torch.nn")).args == (NEEDS_TORCH[10:],)
    assert extras.explain(ModuleNotFoundError("", name="nothing")) is None


def test_require_raises_for_the_first_package_that_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingPackageError, match=r"needs ray.*cifarlib\[ray\]"):
        extras.require("torch", "ray")
