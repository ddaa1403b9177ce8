"""The committed notebooks over records of a study that has begun, as one report; and over none."""

import re

import nbformat
import pypdf
import pytest
from bs4 import BeautifulSoup
from chapters import run_chapter
from golden import compare

from cifarlib import paths
from cifarlib.paper import tables as published
from cifarlib.paper.statements import read_statements
from cifarlib.report.verdicts import read_verdicts
from cifarlib.runs.results import open_results

TABLES = [*published.LAYOUTS, "S1", "S2", "S3"]
FIGURES = [*map(str, range(1, 11)), "5b", "S1", "S2"]

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def results(report):
    return open_results("smoke", [], report)


@pytest.fixture(scope="module")
def soup(report):
    return BeautifulSoup((report / "report.html").read_text(encoding="utf-8"), "html.parser")


def cells(soup, table):
    """Rows of a table's cells, as text."""
    body = soup.find(id=f"table-{table}").find("tbody")
    return [[cell.get_text() for cell in row.find_all(["th", "td"])] for row in body.find_all("tr")]


def test_every_table_and_figure_is_there_once(soup):
    ids = [tag["id"] for tag in soup.find_all("figure") if tag.has_attr("id")]
    expected = [f"table-{n}" for n in TABLES] + [f"figure-{n}" for n in FIGURES]
    assert len(set(ids)) == len(ids)
    assert set(expected) <= set(ids)
    further = set(ids) - set(expected)  # of the chapters that are not the paper's
    assert all(re.fullmatch(r"(table|figure)-[ABCKP]\d+b?|figure-S3", name) for name in further)
    assert all(image["alt"] for image in soup.find_all("img"))


def test_links_lead_where_jupyterlab_would_find_them(soup, report):
    """To what stands in the same chapter by its id, to another chapter by its notebook's name."""
    chapter, home = "", {}
    for tag in soup.find_all(id=True):
        if tag["id"].startswith("chapter-"):
            chapter = tag["id"].removeprefix("chapter-")
            home[tag["id"]] = ""  # is no id of the notebook's
        home.setdefault(tag["id"], chapter)
    links = 0
    for path in sorted((report / "notebooks").glob("*.ipynb")):
        for cell in nbformat.read(path, as_version=4).cells:
            texts = [cell.source] if cell.cell_type == "markdown" else []
            texts += [
                output.get("data", {}).get("text/markdown", "")
                for output in cell.get("outputs", [])
            ]
            for name, place in re.findall(r"\]\((?:(\w+)\.ipynb)?(?:#([^)]*))?\)", "".join(texts)):
                links += 1
                assert name != path.stem
                assert (
                    home.get(place, "nowhere") == (name or path.stem)
                    if place
                    else f"chapter-{name}" in home
                )
    assert links > 40


@pytest.mark.parametrize(("table", "stage"), [("VII", "stage1-daa1"), ("VIII", "stage1-daa2")])
def test_a_number_that_is_shown_is_its_records(report, results, table, stage):
    """The page and the PDF have the same rows, see below."""
    shown = compare.extract(report)["tables"][table]
    places = [shown["columns"].index(f"Test, {name}") for name in ("paper", "ours", "diff.")]
    for row, condition in zip(shown["rows"], results.select(stage), strict=True):
        paper, ours, difference = (row[place] for place in places)
        if record := results.records.get(condition.run_id):
            assert ours == f"{record.accuracy('test'):.1f}"
            exact = record.accuracy("test") - float(paper)
            assert float(difference.replace("−", "-")) == pytest.approx(exact, abs=0.051)
        else:
            assert (ours, difference) == ("pending", "–")


def test_data_on_the_page_are_their_record(results, soup):
    means = [row[4] for row in cells(soup, "I")[:3]]
    assert means == [f"{mean:.8f}" for mean in results.data.statistics.mean]
    assert cells(soup, "II")[3][6] == f"{results.data.resized['bilinear'].std[1]:.6f}"


def test_the_table_of_claims_has_the_verdict_that_each_claims_chapter_shows(report, soup):
    shown = read_verdicts(report / "notebooks")
    shown = shown[shown["kind"] == "claim"].set_index("id")
    rows = cells(soup, "C2")
    assert len(rows) == len(read_statements("claims"))
    for row, statement in zip(rows, read_statements("claims").values(), strict=True):
        assert row[0] == f"{statement.text} ({statement.where})"
        assert shown["said"][statement.id] == "not judged"  # not CIFAR-10
        assert row[-1] == "· not judged"
    assert sum(int(count) for count in cells(soup, "C1")[-1][1:-1]) == len(rows)


def test_the_best_run_of_a_search_is_that_of_its_records(results, soup):
    daa1 = results.select("stage1-daa1")
    scores = {c.run: results.records[c.run_id].accuracy("test") for c in daa1}
    first, second = sorted(scores, key=lambda run: -scores[run])[:2]
    row = next(row for row in cells(soup, "C4") if "VII" in row[0] and "VIII" not in row[0])
    behind = scores[first] - scores[second]
    assert row[2:6] == [str(first), f"{scores[first]:.1f}", str(second), f"{behind:.2f}"]


def test_notebooks_page_and_pdf_carry_the_same_tables(report, soup):
    reader = pypdf.PdfReader(report / "report.pdf")
    pdf = "".join(" ".join(page.extract_text() for page in reader.pages).split())
    tables = compare.extract(report)["tables"]
    assert set(TABLES) <= set(tables)
    for number, table in tables.items():
        body = soup.find(id=f"table-{number}").find("tbody")
        for links in body.find_all("details"):  # several runs behind a row
            links.replace_with(links.summary.get_text())
        assert cells(soup, number) == table["rows"], number
        for row in table["rows"]:
            assert "".join("".join(row).split()) in pdf, (number, row)


def test_the_page_says_what_it_is_made_from(results, soup):
    text = soup.get_text(" ")
    assert "not CIFAR-10" in text
    assert f"{len(results.every_record)} of 120 runs" in text
    assert results.data.data_fingerprint in text
    for run in ("stage1-daa1/13", "stage2-dropout/9,dropout=0.5", "interpolation/6"):
        assert run in text


def test_a_report_shows_the_numbers_that_it_showed_when_it_was_frozen(report):
    """For numbers that are meant to change, see the head of golden/compare.py."""
    shown = compare.extract(report)
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
    assert compare.compare(frozen, same) == []
    other = show("1,200 ± 4", "Losses of 3 runs.", "It rises by 0.5.", "does not hold")
    assert [place for place, _ in compare.compare(frozen, other)] == [
        *("table I/Run/row 1", "figure 1/text", "figure 1/text"),
        *("sentences 01_data", "sentences 01_data", "verdicts C2/a claim"),
    ]
    other["tables"], other["figures"] = {}, {}
    gone = {place for place, what in compare.compare(frozen, other) if "longer shown" in what}
    assert gone == {"table I", "figure 1"}


CHAPTERS = sorted(
    path.name for path in paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb") if path != paths.OWN
)


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_a_chapter_without_records_is_pending(tmp_path, chapter):
    shown = run_chapter(chapter, tmp_path / "build")
    for number in (shown.tables.keys() & TABLES) - {"III"}:
        rows = shown.tables[number]["rows"]
        assert all("pending" in " ".join(row) or "–" in row for row in rows), number
    for number in shown.figures.keys() & FIGURES:
        assert not shown.figures[number]["drawn"], number
