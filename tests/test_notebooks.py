"""The committed notebooks, executed over records: the whole report, complete, begun and empty."""

import json
import re

import pypdf
import pytest
from bs4 import BeautifulSoup
from conftest import make_data_record, make_network_record, make_record
from golden import compare

from cifarlib import report
from cifarlib.paper import tables as published
from cifarlib.paper.statements import read_statements
from cifarlib.report.show import CONTENT
from cifarlib.report.verdicts import read_verdicts
from cifarlib.runs.results import open_results
from cifarlib.runs.store import RecordStore

TABLES = [*published.TITLES, "S1", "S2", "S3"]
FIGURES = [*map(str, range(1, 11)), "5b", "S1", "S2"]


def render(folder, recorded):
    """A report over made-up records of the first ``recorded`` conditions: results and page."""
    store = RecordStore(folder)
    if recorded:
        store.write(make_data_record("synthetic"))
        store.write(make_network_record())
    for condition in open_results("smoke", [], folder).conditions[:recorded]:
        store.write(make_record(condition))
    path = report.render("smoke", [], folder)
    assert path == folder / "report.html"
    return open_results("smoke", [], folder), read_page(path)


def read_page(path):
    return BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    return render(tmp_path_factory.mktemp("complete"), recorded=120)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A report over the frozen records: real runs, of a study that has begun."""
    folder = tmp_path_factory.mktemp("begun")
    path = compare.render(folder)
    return open_results("smoke", [], folder), read_page(path)


def cells(soup, table):
    """Rows of a table's cells, as text."""
    body = soup.find(id=f"table-{table}").find("tbody")
    return [[cell.get_text() for cell in row.find_all("td")] for row in body.find_all("tr")]


def test_every_table_and_figure_is_there_once(complete):
    _, soup = complete
    ids = [tag["id"] for tag in soup.find_all("figure") if tag.has_attr("id")]
    expected = [f"table-{n}" for n in TABLES] + [f"figure-{n}" for n in FIGURES]
    assert len(set(ids)) == len(ids)
    assert set(expected) <= set(ids)
    further = set(ids) - set(expected)  # of the chapters that are not the paper's
    assert all(re.fullmatch(r"(table|figure)-[ACPX]\d+b?", name) for name in further)
    assert all(image["alt"] for image in soup.find_all("img"))


def test_a_number_on_the_page_is_its_records(complete):
    results, soup = complete
    rows = {row[0]: row for row in cells(soup, "VII")}
    for run in (1, 13, 32):
        record = results.record(results.find("stage1-daa1", run))
        paper, ours, difference = rows[str(run)][12:15]
        assert ours == f"{record.accuracy('test'):.1f}"
        exact = record.accuracy("test") - float(paper)
        assert float(difference.replace("−", "-")) == pytest.approx(exact, abs=0.051)


def test_data_and_models_on_the_page_are_their_records(complete):
    results, soup = complete
    means = [row[4] for row in cells(soup, "I")[:3]]
    assert means == [f"{mean:.8f}" for mean in results.data.statistics.mean]
    assert cells(soup, "II")[3][6] == f"{results.data.resized['bilinear'].std[1]:.6f}"
    densenet = results.record(results.select("stage3", model="densenet121_imagenet")[0])
    shown = {row[0]: row for row in cells(soup, "XV")}
    assert shown["DenseNet-121, pre-trained"][8] == f"{densenet.accuracy('test'):.2f}"
    assert shown["ResNet-20 (He et al., 2016)"][7:] == ["91.25", "–", "–"]
    lanczos = results.record(results.select("interpolation")[-1])
    assert cells(soup, "S2")[-1][4] == f"{lanczos.accuracy('test'):.2f}"


def test_the_ledger_has_the_verdict_that_each_claims_chapter_shows(complete):
    results, soup = complete
    shown = read_verdicts(results.store.folder / "notebooks")
    shown = shown[shown["kind"] == "claim"].set_index("id")
    rows = cells(soup, "C2")
    assert len(rows) == len(read_statements("claims"))
    for row, statement in zip(rows, read_statements("claims").values(), strict=True):
        assert row[0] == f"{statement.text} ({statement.where})"
        assert row[-2] == shown["said"][statement.id] == "not judged"  # not CIFAR-10
    assert sum(int(count) for count in cells(soup, "C1")[-1][1:-1]) == len(rows)


