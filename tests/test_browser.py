"""The report in a real browser: Chromium opens the page from disk, as a reader does."""

import csv
import io
from urllib.parse import unquote

import lab
import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import (
    OF_STAGE2,
    TINY,
    assemble,
    make_verdicts,
    tiny_conditions,
    tiny_store,
    wait_for,
    write_records,
)

from cifarlib import explore, paths
from cifarlib.report import assembly, front
from cifarlib.runs import in_notebook, other_studies
from cifarlib.runs.results import open_results

ALL = {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa"]}  # of axe-core
REGION = {"type": "rule", "values": ["region"]}
CONTRAST = {"type": "rule", "values": ["color-contrast"]}

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(lab.find_browser() is None, reason="no Chromium or Chrome is installed"),
]


@pytest.fixture(scope="module")
def address(report, tmp_path_factory):
    """The page of the report, as it would be if its claims had been judged."""
    results = open_results("smoke", [], report)
    executed = sorted((report / "notebooks").glob("*.ipynb"))
    shown = make_verdicts(*("held", "did not hold", "not distinguishable", "pending") * 6)
    others = other_studies.open_others("smoke", [], report)
    others = other_studies.narrow(others, results, assembly.find_shown_runs(executed))
    told = front.describe(results, "--scale smoke", shown, others=others)
    page = tmp_path_factory.mktemp("browser") / "report.html"
    return assemble(executed, page, told).as_uri()


@pytest.fixture(scope="module")
def chromium():
    """The one browser session."""
    with lab.open_browser() as browser:
        yield browser


@pytest.fixture
def open_page(chromium, address):
    """Opens the report; what it complains about or asks the network for must stay empty."""
    contexts, faults = [], []

    def open_(width=1440, height=900, scheme="light", script=True, at=""):
        context = chromium.new_context(
            viewport={"width": width, "height": height},
            color_scheme=scheme,
            java_script_enabled=script,
        )
        context.set_default_timeout(15_000)  # ms
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: faults.append(f"{said.type}: {said.text}"))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("request", lambda request: _notice(request.url, address, faults))
        page.goto(address + at)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert faults == []


def _notice(url, address, faults):
    if not url.startswith(("data:", "blob:", address)):
        faults.append(f"requested {url}")


def is_in_sight(locator):
    """Whether an element lies in the window, below the ribbon."""
    box, height = locator.bounding_box(), locator.page.viewport_size["height"]
    return box is not None and 30 < box["y"] < height


def test_links_and_images_resolve(open_page):
    page = open_page()
    found = page.evaluate("""() => ({
        dangling: [...document.querySelectorAll("a[href^='#']")].map((a) => a.hash.slice(1))
            .filter((id) => id && !document.getElementById(decodeURIComponent(id))),
        undrawn: [...document.querySelectorAll(".plot use")]
            .filter((u) => !document.querySelector(u.getAttribute("href"))).length,
        unnamed: [...document.querySelectorAll(".plot svg:not([aria-label])")].length,
        drawings: document.querySelectorAll(".plot svg").length,
        links: document.links.length })""")
    assert (found["dangling"], found["undrawn"], found["unnamed"]) == ([], 0, 0)
    assert found["drawings"] > 5
    assert found["links"] > 120


def test_the_summary_stands_on_the_first_screen(open_page):
    page = open_page()
    for name in (".facts", ".verdict.held", ".verdict.did-not-hold", ".onward"):
        box = page.locator(name).first.bounding_box()
        assert box["y"] + box["height"] <= 900, name
    assert page.locator(".verdict .count").all_inner_texts() == ["6", "6", "6"]


def test_contents_lead_to_their_sections_and_mark_them(open_page):
    page = open_page()
    link = page.locator("nav.contents a").nth(4)
    link.click()
    heading = page.locator(link.get_attribute("href"))
    assert is_in_sight(heading)
    page.wait_for_function("document.querySelector('nav.contents a[aria-current]')")
    assert page.locator("nav.contents a[aria-current]").count() == 1


