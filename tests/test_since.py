"""What has changed since the last render."""

import nbformat
import pytest
from conftest import TINY, make_record, tiny_store

from cifarlib import report
from cifarlib.report import difference, since
from cifarlib.report.difference import Table, Verdict
from cifarlib.runs import grids
from cifarlib.runs.results import open_results


def show(test="80.0", said="pending", runs=("a",), torch="2.11", **more):
    """One table and one claim of a chapter, with an accuracy of 1,000 test images."""
    table = Table(["Run", "Test, paper", "Test, ours", "Epoch"], [["1", "90.0", test, "3"]])
    verdicts = {"claim-x": Verdict("Rate_decides (V)", said)}
    places = {"VII": "02_stage1.ipynb", "claim-x": "02_stage1.ipynb"}
    stages = dict.fromkeys(runs, "stage1-daa1")
    return since.Rendered(1000, stages, {"torch": torch}, {"VII": table}, verdicts, places | more)


def test_nothing_is_said_where_nothing_changed():
    assert since.compare(show(), show()) == {}


def test_a_number_moves_by_more_than_noise_or_does_not():
    noise = 1.96 * (2 * 0.8 * 0.2 / 1000) ** 0.5 * 100  # 3.5 points
    assert since.compare(show(), show(test=f"{80 + noise - 0.1:.1f}")) == {}
    found = since.compare(show(), show(test="84.0"))
    said = "moved by more than noise: Table VII, row 1, Test, ours: 80.0 → 84.0 (+4.0)"
    assert found["02_stage1.ipynb"] == [said]
    assert found[since.FRONT] == ["1 number moved by more than noise"]


def test_runs_verdicts_versions_and_what_was_pending_are_told():
    before = show(test="pending")
    found = since.compare(before, show(said="held", runs=("a", "b"), torch="2.12"))
    assert found["02_stage1.ipynb"] == [
        "1 number no longer pending", "Rate_decides (V) pending → held",
    ]  # fmt: skip
    assert found[since.FRONT] == [
        "1 run added (stage1-daa1 1)", "1 number no longer pending", "1 verdict changed",
        "torch: 2.11 → 2.12",
    ]  # fmt: skip


def test_what_is_kept_is_what_was_rendered_from_other_records(tmp_path):
    path = tmp_path / "rendered.json"
    first, second = show(), show(test="84.0")
    assert since.find_changes(path, first) == {}
    since.keep(path, first)
    for _ in range(2):  # again from the same records: the same
        assert since.find_changes(path, second) == since.compare(first, second)
        since.keep(path, second)
    assert since.find_changes(path, first) == since.compare(second, first)
    path.write_text("[{")
    assert since.find_changes(path, second) == {}


def test_changes_end_their_chapter_and_the_title_page():
    cells = [nbformat.v4.new_markdown_cell(f"cell {n}") for n in range(3)]
    for cell, name in zip(cells, ("a.ipynb", "a.ipynb", "b.ipynb"), strict=True):
        cell.metadata["notebook"] = name
    notebook = nbformat.v4.new_notebook(cells=cells)
    since.insert(notebook, {"a.ipynb": ["x_y moved"], since.FRONT: ["1 run added"]})
    sources = [cell.source for cell in notebook.cells]
    assert sources == [
        "cell 0", "**Since the last render**\n\n- 1 run added", "cell 1",
        "## Since the last render\n\n- x\\_y moved", "cell 2",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A grid's page while it is pending, then recorded, then rendered again."""
    folder = tmp_path_factory.mktemp("since")
    store = tiny_store(folder)
    results = open_results("smoke", TINY, folder)
    name = grids.make_grid(results, "stage1-daa1/13", {"dropout": [0.0, 0.3]})
    pages = []
    for recorded in (False, True, True):
        for condition in grids.open_study(results, name).conditions if recorded else ():
            store.write(make_record(condition))
        path = report.render("smoke", TINY, folder, study=name)
        pages.append((path.read_bytes(), path.with_suffix(".pdf").read_bytes()))
    return pages


@pytest.mark.integration
def test_a_page_says_what_has_changed_and_again_the_same(pages):
    first, second, third = pages
    assert b"Since the last render" not in first[0]
    assert second[0].count(b"Since the last render") >= 2  # title page and chapter
    assert b"<li>2 runs added (" in second[0]
    assert second == third


@pytest.mark.integration
def test_diff_tells_the_changes_of_any_two_pages(pages, tmp_path, capsys):
    from cifarlib import cli

    for name, page in zip("ab", pages, strict=False):
        (tmp_path / f"{name}.html").write_bytes(page[0])
    assert cli.main(["diff", str(tmp_path / "a.html"), str(tmp_path / "b.html")]) == 1
    said = capsys.readouterr().out.partition("In short\n")[2].splitlines()
    assert said[0].endswith(" numbers no longer pending")
    assert difference.read(tmp_path / "a.html").places["O1"] == "09_own.ipynb"
