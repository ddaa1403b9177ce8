"""Where numbers come from: the commit, and whether what makes a run was changed since."""

import subprocess

import pytest

from cifarlib import paths, provenance


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout with the program and a notebook in it, in place of this one."""
    for name in ("cifarlib/training.py", "notebooks/explore.ipynb"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_text("1\n")
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-q", "-m", "Begin"]):
        subprocess.run(["git", "-C", str(tmp_path), *command], check=True)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    provenance.commit.cache_clear()
    yield tmp_path
    provenance.commit.cache_clear()


def changed(part="."):
    provenance.commit.cache_clear()
    return provenance.commit(part)[1]


def test_only_changes_of_the_part_count(checkout):
    assert (changed(), changed("cifarlib")) == (False, False)
    (checkout / "notebooks/explore.ipynb").write_text("executed\n")
    (checkout / "cifarlib/new.py").write_text("untracked\n")
    assert (changed(), changed("cifarlib")) == (True, False)
    (checkout / "cifarlib/training.py").write_text("2\n")
    assert changed("cifarlib") is True


def test_a_process_keeps_the_commit_that_it_began_with(checkout):
    before = provenance.commit("cifarlib")
    assert len(before[0]) == 40
    (checkout / "cifarlib/training.py").write_text("2\n")
    assert provenance.commit("cifarlib") == before


def test_outside_a_checkout_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    provenance.commit.cache_clear()
    assert provenance.commit() == (None, None)
    provenance.commit.cache_clear()