def test_a_table_sorts_by_keyboard_and_goes_back(open_page):
    page = open_page()
    table = page.locator("#table-VII table")
    head = table.locator("thead tr").last.locator("button").nth(1)
    before = table.locator("tbody tr").all_inner_texts()
    orders = []
    for _ in range(3):
        head.focus()
        page.keyboard.press("Enter")
        orders.append(head.locator("xpath=..").get_attribute("aria-sort"))
        if len(orders) < 3:
            assert sorted(table.locator("tbody tr").all_inner_texts()) == sorted(before)
            assert table.locator("tbody tr").all_inner_texts() != before
    assert orders == ["ascending", "descending", None]
    assert table.locator("tbody tr").all_inner_texts() == before


FOLDED = "<details><summary>3</summary>other/1</details>"


@pytest.mark.parametrize(
    ("cells", "fill", "first"),
    [
        (["0.5", "&lt; 0.001", "–"], "1.000", ["< 0.001", "0.5", "1.000"]),
        (["run 26", "run 9", "rate 0.01"], "run 30", ["rate 0.01", "run 9", "run 26"]),
        (["2", FOLDED, "pending, about 3 min"], "10", ["2", "3other/1", "10"]),
    ],
)
def test_a_column_sorts_as_a_person_would(open_page, cells, fill, first):
    """A small p value, names with numbers in them, a cell with several runs; pending at the end."""
    page = open_page()
    texts = page.evaluate(
        """([texts, fill]) => {
          const table = document.querySelector("#table-VII table");
          [...table.tBodies[0].rows].forEach((row, i) => {
            for (const cell of row.cells) cell.innerHTML = texts[i] ?? fill;
          });
          const button = table.tHead.querySelector("button"), sorted = [];
          for (let i = 0; i < 2; i++) {
            button.click();
            sorted.push([...table.tBodies[0].rows].map((row) => row.cells[0].textContent));
          }
          return sorted;
        }""",
        [cells, fill],
    )
    assert texts[0][:3] == first
    last = cells[2] if cells[2][0] in "–p" else first[0]
    assert [order[-1] for order in texts][1] == last


def test_a_table_can_be_saved_as_csv(open_page):
    page = open_page()
    with page.expect_download() as waiting:
        page.locator("#table-VII a.csv").click()
    assert waiting.value.suggested_filename == "table-VII.csv"
    content = waiting.value.path().read_text(encoding="utf-8-sig")
    head, *rows = csv.reader(io.StringIO(content))
    assert len(rows) == page.locator("#table-VII tbody tr").count() == 32
    assert {len(row) for row in rows} == {len(head)}
    assert "Test, ours" in head


def test_a_chapters_notebook_can_be_downloaded(open_page):
    page = open_page()
    fold = page.locator(".cell:has(#table-VII) details.source")
    fold.locator("summary").click()
    assert "of 02_stage1.ipynb" in fold.inner_text()
    with page.expect_download() as waiting:
        fold.locator("a.notebook").click()
    assert waiting.value.suggested_filename == "02_stage1.ipynb"
    saved = nbformat.read(waiting.value.path(), as_version=4)
    own = nbformat.read(paths.NOTEBOOKS / "02_stage1.ipynb", as_version=4)
    for one, other in zip(saved.cells, own.cells, strict=True):
        assert (one.cell_type, one.source) == (other.cell_type, other.source)
        assert one.metadata.get("tags", []) == other.metadata.get("tags", [])


