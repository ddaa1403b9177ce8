"""What differs between two builds, and between a report and the render before it."""

import shutil

import nbformat
import pytest
from conftest import TINY, make_record, tiny_conditions, tiny_store, write_records

from cifarlib import cli
from cifarlib.report import assembly as report
from cifarlib.report import difference, since
from cifarlib.report.difference import FRONT, Shown, Table
from cifarlib.runs import grids
from cifarlib.runs.results import open_results
from cifarlib.runs.store import RecordStore

CHAPTER = "02_stage1.ipynb"
CLAIM = "Rate_decides (V)"


def show(test="80.0", said="pending", runs=("a",), torch="2.11", figure="drawing 1", **tables):
    """One table, figure and claim of a chapter, with an accuracy of 1,000 test images."""
    table = Table(
        columns=("Run", "Test, paper", "Test, ours", "Epoch"), rows=(("1", "90.0", test, "3"),)
    )
    return Shown(
        images=1000,
        names={run: f"stage1-daa1/{run}" for run in runs},
        texts={
            "Runs": dict.fromkeys(runs, "test 80.00 %"),
            "Versions and devices": {"torch": torch},
            "Verdicts": {CLAIM: said},
            "Figures": {"Figure 5": figure},
        },
        tables={"VII": table} | tables,
        chapters={"VII": CHAPTER, CLAIM: CHAPTER, "Figure 5": CHAPTER},
    )


def changes(first, second):
    return [str(change) for change in difference.compare(first, second)]


# ---------------------------------------------------------------------------------------------
# Made-up pages
# ---------------------------------------------------------------------------------------------


def test_equal_pages_do_not_differ():
    assert difference.compare(show(), show()) == []
    assert difference.tell([]) == ["no difference"]
    assert difference.sum_up(show(), show()) == {}


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"test": "80.1"}, "Table VII, row 1, Test, ours: 80.0 → 80.1"),
        ({"said": "held"}, f"{CLAIM}: pending → held"),
        ({"torch": "2.12"}, "torch: 2.11 → 2.12"),
        ({"figure": "drawing 2"}, "Figure 5: drawing 1 → drawing 2"),
        ({"runs": ()}, "stage1-daa1/a (a): test 80.00 % → absent"),
        ({"IX": Table(columns=("Run",), rows=())}, "Table IX: absent → shown"),
    ],
)
def test_each_kind_of_change_is_told(changed, told):
    assert changes(show(), show(**changed)) == [told]


def test_rows_are_known_by_as_many_cells_as_tell_them_apart():
    rows = [("sgd", "32", "1.0"), ("sgd", "64", "2.0")]
    tables = [
        Table(columns=("Optimizer", "Batch", "Test"), rows=(rows[0], (*rows[1][:2], value)))
        for value in ("2.0", "3.0")
    ]
    found = changes(show(X=tables[0]), show(X=tables[1]))
    assert found == ["Table X, row sgd, 64, Test: 2.0 → 3.0"]


def test_much_is_cut_unless_all_is_asked_for():
    found = [difference.Change("Tables", f"cell {n}", "1", "2") for n in range(20)]
    assert difference.tell(found)[0] == "Tables: 20"
    assert difference.tell(found)[-1] == "  … and 8 more (--all)"
    assert len(difference.tell(found, 0)) == 21


def test_a_number_moves_by_more_than_noise_or_does_not():
    noise = 1.96 * (2 * 0.8 * 0.2 / 1000) ** 0.5 * 100  # 3.5 points
    assert difference.sum_up(show(), show(test=f"{80 + noise - 0.1:.1f}")) == {}
    assert difference.sum_up(show(), show(test="84.0")) == {
        CHAPTER: ["moved by more than noise: Table VII, row 1, Test, ours: 80.0 → 84.0 (+4.0)"],
        FRONT: ["1 number moved by more than noise"],
    }


def test_runs_verdicts_versions_and_what_was_pending_are_summed_up():
    before = show(test="pending")
    found = difference.sum_up(before, show(said="held", runs=("a", "b"), torch="2.12"))
    assert found[CHAPTER] == ["1 number no longer pending", f"{CLAIM}: pending → held"]
    assert found[FRONT] == [
        "1 run added (stage1-daa1 1)", "1 number no longer pending", "1 verdict changed",
        "torch: 2.11 → 2.12",
    ]  # fmt: skip


def test_what_is_kept_is_what_was_rendered_from_other_records(tmp_path):
    path = tmp_path / "rendered.json"
    first, second = show(), show(test="84.0")
    assert since.find_changes(path, first) == {}
    since.keep(path, first)
    for _ in range(2):  # again from the same records: the same
        assert since.find_changes(path, second) == difference.sum_up(first, second)
        since.keep(path, second)
    assert since.find_changes(path, first) == difference.sum_up(second, first)
    path.write_text("[{")
    assert since.find_changes(path, second) == {}


def test_changes_end_their_chapter_and_the_title_page():
    cells = [nbformat.v4.new_markdown_cell(f"cell {n}") for n in range(3)]
    for cell, name in zip(cells, ("a.ipynb", "a.ipynb", "b.ipynb"), strict=True):
        cell.metadata["notebook"] = name
    notebook = nbformat.v4.new_notebook(cells=cells)
    since.insert(notebook, {"a.ipynb": ["x_y moved"], FRONT: ["1 run added"]})
    sources = [cell.source for cell in notebook.cells]
    assert sources == [
        "cell 0", "**Since the last render**\n\n- 1 run added", "cell 1",
        "## Since the last render\n\n- x\\_y moved", "cell 2",
    ]  # fmt: skip