def test_the_best_run_of_a_search_is_that_of_its_records(complete):
    results, soup = complete
    conditions = results.select("stage1-daa1")
    scores = {c.run: results.record(c).accuracy("test") for c in conditions}
    first, second = sorted(scores, key=lambda run: -scores[run])[:2]
    row = next(row for row in cells(soup, "C4") if "VII" in row[0] and "VIII" not in row[0])
    behind = scores[first] - scores[second]
    assert row[2:6] == [str(first), f"{scores[first]:.1f}", str(second), f"{behind:.2f}"]


def tables_of_notebooks(folder):
    """Number → rows of every table in the executed notebooks, as they carry them."""
    found = {}
    for path in sorted(folder.glob("*.ipynb")):
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                content = output.get("data", {}).get(CONTENT, {})
                if content.get("kind") == "table":
                    found[content["number"]] = content["rows"]
    return found


def test_notebooks_page_and_pdf_carry_the_same_tables(complete):
    results, soup = complete
    folder = results.store.folder
    reader = pypdf.PdfReader(folder / "report.pdf")
    pdf = "".join(" ".join(page.extract_text() for page in reader.pages).split())
    tables = tables_of_notebooks(folder / "notebooks")
    assert set(TABLES) <= set(tables)
    for number, rows in tables.items():
        body = soup.find(id=f"table-{number}").find("tbody")
        for links in body.find_all("details"):  # several runs behind a row
            links.replace_with(links.summary.get_text())
        assert cells(soup, number) == rows, number
        for row in rows:
            assert "".join("".join(row).split()) in pdf, (number, row)


def test_the_page_says_what_it_is_made_from(complete):
    results, soup = complete
    text = soup.get_text(" ")
    assert "not CIFAR-10" in text
    assert "120 of 120 runs" in text
    assert results.data.data_fingerprint in text
    for run in ("stage1-daa1/13", "stage2-dropout/9,dropout=0.5", "interpolation/6"):
        assert run in text
    assert "pending" not in " ".join(cells(soup, "VII")[0])


def test_a_study_that_has_begun_shows_what_it_has(begun):
    results, soup = begun
    count = len(results.every_record)
    assert 0 < count < 120
    assert f"{count} of 120 runs" in soup.get_text(" ")
    assert not any("pending" in row for row in cells(soup, "VI"))
    recorded = [
        results.record(condition) is not None for condition in results.select("stage1-daa2")
    ]
    assert True in recorded
    assert False in recorded
    assert ["pending" not in row for row in cells(soup, "VIII")] == recorded


def test_a_report_shows_the_numbers_that_it_showed_when_it_was_frozen(begun):
    """For numbers that are meant to change, see the head of golden/compare.py."""
    results, _ = begun
    shown = compare.extract(results.store.folder)
    assert shown["tables"]
    assert compare.find_differences(shown) == []


def test_every_number_that_changes_is_a_difference_and_no_word_is():
    def show(cell, alt, said, verdict):
        table = {"columns": ["Run"], "rows": [[cell]], "text": ["Runs of stage1"]}
        figure = {"drawn": True, "text": [alt]}
        return {
            "tables": {"I": table},
            "figures": {"1": figure},
            "sentences": {"01_data": [said]},
            "verdicts": {"C2": {"a claim": verdict}},
        }

    frozen = show("1,200 ± 3", "Losses of 2 runs.", "It rises by −0.5.", "holds")
    same = show("1200 and 3", "2 runs' losses", "A rise: −0.5", "holds")
    assert compare.compare(frozen, same, {}) == []
    other = show("1,200 ± 4", "Losses of 3 runs.", "It rises by 0.5.", "does not hold")
    assert [place for place, _ in compare.compare(frozen, other, {})] == [
        *("table I/Run/row 1", "figure 1/text", "figure 1/text"),
        *("sentences 01_data", "sentences 01_data", "verdicts C2/a claim"),
    ]
    other["tables"], other["figures"] = {}, {}
    gone = {place for place, what in compare.compare(frozen, other, {}) if "longer shown" in what}
    assert gone == {"table I", "figure 1"}


def test_a_study_that_has_not_begun_is_pending_everywhere(tmp_path):
    _, soup = render(tmp_path, recorded=0)
    assert [row[-1] for row in cells(soup, "III")] == ["0"] * 4  # recorded conditions
    for table in sorted(set(TABLES) - {"III"}):
        assert all("pending" in " ".join(row) or "–" in row for row in cells(soup, table)), table
    drawn = {image.find_parent("figure")["id"] for image in soup.find_all("img")}
    assert not drawn & {f"figure-{n}" for n in FIGURES}
    assert drawn >= {"figure-A1", "figure-A2"}  # of the paper's numbers alone
    assert re.search("None of 120 runs are recorded", soup.get_text(" "))