def test_runs_are_explored_by_keyboard_and_mouse(open_page):
    page = open_page(at="#chapter-11_explore")
    explorer = page.locator(".explorer")
    dots = explorer.locator("path[aria-roledescription='circle']")
    compared = explorer.locator(".compared")
    first, second, stage = explorer.locator("select").all()[:3]
    assert "Choose two runs" not in compared.inner_text()
    assert compared.locator("a").count() >= 2  # lead to the runs at once ...
    assert compared.evaluate("e => getComputedStyle(e).display") == "block"  # ... in one sentence
    every = dots.count()
    stage.focus()
    page.keyboard.press("ArrowDown")
    page.wait_for_function(
        "n => document.querySelectorAll(\"[aria-roledescription='circle']\").length < n", arg=every
    )
    before = first.input_value(), second.input_value()
    first.focus()
    page.keyboard.press("ArrowDown")
    if first.input_value() == second.input_value():
        page.keyboard.press("ArrowDown")
    page.wait_for_function("([e, run]) => e.value !== run", arg=[first.element_handle(), before[0]])
    explorer.locator(
        ".compared", has_text=first.evaluate("e => e.selectedOptions[0].text")
    ).wait_for()
    dots.nth(2).click(modifiers=["Shift"])
    page.wait_for_function(
        "([e, run]) => e.value !== run", arg=[second.element_handle(), before[1]]
    )
    link = compared.get_by_role("link", name=second.input_value(), exact=True).first
    link.click()
    assert page.locator(link.get_attribute("href")).is_visible()


def test_a_row_opens_its_run(open_page):
    page = open_page()
    link = page.locator("#table-VII tbody a[href^='#run-']").first
    run = page.locator(link.get_attribute("href"))
    assert not run.is_visible()
    link.click()
    assert run.is_visible()
    assert is_in_sight(run.locator("xpath=../summary"))
    assert "cifarlib verify --run stage1-daa1/1 --scale smoke" in run.inner_text()
    assert run.locator("table.confusion tbody td").count() == 100
    assert run.locator("svg.curves").count() == 2


def test_colours_switch_and_are_remembered(open_page):
    page = open_page()

    def background():
        return page.evaluate("getComputedStyle(document.body).backgroundColor")

    assert background() == "rgb(255, 255, 255)"
    page.get_by_role("button", name="Switch to dark colours").click()
    assert sum(map(int, background()[4:-1].split(","))) < 120
    page.reload()
    assert sum(map(int, background()[4:-1].split(","))) < 120


@pytest.mark.parametrize(
    ("scheme", "rules"), [("light", ALL), ("light", REGION), ("dark", CONTRAST)]
)
def test_axe_finds_no_barrier_to_assistive_technology(open_page, scheme, rules):
    page = open_page(scheme=scheme)
    page.evaluate("""() => {
        for (const kind of ["run", "source", "all-runs"])
            document.querySelector(`details.${kind}`).open = true;
        // One run is like another, and so are the rows of a table.
        for (const more of document.querySelectorAll(
            "details.run:not([open]), tbody tr:nth-child(n+5)")) more.remove();
    }""")
    options = {"runOnly": rules, "resultTypes": ["violations"]}
    found = Axe().run(page, options=options).response["violations"]
    assert [(v["id"], v["nodes"][0]["html"], len(v["nodes"])) for v in found] == []


def test_the_keyboard_reaches_the_content_first(open_page):
    page = open_page()
    page.keyboard.press("Tab")
    skip = page.locator("a.skip")
    assert skip.evaluate("e => e === document.activeElement")
    assert skip.bounding_box()["x"] >= 0
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "content"


def test_a_phone_does_not_scroll_sideways(open_page):
    page = open_page(width=390, height=844)
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    wide = page.evaluate("""() => [...document.querySelectorAll("main *")]
        .filter((e) => !e.closest(".scroll, pre, svg") && e.getBoundingClientRect().right > 391)
        .map((e) => e.outerHTML.slice(0, 80))""")
    assert wide == []
    assert page.evaluate("document.scrollingElement.scrollWidth") <= 390


def test_a_phone_stays_where_a_link_leads(open_page):
    page = open_page(width=390, height=844)
    page.get_by_role("link", name="Contents", exact=True).click()
    page.locator("nav.contents a", has_text="Beyond the paper").click()
    page.wait_for_timeout(300)  # ms, for what a scroll sets off
    assert is_in_sight(page.locator("#chapter-08_beyond"))


