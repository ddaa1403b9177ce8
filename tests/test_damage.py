"""What happens to a build folder's records and pages when their files are damaged."""

import os
import random
import threading

import nbformat
import pytest
from conftest import make_record, tiny_conditions, tiny_store
from nbformat.v4 import new_code_cell, new_notebook

from cifarlib import cli, data, locks, report
from cifarlib.errors import DataError, RecordError
from cifarlib.records import encode

REPEATS = 20 * int(os.environ.get("CIFARLIB_FAULTS") or 2)
SEED = int(os.environ.get("CIFARLIB_FAULT_SEED") or 1)  # with the number, in the test's name


def damage(content: bytes, other: bytes, chance: random.Random) -> bytes:
    """Another content of a file: cut, a bit turned over, emptied, garbage or another's."""
    cut = chance.randrange(len(content) - 2)  # what follows the last brace is blank
    place, bit = chance.randrange(len(content) - 2), 1 << chance.randrange(8)
    flipped = content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
    if flipped.lower() == content.lower():  # 1e-5 and 1E-5 are one number
        flipped = b""
    kinds = [content[:cut], flipped, b"", chance.randbytes(99), b"[1]", b"{}", b"null", other]
    return chance.choice(kinds)


@pytest.mark.parametrize("number", range(REPEATS))
def test_a_damaged_record_is_never_read_as_good(tmp_path, capsys, number):
    chance = random.Random(f"{SEED} {number}")
    store = tiny_store(tmp_path)
    first, second = tiny_conditions()[:2]
    paths = [store.write(make_record(first)), store.data_path("synthetic"), store.network_path]
    other = encode(make_record(second))
    path = chance.choice(paths)
    path.write_bytes(damage(path.read_bytes(), other, chance))
    reads = (
        lambda: store.read_run(first.run_id),
        lambda: store.read_data("synthetic"),
        store.read_network,
    )
    with pytest.raises(RecordError) as caught:
        reads[paths.index(path)]()
    assert path.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert cli.main(["status", "--out", str(tmp_path)]) == 0
    assert "Traceback" not in capsys.readouterr().err


def test_a_second_report_waits_for_the_first(tmp_path, capsys):
    path, inside, events = tmp_path / "state" / "report.lock", threading.Event(), []

    def second() -> None:
        inside.set()
        with report._alone(path):
            events.append("second")

    with locks.lock(path):
        thread = threading.Thread(target=second)
        thread.start()
        inside.wait()
        thread.join(0.3)
        assert thread.is_alive()
        events.append("first")
    thread.join()
    assert events == ["first", "second"]
    assert "waiting" in capsys.readouterr().err


def test_want_of_memory_is_not_called_damage(tmp_path, monkeypatch):
    def load(self):
        raise MemoryError

    monkeypatch.setattr(data._BatchUnpickler, "load", load)
    path = tmp_path / "data_batch_1"
    path.touch()
    with pytest.raises(DataError, match="memory is short"):
        data.read_batch(path)


@pytest.mark.parametrize("kind", ["a file", "under a file"])
def test_no_home_leaves_no_trace_in_a_notebook(tmp_path, monkeypatch, kind):
    home = tmp_path / "home"
    home.touch()
    monkeypatch.setenv("HOME", str(home if kind == "a file" else home / "inside"))
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    notebook = new_notebook(cells=[new_code_cell("import matplotlib.pyplot")])
    nbformat.write(notebook, tmp_path / "01_a.ipynb")
    with report.settings_folder():
        (executed,) = report.execute_all([tmp_path / "01_a.ipynb"], tmp_path / "out", [{}])
    assert "MPLCONFIGDIR" not in os.environ
    assert [cell.outputs for cell in nbformat.read(executed, as_version=4).cells] == [[]]
    assert home.read_bytes() == b""


def test_what_a_killed_report_left_is_cleared_up(tmp_path):
    nbformat.write(new_notebook(cells=[new_code_cell("1")]), tmp_path / "01_a.ipynb")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".01_a.ipynb.x1y2").write_text("half of it")
    report.execute_all([tmp_path / "01_a.ipynb"], folder, [{}])
    assert [path.name for path in folder.iterdir()] == ["01_a.ipynb"]
