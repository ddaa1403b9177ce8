"""What happens to a build folder's records and pages when their files are damaged."""

import json
import os
import random
import subprocess
import sys
import threading

import nbformat
import pytest
import torch
from conftest import SET_TINY, make_record, tiny_conditions, tiny_store, wait_for
from faults import REPETITIONS, open_fault
from nbformat.v4 import new_code_cell, new_notebook

from cifarlib import cli
from cifarlib.errors import RecordError
from cifarlib.report import assembly as report
from cifarlib.report import difference, notebooks
from cifarlib.runs import locks
from cifarlib.runs.store import RecordStore, encode
from cifarlib.runs.weights import KeptWeights, read_weights, write_weights

pytestmark = pytest.mark.long

REPEATS = 20 * min(REPETITIONS, 10)


def damage(content: bytes, other: bytes, chance: random.Random, *, flips: bool = True) -> bytes:
    """Another content of a file: cut, perhaps a bit flipped, emptied, garbage or another's."""
    cut = chance.randrange(len(content) - 2)  # what follows the last brace is blank
    place, bit = chance.randrange(len(content) - 2), 1 << chance.randrange(8)
    flipped = content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
    if not flips or flipped.lower() == content.lower():  # 1e-5 and 1E-5 are one number
        flipped = b""
    kinds = [content[:cut], flipped, b"", chance.randbytes(99), b"[1]", b"{}", b"null", other]
    return chance.choice(kinds)


def test_a_damaged_record_is_never_read_as_good(tmp_path, capsys):
    first, second = tiny_conditions()[:2]
    other = encode(make_record(second))
    with open_fault("Record damaged", "of runs, the data set and the network") as fault:
        for number in range(REPEATS):
            store = tiny_store(tmp_path / str(number))
            reads = {
                store.write(make_record(first)): lambda s=store: s.read_run(first.run_id),
                store.data_path("synthetic"): lambda s=store: s.read_data("synthetic"),
                store.network_path: store.read_network,
            }
            path = fault.random.choice([*reads])
            path.write_bytes(damage(path.read_bytes(), other, fault.random))
            with fault.attempt():
                with pytest.raises(RecordError) as caught:
                    reads[path]()
                assert path.name in str(caught.value)
                assert "\n" not in str(caught.value)
                if number % 10 == 0:
                    assert cli.main(["status", "--out", str(store.folder), *SET_TINY]) == 0
                    assert "Traceback" not in capsys.readouterr().err


def test_damaged_weights_are_never_read_as_good(tmp_path):
    path = tmp_path / "0123.pt"
    kept = KeptWeights({"fc.weight": torch.ones(2, 3)}, (0.5, 0.4, 0.3), (0.25, 0.24, 0.23))
    write_weights(path, kept)
    whole = path.read_bytes()
    with open_fault("Kept weights damaged") as fault:
        for _ in range(REPEATS):
            path.write_bytes(damage(whole, b"another's", fault.random))
            with fault.attempt(), pytest.raises(RecordError, match=r"0123\.pt is damaged: "):
                read_weights(path)


PAGE = difference.embed(b"<html><body></body></html>\n", difference.Shown())