def test_without_javascript_nothing_is_missing(open_page):
    page = open_page(script=False)
    assert is_in_sight(page.locator("nav.contents a").first)
    assert page.locator("#table-VII tbody tr").count() == 32
    assert page.locator("#table-VII tbody tr").last.is_visible()
    assert page.locator("button").count() == 0  # none that would do nothing
    assert "need JavaScript" in page.locator(".explorer").inner_text()
    source = page.locator("#table-VII a.csv").get_attribute("href")
    assert "Test, ours" in unquote(source)
    anchor = page.locator("div[id^='run-']").nth(40).get_attribute("id")
    run = open_page(script=False, at=f"#{anchor}").locator(f"#{anchor}")
    assert run.is_visible()
    assert "Train it again: cifarlib verify --run " in run.inner_text()


def test_the_page_prints_on_paper(open_page, tmp_path):
    from pypdf import PdfReader

    open_page().pdf(path=tmp_path / "report.pdf", format="A4")
    pages = [page.extract_text() for page in PdfReader(tmp_path / "report.pdf").pages]
    text = "\n".join(pages)
    assert 10 < len(pages) < 60
    assert all("stand-in set" in page for page in pages)
    for words in ("What decides the accuracy", "Table VII", "Figure 5", "Provenance"):
        assert words in text
    assert "Switch to" not in text
    assert text.count("Explore the runs") == 1  # only in the contents
    assert not [number for number, page in enumerate(pages) if len(page) < 100]  # no empty page


@pytest.fixture(scope="module")
def laboratory(tmp_path_factory):
    """A JupyterLab with the explorer and a chapter, over one folder of records; both.

    Of the chapter one run is missing, which it is to train.
    """
    folder = tmp_path_factory.mktemp("laboratory")
    store = tiny_store(folder / "build")
    results = open_results("smoke", TINY, store.folder)
    *most, _ = in_notebook.choose_conditions(results, OF_STAGE2).values()
    write_records(store, (*most, *tiny_conditions(*EXPLORED)))
    given = {"overrides": list(TINY), "build": str(store.folder)}
    notebooks = dict.fromkeys(["explore.ipynb", "03_stage2.ipynb"], given | {"train": True})
    with lab.serve(folder / "home", notebooks) as address:
        yield address, results.reread()


EXPLORED = [f"stage1-daa1/{run}" for run in range(1, 9)]


def test_charts_link_runs_and_a_cell_trains_in_jupyterlab(chromium, laboratory):
    address, results = laboratory
    known = len(results.store.run_ids())
    page = lab.browse(chromium, address, "explore.ipynb", ".explorer svg")
    page.wait_for_selector("table.dataTable tbody tr >> text=stage1-")  # the table of all runs
    menus = page.locator(".explorer select")
    menus.nth(0).select_option(label=EXPLORED[2])  # by keyboard, as it were
    dot = page.locator(".explorer path[aria-roledescription='circle']").first
    dot.click(modifiers=["Shift"])
    second = menus.nth(1).evaluate("menu => menu.options[menu.selectedIndex].text")
    said = explore.say_better(results, EXPLORED[2], second)
    page.locator(".explorer .compared", has_text=said).wait_for()
    found = Axe().run(page, context=".explorer").response["violations"]
    page.locator("td", has_text="stage1-daa1/13 with learning_rate=0.003, epochs=1").wait_for()
    wait_for(lambda: len(results.store.run_ids()) > known, "the record of the trained run")
    assert [text for kind, text in page.said if kind == "error"] == []
    assert [(rule["id"], rule["nodes"][0]["html"]) for rule in found] == []


def test_a_chapter_trains_what_it_lacks_in_jupyterlab_and_then_nothing(chromium, laboratory):
    address, results = laboratory
    runs = len(in_notebook.choose_conditions(results, OF_STAGE2))
    said = f"1 of the {runs} runs of this chapter is not recorded yet; to train it takes"
    page = lab.browse(chromium, address, "03_stage2.ipynb", f".jp-OutputArea >> text={said}")
    page.locator(f".jp-OutputArea >> text=[{runs}/{runs}] ").first.wait_for()
    page.locator("#table-XIV").wait_for()
    assert "pending" not in page.locator("#table-XIV").inner_text()
    page.get_by_text("| Idle").first.wait_for()
    lab.run_all(page, f".jp-OutputArea >> text=All {runs} runs of this chapter are recorded.")
    assert [text for kind, text in page.said if kind == "error"] == []
