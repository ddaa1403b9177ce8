"""Where numbers come from: the commit, and whether what makes a run was changed since."""

import io
import platform
import re
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from conftest import tiny_conditions, tiny_store

from cifarlib import paths
from cifarlib.errors import ConfigError
from cifarlib.runs import provenance
from cifarlib.runs.sweep import sweep

STATED = "0123456789abcdef0123456789abcdef01234567"


def git(folder, *arguments):
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with the program and notebooks in it, in place of this one."""
    folder = tmp_path / "checkout"
    for name in ("cifarlib/training.py", "notebooks/01_data.ipynb", "notebooks/explore.ipynb"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("1\n")
    (folder / "cifarlib" / provenance.ARCHIVED).write_text("$Format:%H$\n")
    shutil.copy(paths.PACKAGE.parent / ".gitattributes", folder)
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "Begin")
    monkeypatch.setattr(paths, "PACKAGE", folder / "cifarlib")
    monkeypatch.delenv(provenance.VARIABLE, raising=False)
    provenance.commit.cache_clear()
    yield folder
    provenance.commit.cache_clear()


def asked(part=provenance.PROGRAM):
    provenance.commit.cache_clear()
    return provenance.commit(part)


def test_only_changes_of_the_part_count(checkout):
    assert [asked(part)[1] for part in (provenance.PROGRAM, provenance.REPORT)] == [False, False]
    (checkout / "notebooks/explore.ipynb").write_text("executed and saved by JupyterLab\n")
    (checkout / "cifarlib/new.py").write_text("untracked\n")
    assert [asked(part)[1] for part in (provenance.PROGRAM, provenance.REPORT)] == [False, False]
    (checkout / "notebooks/01_data.ipynb").write_text("2\n")
    assert [asked(part)[1] for part in (provenance.PROGRAM, provenance.REPORT)] == [False, True]
    (checkout / "cifarlib/training.py").write_text("2\n")
    assert [asked(part)[1] for part in (provenance.PROGRAM, provenance.REPORT)] == [True, True]


def test_a_process_keeps_the_commit_that_it_began_with(checkout):
    before = provenance.commit()
    assert before == (git(checkout, "rev-parse", "HEAD").decode().strip(), False)
    (checkout / "cifarlib/training.py").write_text("2\n")
    assert provenance.commit() == before


def test_a_repository_that_a_hook_names_is_not_asked(checkout, tmp_path, monkeypatch):
    before = asked()
    git(tmp_path, "init", "-q", "other")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "other/.git"))
    assert asked() == before


def test_outside_a_checkout_nothing_is_known(checkout, monkeypatch):
    shutil.rmtree(checkout / ".git")
    with monkeypatch.context() as patch:
        patch.setenv("GIT_CEILING_DIRECTORIES", str(checkout.parent))
        assert asked() == (None, None)
    git(checkout.parent, "init", "-q")  # a repository around a copy is not its checkout
    git(checkout.parent, "commit", "-q", "--allow-empty", "-m", "Another project")
    assert asked() == (None, None)


def test_an_archive_says_which_commit_it_is_of(checkout, tmp_path, monkeypatch):
    head = asked()[0]
    with tarfile.open(fileobj=io.BytesIO(git(checkout, "archive", "HEAD"))) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    monkeypatch.setattr(paths, "PACKAGE", tmp_path / "unpacked/cifarlib")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    assert asked() == (head, None)
    monkeypatch.setenv(provenance.VARIABLE, STATED)
    assert asked() == (STATED, None)


def test_this_package_has_a_place_for_an_archives_commit():
    written = (paths.PACKAGE / provenance.ARCHIVED).read_text().strip()
    assert written == "$Format:%H$" or re.fullmatch("[0-9a-f]{40}", written)


def test_a_stated_commit_is_for_where_there_is_no_git(checkout, monkeypatch):
    head = asked()[0]
    monkeypatch.setenv(provenance.VARIABLE, STATED)
    assert asked() == (head, False)
    shutil.rmtree(checkout / ".git")
    assert asked() == (STATED, None)
    monkeypatch.setenv(provenance.VARIABLE, "main")
    provenance.commit.cache_clear()
    with pytest.raises(ConfigError, match="CIFARLIB_COMMIT=main is no commit"):
        sweep(tiny_conditions("stage1-base/1"), tiny_store(checkout / "build"))


@pytest.mark.parametrize(
    ("commit", "dirty", "said"),
    [
        (STATED, False, "commit 0123456789ab"),
        (STATED, True, "commit 0123456789ab, with uncommitted changes"),
        (STATED, None, "commit 0123456789ab, changes unknown"),
        (None, None, "commit unknown"),
    ],
)
def test_a_commit_is_named_with_what_is_known_of_changes(commit, dirty, said):
    assert provenance.name_commit(commit, dirty) == said


@pytest.mark.parametrize(
    ("system", "cpuinfo", "name"),
    [
        ("linux", "processor : 0\nmodel name : A x 9\nmodel name : B\n", "A x 9"),
        ("linux", "CPU implementer : 0x41\nCPU part : 0xd0c\n", "aarch64 0x41/0xd0c"),
        ("linux", "", "aarch64"),
        ("darwin", "", "Apple M2"),
    ],
)
def test_a_processor_has_a_name_of_its_own(system, cpuinfo, name, monkeypatch):
    """Else two of them would have to train the same bits."""
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(subprocess, "check_output", lambda *_, **__: "Apple M2\n")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: cpuinfo)
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    monkeypatch.setattr(platform, "processor", lambda: "")
    assert provenance.processor() == name
