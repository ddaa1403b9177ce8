"""The difference of two builds, from their records and their pages."""

import re
import shutil

import pytest
from conftest import make_record

from cifarlib import cli
from cifarlib.errors import ConfigError
from cifarlib.report import assembly, difference, front
from cifarlib.runs.results import open_results
from cifarlib.runs.store import RecordStore


@pytest.fixture(scope="module")
def build(report, tmp_path_factory):
    """A page of one of the report's chapters, for speed, over the records of four runs."""
    folder = tmp_path_factory.mktemp("builds") / "first"
    recorded = open_results("smoke", [], report)
    (folder / "runs").mkdir(parents=True)
    for condition in recorded.conditions[:4]:
        shutil.copy(recorded.store.run_path(condition.run_id), folder / "runs")
    told = front.describe(open_results("smoke", [], folder), "--scale smoke")
    chapter = report / "notebooks" / "03_stage2.ipynb"
    assembly.assemble([chapter], folder / "report.html", told, partial=True)
    return folder


@pytest.fixture(scope="module")
def conditions():
    return open_results("smoke", []).conditions


@pytest.fixture
def other(build, tmp_path):
    return shutil.copytree(build, tmp_path / "second")


def find(sections, title):
    return next((s.changes for s in sections if s.title == title), [])


def compare(first, second):
    return difference.compare(difference.read(first), difference.read(second))


def edit(folder, old, new, behind=""):
    """Replace a text of the page once, where it follows another."""
    page = folder / "report.html"
    before, mark, text = page.read_text(encoding="utf-8").rpartition(behind or "<html")
    assert old in text
    page.write_text(before + mark + text.replace(old, new, 1), encoding="utf-8")


def test_a_build_does_not_differ_from_its_copy(build, other, capsys):
    assert cli.main(["diff", str(build), str(other)]) == 0
    assert capsys.readouterr().out == "no difference\n"


def test_a_page_holds_tables_figures_and_runs(build, conditions):
    page = difference.read(build / "report.html")
    assert page.records is None
    assert "XIII" in page.tables
    assert [c for c in page.tables["XIII"].columns if c in ("Test, paper", "Test, ours")] == [
        "Test, paper",
        "Test, ours",
    ]
    assert all(len(row) == len(page.tables["XIII"].columns) for row in page.tables["XIII"].rows)
    assert page.figures
    assert set(page.runs) == {c.run_id for c in conditions}
    assert page.origin["Engine"]


def test_runs_that_came_went_and_changed_are_named(build, other, conditions):
    store = RecordStore(other)
    first, second = conditions[:2]
    store.run_path(first.run_id).unlink()
    added = make_record(next(c for c in conditions if c.name == "stage3/3"))
    store.write(added)
    old, new = store.read_run(second.run_id), make_record(second)
    store.write(new)
    sections = compare(build, other)
    runs = find(sections, "Runs")
    assert f"only in the first: {first.name} ({first.run_id[:8]})" in runs
    assert any(line.startswith("only in the second: stage3/3") for line in runs)
    told = " → ".join(f"{record.accuracy('test'):.2f} %" for record in (old, new))
    assert f"{second.name} ({second.run_id[:8]}): test {told}" in runs
    (told,) = (line for line in find(sections, "Versions and devices") if "device:" in line)
    both = sorted((old.provenance.device, new.provenance.device))
    assert told == f"device: {old.provenance.device} → {', '.join(both)}"


def test_other_provenance_alone_is_no_other_result(build, other):
    store = RecordStore(other)
    record = store.read_run(store.run_ids()[0])
    later = record.provenance.model_copy(update={"finished": "2026-01-01T00:00:00+00:00"})
    store.write(record.model_copy(update={"provenance": later}))
    assert compare(build, other) == []


def test_a_changed_cell_is_told_by_row_and_column(build, other):
    table = difference.read(build).tables["XIII"]
    column = table.columns.index("Test, ours")
    row = next(r for r in table.rows if r[column] not in ("pending", "–"))
    edit(other, f">{row[column]}<", ">99.9<")
    changes = find(compare(build, other), "Tables")
    assert len(changes) == 1
    assert changes[0].startswith("Table ")
    assert changes[0].endswith(f"{row[column]} → 99.9")


def test_a_page_that_is_cut_off_is_refused(other, capsys):
    page = other / "report.html"
    page.write_bytes(page.read_bytes().rpartition(b"</body>")[0])
    assert cli.main(["diff", str(other), str(other)]) == 2
    assert f"{page} is damaged; make it again" in capsys.readouterr().err


def test_changed_figures_and_origins_are_told(build, other):
    edit(other, "fill: var(--page)", "fill: red")
    (torch,) = {
        record.provenance.versions["torch"]
        for record in RecordStore(build).read_runs(RecordStore(build).run_ids())[0].values()
    }
    edit(other, f"torch {torch}", "torch 9.9.9", behind="<dt>Versions</dt>")
    sections = compare(build, other)
    assert len(find(sections, "Figures")) == 1
    assert find(sections, "Figures")[0].endswith("is drawn differently")
    (told,) = find(sections, "Provenance")
    assert re.fullmatch(rf"Versions: .*torch {re.escape(torch)}.* → .*torch 9\.9\.9.*", told)


def test_verdicts_are_told_by_claim():
    columns = ["No.", "Claim", "Paper", "Ours", "Verdict"]
    pages = [
        difference.Build("", page=True, tables={"C2": difference.Table(columns, [row])})
        for row in (
            ["1", "Rate decides (§V)", "0.9", "0.8", "held"],
            ["1", "Rate decides (§V)", "0.9", "0.1", "failed"],
        )
    ]
    (section,) = difference.compare(*pages)
    assert section == difference.Section(
        "Verdicts", ["Rate decides (§V): held (0.8) → failed (0.1)"]
    )


def test_much_is_cut_unless_all_is_asked_for(build, other, capsys):
    shutil.rmtree(other / "runs")
    (other / "runs").mkdir()
    assert cli.main(["diff", str(build), str(other)]) == 1
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "Runs: 4"
    sections = [difference.Section("Tables", [f"cell {n}" for n in range(20)])]
    assert difference.tell(sections)[-1] == "  … and 8 more (--all)"
    assert len(difference.tell(sections, 0)) == 21


def test_without_a_page_only_records_are_compared(build, other, capsys):
    (other / "report.html").unlink()
    assert cli.main(["diff", str(build), str(other)]) == 0
    assert f"{other} has no report.html" in capsys.readouterr().err


def test_records_and_a_page_have_nothing_to_compare(build, other, capsys):
    (other / "report.html").unlink()
    for pair in ((build / "report.html", other), (other, build / "report.html")):
        assert cli.main(["diff", *map(str, pair)]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert "nothing in common to compare" in said
        assert f"{other} has no report.html" in said


@pytest.mark.parametrize("made", ["nothing", "folder", "page", "record"])
def test_what_is_no_build_is_refused(build, tmp_path, made, capsys):
    place = tmp_path / "place"
    if made in ("folder", "record"):
        place.mkdir()
    if made == "page":
        place.write_text("<p>hello</p>")
    if made == "record":
        (place / "runs").mkdir()
        (place / "runs" / "0123456789abcdef.json").write_text("{")
    with pytest.raises(ConfigError):
        difference.read(place)
    assert cli.main(["diff", str(build), str(place)]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