# ---------------------------------------------------------------------------------------------
# Builds
# ---------------------------------------------------------------------------------------------


def write_page(folder, shown):
    folder.mkdir(exist_ok=True)
    page = b"<html><body></script></body></html>"
    (folder / "report.html").write_bytes(difference.embed(page, shown))
    return folder / "report.html"


def test_a_page_holds_what_it_shows(tmp_path):
    shown = show(said="</script></html>")
    path = write_page(tmp_path, shown)
    assert difference.read(path) == shown
    assert path.read_bytes().count(b"</script>") == 2


def test_runs_without_a_page_are_named_by_their_conditions(tmp_path, capsys):
    smoke = open_results("smoke", (), tmp_path).conditions
    kept, gone = smoke[0], next(c for c in smoke if c.name == "stage3/3")
    for name in ("first", "second"):
        RecordStore(tmp_path / name).write(make_record(kept))
    own = tiny_conditions("stage1-daa1/13", overrides=("epochs.40=2",))[0]  # of no scale
    write_records(RecordStore(tmp_path / "first"), (gone, own))
    assert cli.main(["diff", str(tmp_path / "first"), str(tmp_path / "second")]) == 1
    told = capsys.readouterr()
    said = told.out.splitlines()
    assert said[0] == "Runs: 2"
    record = make_record(gone)
    assert any(
        line.startswith(f"  stage3/3 ({gone.run_id[:8]}): test {record.accuracy('test'):.2f} %")
        for line in said
    )
    assert any(line.startswith("  residual, adamw, learning rate 0.001, ") for line in said)
    assert "2 runs no longer recorded" in said[-1]
    assert told.err.count("has no report.html: only records are compared") == 2


def test_other_provenance_alone_is_no_other_result(tmp_path):
    condition = open_results("smoke", (), tmp_path).conditions[0]
    for name, changed in (("first", {}), ("second", {"finished": "2026-01-01T00:00:00+00:00"})):
        RecordStore(tmp_path / name).write(make_record(condition, **changed))
    first, second = (difference.read(tmp_path / name) for name in ("first", "second"))
    assert difference.compare(first, second) == []


@pytest.mark.parametrize("made", ["nothing", "folder", "page", "half a page", "record"])
def test_what_is_no_build_is_refused(tmp_path, made, capsys):
    good, place = write_page(tmp_path / "good", show()), tmp_path / "place"
    if made in ("folder", "record"):
        place.mkdir()
    if made == "page":
        place.write_text("<p>hello</p>")
    if made == "half a page":
        place.write_bytes(good.read_bytes()[:-9])
    if made == "record":
        (place / "runs").mkdir()
        (place / "runs" / "0123456789abcdef.json").write_text("{")
    assert cli.main(["diff", str(good), str(place)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert str(place) in said


# ---------------------------------------------------------------------------------------------
# Rendered pages
# ---------------------------------------------------------------------------------------------


def test_a_report_holds_its_runs_tables_figures_and_verdicts(report, tmp_path, capsys):
    shown = difference.read(report / "report.html")
    recorded = open_results("smoke", (), report)
    assert recorded.records.keys() <= shown.names.keys()
    assert {"Test, paper", "Test, ours"} <= {*shown.tables["XIII"].columns}
    assert all(shown.texts[kind] for kind in ("Verdicts", "Figures", "Versions and devices"))
    assert shown.chapters["XIII"] == "03_stage2.ipynb"
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(report / "report.html", copy)
    shutil.copytree(report / "runs", copy / "runs")
    assert cli.main(["diff", str(report), str(copy)]) == 0
    assert capsys.readouterr().out == "no difference\n"
    damaged = next(p for p in sorted((copy / "runs").glob("*.json")) if "-" not in p.stem)
    damaged.write_text("{}")
    assert cli.main(["diff", str(report), str(copy)]) == 1
    said, warned = capsys.readouterr()
    assert f"{damaged.name} is truncated or is no record" in warned
    assert f"({damaged.stem[:8]}): test " in said
    assert "→ damaged\n" in said


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A grid's page while it is pending, then recorded, then rendered again."""
    folder = tmp_path_factory.mktemp("since")
    store = tiny_store(folder)
    results = open_results("smoke", TINY, folder)
    name = grids.make_grid(results, "stage1-daa1/13", {"dropout": [0.0, 0.3]})
    pages = []
    for recorded in (False, True, True):
        if recorded:
            write_records(store, grids.open_study(results, name).conditions)
        path = report.render("smoke", TINY, folder, study=name)
        pages.append((path.read_bytes(), path.with_suffix(".pdf").read_bytes()))
    return pages


@pytest.mark.integration
def test_a_page_says_what_has_changed_and_again_the_same(pages, tmp_path, capsys):
    first, second, third = pages
    assert b"Since the last render" not in first[0]
    assert second[0].count(b"Since the last render") >= 2  # title page and chapter
    assert b"<li>2 runs added (" in second[0]
    assert second == third
    for name, page in zip("ab", pages, strict=False):
        (tmp_path / f"{name}.html").write_bytes(page[0])
    assert cli.main(["diff", str(tmp_path / "a.html"), str(tmp_path / "b.html")]) == 1
    said = capsys.readouterr().out.partition("In short\n")[2]
    assert "  in all: 2 runs added (" in said
    assert "  09_own.ipynb: " in said