def test_damaged_inputs_are_refused_and_nothing_is_written(tmp_path, capsys):
    first, second = tiny_conditions()[:2]
    with open_fault(
        "Input of merge, diff, export damaged", "records, pages, PDF, notebooks"
    ) as fault:
        for number in range(REPEATS // 4):
            chance, theirs = fault.random, tiny_store(tmp_path / str(number))
            ours = RecordStore(tmp_path / f"{number} ours")
            record = theirs.write(make_record(first))
            theirs.write(make_record(second))
            built = [
                theirs.folder / name for name in ("report.html", "report.pdf", "notebooks/01.ipynb")
            ]
            built[2].parent.mkdir()
            contents = (PAGE, b"%PDF-1.7\n%%EOF", b'{"cells": []}\n')
            for path, content in zip(built, contents, strict=True):
                path.write_bytes(content)
            path = chance.choice([record, *built])
            path.write_bytes(damage(path.read_bytes(), b"{}", chance, flips=path == record))
            commands = {
                "merge": ["merge", str(theirs.folder), "--out", str(ours.folder), *SET_TINY],
                "diff": ["diff", str(theirs.folder), str(theirs.folder)],
                "export": ["export", "--out", str(theirs.folder), *SET_TINY],
            }
            met = {record: ("merge", "diff", "export"), built[0]: ("diff", "export")}
            for name in met.get(path, ("export",)):
                with fault.attempt():
                    missing = name == "diff" and path == record  # on both sides
                    assert cli.main(commands[name]) == (0 if missing else 2)
                    told = capsys.readouterr()
                    lines = 4 if missing else 1  # of two folders: damage, and no page
                    assert len(told.err.splitlines()) == lines
                    assert str(path) in told.err + told.out
            assert list(tmp_path.rglob("*.zip")) == []
            taken = [second.run_id] if path == record else []  # the good one of the two
            assert ours.run_ids() == taken


def test_a_lock_is_held_whatever_its_file_holds(tmp_path, capsys):
    """A folder in its place is named; ``status`` takes neither for a run that is being trained."""
    condition = tiny_conditions()[0]
    store = tiny_store(tmp_path)
    path = store.state / f"{condition.run_id}.lock"
    path.parent.mkdir()
    with open_fault("Lock damaged", "garbage, emptied, or a folder of that name") as fault:
        capsys.readouterr()
        for content in [None, b"", *(fault.random.randbytes(99) for _ in range(REPETITIONS))]:
            with fault.attempt():
                path.mkdir() if content is None else path.write_bytes(content)
                assert cli.main(["status", "--json", "--out", str(tmp_path), *SET_TINY]) == 0
                rows = json.loads(capsys.readouterr().out).values()
                assert sum(row["running"] for row in rows) == 0
                if content is None:
                    with (
                        pytest.raises(RecordError, match="a folder stands where the lock"),
                        locks.lock(path),
                    ):
                        pass
                    path.rmdir()
                    continue
                with locks.lock(path) as held, locks.lock(path) as again:
                    assert (held, again) == (True, False)


def test_a_second_report_waits_for_the_first(tmp_path):
    path, events, told = tmp_path / "state" / "report.lock", [], []

    def second() -> None:
        with report._alone(path, told.append):
            events.append("second")

    thread = threading.Thread(target=second)
    with locks.lock(path):
        thread.start()
        assert "waiting" in wait_for(lambda: "".join(told), "a word of the second")
        events.append("first")
    thread.join()
    assert events == ["first", "second"]


@pytest.mark.parametrize("kind", ["a file", "under a file"])
def test_no_home_leaves_no_trace_in_a_notebook(tmp_path, monkeypatch, kind):
    home = tmp_path / "home"
    home.touch()
    monkeypatch.setenv("HOME", str(home if kind == "a file" else home / "inside"))
    monkeypatch.delenv("MPLCONFIGDIR", raising=False)
    notebook = new_notebook(cells=[new_code_cell("import matplotlib.pyplot")])
    nbformat.write(notebook, tmp_path / "01_a.ipynb")
    with notebooks.plain_matplotlib():
        (executed,) = notebooks.execute_all([tmp_path / "01_a.ipynb"], tmp_path / "out", [{}])
    assert "MPLCONFIGDIR" not in os.environ
    assert [cell.outputs for cell in nbformat.read(executed, as_version=4).cells] == [[]]
    assert home.read_bytes() == b""


def test_figures_are_drawn_the_same_whoever_renders_them(tmp_path, monkeypatch):
    settings = tmp_path / "matplotlib"
    settings.mkdir()
    (settings / "matplotlibrc").write_text("lines.linewidth: 6\ntext.usetex: True\n")
    monkeypatch.setenv("MPLCONFIGDIR", str(settings))
    monkeypatch.setenv("MATPLOTLIBRC", str(settings))
    monkeypatch.setenv("MPLBACKEND", "garbage")
    code = (
        "import matplotlib.pyplot as plt\n"
        "print(plt.rcParams['lines.linewidth'], plt.rcParams['text.usetex'])"
    )
    nbformat.write(new_notebook(cells=[new_code_cell(code)]), tmp_path / "01_a.ipynb")
    with notebooks.plain_matplotlib():
        (executed,) = notebooks.execute_all([tmp_path / "01_a.ipynb"], tmp_path / "out", [{}])
    (cell,) = nbformat.read(executed, as_version=4).cells
    assert [output.text for output in cell.outputs] == ["1.5 False\n"]
    assert os.environ["MATPLOTLIBRC"] == str(settings)
    assert os.environ["MPLBACKEND"] == "garbage"


@pytest.mark.parametrize(
    "setting", [{"HOME": "/dev/null/nobody"}, {"MPLBACKEND": "garbage"}], ids=["home", "backend"]
)
def test_no_home_or_backend_leaves_no_trace_on_the_command_line(tmp_path, setting):
    command = [sys.executable, "-m", "cifarlib", "report", "--only", "nothing"]
    environment = {name: os.environ[name] for name in os.environ if name != "MPLCONFIGDIR"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path)],
        env=environment | setting,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "there is no such chapter" in done.stderr


def test_what_a_killed_report_left_is_cleared_up(tmp_path):
    nbformat.write(new_notebook(cells=[new_code_cell("1")]), tmp_path / "01_a.ipynb")
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / ".01_a.ipynb.x1y2").write_text("half of it")
    notebooks.execute_all([tmp_path / "01_a.ipynb"], folder, [{}])
    assert [path.name for path in folder.iterdir()] == ["01_a.ipynb"]
