"""The difference of two builds, from their records and their pages."""

import shutil

import pytest
from conftest import TINY, make_record, tiny_conditions

from cifarlib import cli, report
from cifarlib.errors import ConfigError
from cifarlib.report import difference
from cifarlib.runs.store import RecordStore

CHAPTERS = ["stage2"]


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """A build folder with a page, of one chapter for speed, over a few made-up records."""
    folder = tmp_path_factory.mktemp("builds") / "first"
    for condition in tiny_conditions()[:2] + tiny_conditions("stage1-long/9", "stage1-long/13"):
        RecordStore(folder).write(make_record(condition))
    page = report.render("smoke", [*TINY, "epochs.10=1"], folder, only=CHAPTERS)
    page.rename(folder / "report.html")
    return folder


@pytest.fixture
def other(build, tmp_path):
    return shutil.copytree(build, tmp_path / "second")


def find(sections, title):
    return next((s.changes for s in sections if s.title == title), [])


def compare(first, second):
    return difference.compare(difference.read(first), difference.read(second))


def edit(folder, old, new):
    page = folder / "report.html"
    text = page.read_text(encoding="utf-8")
    assert text.count(old) >= 1
    page.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_a_build_does_not_differ_from_its_copy(build, other, capsys):
    assert cli.main(["diff", str(build), str(other)]) == 0
    assert capsys.readouterr().out == "no difference\n"


def test_a_page_holds_tables_figures_and_runs(build):
    page = difference.read(build / "report.html")
    assert page.records is None
    assert "XIII" in page.tables
    assert [c for c in page.tables["XIII"].columns if c in ("Test, paper", "Test, ours")] == [
        "Test, paper",
        "Test, ours",
    ]
    assert all(len(row) == len(page.tables["XIII"].columns) for row in page.tables["XIII"].rows)
    assert page.figures
    assert set(page.runs) == {c.run_id for c in tiny_conditions()}
    assert page.origin["Engine"]


def test_runs_that_came_went_and_changed_are_named(build, other):
    store = RecordStore(other)
    first, second, *_ = tiny_conditions()
    store.run_path(first.run_id).unlink()
    store.write(make_record(tiny_conditions("stage3/3")[0]))
    record = make_record(second, threads=2)
    history = record.result.history.model_copy(update={"training_loss": (None, 0.5)})
    result = record.result.model_copy(update={"history": history})
    store.write(record.model_copy(update={"result": result}))
    sections = compare(build, other)
    runs = find(sections, "Runs")
    assert f"only in the first: {first.name} ({first.run_id[:8]})" in runs
    assert any(line.startswith("only in the second: stage3/3") for line in runs)
    test = f"{record.accuracy('test'):.2f} %"
    assert f"{second.name} ({second.run_id[:8]}): test {test} → {test}" in runs
    assert find(sections, "Versions and devices") == ["threads: 1 → 1, 2"]


def test_other_provenance_alone_is_no_other_result(build, other):
    store = RecordStore(other)
    store.write(make_record(tiny_conditions()[0], finished="2026-01-01T00:00:00+00:00"))
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
    edit(other, "torch 2.11.0", "torch 9.9.9")
    sections = compare(build, other)
    assert len(find(sections, "Figures")) == 1
    assert find(sections, "Figures")[0].endswith("is drawn differently")
    assert find(sections, "Provenance") == [
        "Versions: python 3.11.2; torch 2.11.0 → python 3.11.2; torch 9.9.9"
    ]


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
