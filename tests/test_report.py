import itertools
import math
import re
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import papermill
import pytest
from bs4 import BeautifulSoup
from conftest import assemble, write_records
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from cifarlib import paths
from cifarlib.errors import ConfigError, ReportError
from cifarlib.report import assembly as report
from cifarlib.report import front, notebooks, page, show
from cifarlib.report.verdicts import read_verdicts
from cifarlib.runs.parameters import check_values
from cifarlib.runs.results import open_results

pytestmark = pytest.mark.integration

DEFAULTS = 'scale = "smoke"\noverrides = []\nbuild = ""  # empty: build/<scale>'
DRAWING = '<svg role="img" aria-label="A line" viewBox="0 0 9 9"><path d="M0 0h9"/></svg>'
FIRST = f"""\
class Show:
    def __init__(self, html):
        self.html = html
    def _repr_html_(self):
        return self.html
drawing = {DRAWING!r}
"""


def write_notebook(path: Path, *cells: str, parameters: str | None = DEFAULTS) -> Path:
    """Cells beginning with # are prose; the parameters come first."""
    content = [new_markdown_cell(c) if c.startswith("# ") else new_code_cell(c) for c in cells]
    if parameters is not None:
        content.insert(1, new_code_cell(parameters, metadata={"tags": ["parameters"]}))
    nbformat.write(new_notebook(cells=content), path)
    return path


def executed_notebook(path: Path, *html: str, prose: str = "# A title") -> Path:
    """A notebook as execution leaves it, made without a kernel."""
    cells = [new_markdown_cell(prose)]
    for text in html:
        output = nbformat.v4.new_output("display_data", data={"text/html": text})
        cells.append(new_code_cell("show()", outputs=[output]))
    nbformat.write(new_notebook(cells=cells), path)
    return path


MARKED_UP = {"dirty": True, "device": "A <b>bold</b> processor", "images_per_s": 400.0}


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    """Two small notebooks rendered over a build folder with one good and one damaged record."""
    folder = tmp_path_factory.mktemp("{report} of a study")
    notebooks, build = folder / "notebooks", folder / "build"
    notebooks.mkdir()
    write_notebook(
        notebooks / "01_data.ipynb",
        "# The data\n\nSee [Table I](#table-I).\n\n## Results\n\nOne.\n\n## Results\n\nTwo.",
        FIRST,
        "cell = f'<td>{scale} {overrides}</td>'\n"
        "Show(f'<figure id=\"table-I\"><table><tr>{cell}</tr></table></figure>')",
        "import sys; print('a < b'); print('noted', file=sys.stderr)",
        "Show(drawing + drawing)",
        "'<i>text</i>'",
    )
    write_notebook(
        notebooks / "02_more.ipynb",
        "# More & more\n\n## Results",
        FIRST,
        "import os; from pathlib import Path\nassert Path.cwd().name == 'notebooks'\n"
        "Show(drawing + f'<p>held: {os.path.isdir(build)}</p>')",
    )
    content = nbformat.read(notebooks / "02_more.ipynb", as_version=4)
    content.cells[-1].metadata.tags = ["front"]
    nbformat.write(content, notebooks / "02_more.ipynb")

    results = open_results("smoke", ["seeds=[1]"], build)
    write_records(results.store, results.conditions[:2], **MARKED_UP)
    damaged = results.store.run_path(results.conditions[1].run_id)
    damaged.write_text(damaged.read_text().replace("400.0", "4000.0"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "NOTEBOOKS", notebooks)
        page = report.render("smoke", ["seeds=[1]"], build)
    return page


@pytest.fixture(scope="module")
def html(rendered):
    return rendered.read_text(encoding="utf-8")


def check(notebook, parameters):
    check_values(parameters, notebooks.read_parameters(notebook), notebook.name)


@pytest.mark.parametrize("path", sorted(paths.NOTEBOOKS.glob("*.ipynb")), ids=lambda p: p.name)
def test_papermill_finds_every_parameter_of_a_notebook(path, caplog):
    found = papermill.inspect_notebook(path)
    assert set(found) == set(notebooks.read_parameters(path))
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"scal": "lite"}, ["a.ipynb", "'scal'", "did you mean 'scale'?"]),
        ({"scale": 3}, ["'scale'", "int", "give a str"]),
        ({"overrides": "seeds=[1]"}, ["'overrides'", "give a list"]),
        ({"n": True}, ["'n'", "bool", "give a int"]),
        ({"rate": True}, ["'rate'", "bool"]),
        ({"rate": math.nan}, ["'rate'", "nan", "finite"]),
        ({"threshold": -5}, ["'threshold' is -5", "from 0 to 100"]),
        ({"threshold": 100.5}, ["'threshold' is 100.5", "from 0 to 100"]),
    ],
)
def test_wrong_parameters_are_named(tmp_path, parameters, words):
    more = '"""Why."""\nn = 3\nrate: float = 0.5\nthreshold = 0.0\nother = None'
    notebook = write_notebook(tmp_path / "a.ipynb", "# A", parameters=f"{DEFAULTS}\n{more}")
    check(notebook, {"rate": 1, "n": 4, "threshold": 100, "other": "anything"})
    with pytest.raises(ConfigError) as caught:
        check(notebook, parameters)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        (None, "no code cell tagged 'parameters'"),
        ("scale = ", "not valid Python"),
        ("import os", "no assignment"),
        ("scale = str(3)", "must be a plain value"),
    ],
)
def test_a_notebook_with_a_wrong_parameters_cell_is_refused(tmp_path, source, words):
    notebook = write_notebook(tmp_path / "a.ipynb", "# A", parameters=source)
    with pytest.raises(ConfigError, match=words):
        notebooks.read_parameters(notebook)


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '{"cells": 3}', "no notebook"])
def test_what_is_no_notebook_is_refused(tmp_path, content):
    notebook = tmp_path / "a.ipynb"
    if content is not None:
        notebook.write_text(content)
    with pytest.raises(ConfigError, match=r"a\.ipynb"):
        notebooks.read_parameters(notebook)


def test_parameters_are_checked_before_anything_is_executed(tmp_path, monkeypatch):
    write_notebook(tmp_path / "01_a.ipynb", "# A")
    write_notebook(tmp_path / "02_b.ipynb", "# B", parameters='scale = "smoke"\noverrides = []')
    calls = []
    monkeypatch.setattr("papermill.execute_notebook", lambda *a, **k: calls.append(a))
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    with pytest.raises(ConfigError, match=r"02_b\.ipynb has no parameter 'build'"):
        report.render("smoke", build=tmp_path / "build")
    assert not calls


def test_nbconvert_without_its_templates_is_named_before_notebooks_run(tmp_path, monkeypatch):
    write_notebook(tmp_path / "01_a.ipynb", "# A")
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    monkeypatch.setattr("nbconvert.exporters.templateexporter.jupyter_path", lambda *_: [])
    monkeypatch.setattr(report, "execute_all", None)
    with pytest.raises(ReportError, match=r"^nbconvert's templates are not in .* JUPYTER_PATH$"):
        report.render("smoke", build=tmp_path / "build")


def test_a_folder_without_notebooks_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "NOTEBOOKS", tmp_path)
    with pytest.raises(ReportError, match=str(tmp_path)):
        report.render("smoke", build=tmp_path / "build")


def test_failed_notebooks_are_kept_and_named_and_the_old_report_stays(tmp_path, monkeypatch):
    notebooks, build = tmp_path / "notebooks", tmp_path / "build"
    notebooks.mkdir()
    build.mkdir()
    write_notebook(notebooks / "01_a.ipynb", "# A", "1 + 1", "\ncount = {}\ncount['x']")
    write_notebook(notebooks / "02_b.ipynb", "# B", "import os; os._exit(3)")
    (build / "report.html").write_text("old")
    monkeypatch.setattr(paths, "NOTEBOOKS", notebooks)
    with pytest.raises(ReportError) as caught:
        report.render("smoke", build=build)
    message = str(caught.value)
    assert re.search(r"01_a\.ipynb failed in cell \[4\] \(count = \{\}\): KeyError: 'x'", message)
    assert str(build / "notebooks" / "01_a.ipynb") in message
    assert re.search(r"02_b\.ipynb failed: .*[Kk]ernel", message)
    assert (build / "report.html").read_text() == "old"

    kept = (build / "notebooks" / "01_a.ipynb").read_text()
    assert "KeyError" in kept
    assert "papermill-error-cell" in kept
    with pytest.raises(ReportError, match="failed"):
        assemble([build / "notebooks" / "01_a.ipynb"], tmp_path / "x.html")


def test_executed_notebooks_open_in_jupyterlab(rendered):
    path = rendered.parent / "notebooks" / "01_data.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "papermill" not in path.read_text()
    assert not [
        p for p in path.parent.iterdir() if p.name not in ("01_data.ipynb", "02_more.ipynb")
    ]


def test_the_page_is_one_file_that_loads_nothing(html):
    assert len(html.encode()) < 150_000
    assert html.count("<html") == 1
    assert '<html lang="en">' in html
    for tag in re.findall(r"<(?:link|script|img|iframe|object|source)\b[^>]*>", html):
        assert "http" not in tag
    assert not re.search(r"@import|url\(\s*['\"]?(?!#)", html)
    assert not re.search(r"mathjax|require\.js|jquery", html, flags=re.IGNORECASE)


def test_outputs_are_shown_and_parameters_left_out(html):
    assert "smoke ['seeds=[1]']" in html
    assert '<pre class="stream">a &lt; b' in html
    assert "noted" in html
    assert "&lt;i&gt;text&lt;/i&gt;" in html
    assert "empty: build/" not in BeautifulSoup(html, "html.parser").get_text()  # parameters
    assert "# Parameters" not in html  # the injected one
    assert html.count('<details class="source">') == 7
    assert html.index("held: True") < html.index("What was run")  # tagged `front`


def test_headings_are_nested_numbered_and_listed(html):
    levels = [int(level) for level in re.findall(r"<h([1-6])", html)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
    contents = html[html.index("<nav") : html.index("</nav>")]
    text = re.sub(r"<[^>]+>", "", contents.replace("</a>", "\n"))
    assert [line.strip() for line in text.splitlines() if line.strip()] == [
        "Contents", "What was run", "1 The data", "1.1 Results", "1.2 Results",
        "2 More &amp; more", "2.1 Results", "3 Provenance", "4 Every run",
    ]  # fmt: skip
    assert re.findall(r'href="#([^"]+)"', contents) == [
        "what-was-run", "the-data", "results", "the-data-results",
        "more-more", "more-more-results", "provenance", "runs",
    ]  # fmt: skip


def test_charts_take_the_pages_ink_and_share_their_letters():
    shown = []
    for number in ("1", "2"):
        figure, axis = plt.subplots()
        axis.plot([1, int(number)], color="#262626")
        shown.append(show.figure(figure, number, "Title", alt="A <line>.").html)
    soup = BeautifulSoup(f"<main>{''.join(shown)}</main>", "html.parser")
    drawn = BeautifulSoup(page.inline_drawings(str(soup)), "html.parser")
    one, other = drawn.select("figure svg")
    assert one["aria-label"] == "A <line>."
    assert "#262626" not in str(one)
    assert "var(--text)" in str(one)
    ids = [tag["id"] for tag in drawn.find_all(id=True)]
    assert len(ids) == len(set(ids))
    used = {tag["href"][1:] for drawing in (one, other) for tag in drawing("use")}
    assert used <= set(ids)
    assert {tag["id"] for tag in drawn.select("svg.letters path")} & used


def test_the_page_says_what_it_stands_for(html):
    assert html.count("Smoke scale: generated stand-in set, not CIFAR-10") == 3
    assert "1 of 120 runs is recorded" in html
    assert "Damaged records are treated as missing" in html
    assert "does not match its digest" in html
    assert "cifarlib run stage1-base/2 --scale smoke --set &#39;seeds=[1]&#39;" in html.replace(
        "'seeds=[1]'", "&#39;seeds=[1]&#39;"
    )
    assert "A &lt;b&gt;bold&lt;/b&gt; processor" in html
    assert "<b>bold" not in html
    for text in ("2025-01-02T03:04:05", "0123456789ab, with uncommitted changes", "torch 2.11.0"):
        assert text in html


def test_the_same_records_give_the_same_page(rendered, html):
    executed = sorted((rendered.parent / "notebooks").glob("*.ipynb"))
    results = open_results("smoke", ["seeds=[1]"], rendered.parent)
    told = front.describe(results, results.options, read_verdicts(executed))
    again = assemble(executed, rendered.parent / "again.html", told)
    block = re.compile('<script type="application/json" id="shown">.*</script>\\n')  # for diff
    assert again.read_text(encoding="utf-8") == block.sub("", html)
    assert not re.search(r"\b20(?!25-01-02)\d\d-\d\d-\d\dT", html)


def test_a_chapter_alone_is_a_page_of_its_own(tmp_path, monkeypatch):
    notebooks, build = tmp_path / "notebooks", tmp_path / "build"
    notebooks.mkdir()
    build.mkdir()
    write_notebook(notebooks / "01_data.ipynb", "# The data", "1 / 0")
    write_notebook(notebooks / "02_stage1.ipynb", "# Stage 1\n\nSee [Table I](#table-I).")
    (build / "report.html").write_text("old")
    monkeypatch.setattr(paths, "NOTEBOOKS", notebooks)
    told = []
    page = report.render("smoke", build=build, only=["stage1"], tell=told.append)
    assert told == [
        "executing 1 notebook over 0 recorded runs",
        "[1/1] 02_stage1.ipynb: executed",
        "setting the page and the PDF",
    ]
    assert page == build / "report-stage1.html"
    assert (build / "report.html").read_text() == "old"
    html = page.read_text(encoding="utf-8")
    assert "See Table I." in html  # the link's target is in another chapter
    assert "Only stage1 · Smoke scale" in html
    assert "--only stage1" in html
    assert [p.name for p in (build / "notebooks-stage1").iterdir()] == ["02_stage1.ipynb"]


@pytest.mark.parametrize(
    ("only", "calls"),
    [
        ([], [(["01_a", "03_c"], None), (["02_b"], "notebooks")]),
        (["a", "b"], [(["01_a"], None), (["02_b"], "notebooks-a-b")]),
        (["b"], [(["02_b"], "")]),  # what an earlier report executed
    ],
)
def test_a_chapter_that_reads_the_others_is_executed_last(tmp_path, monkeypatch, only, calls):
    home, build, found = tmp_path / "notebooks", tmp_path / "build", []
    home.mkdir()
    build.mkdir()
    for name in ("01_a", "02_b", "03_c"):
        more = '\nexecuted = ""' if name == "02_b" else ""
        write_notebook(home / f"{name}.ipynb", f"# {name}", parameters=DEFAULTS + more)

    def execute_all(chapters, folder, parameters, tell):
        found.append(([path.stem for path in chapters], parameters[0].get("executed")))
        folder.mkdir(parents=True, exist_ok=True)
        for path in chapters:
            executed_notebook(folder / path.name)

    monkeypatch.setattr(paths, "NOTEBOOKS", home)
    monkeypatch.setattr(report, "execute_all", execute_all)
    report.render("smoke", build=build, only=only)
    assert found == [(names, str(build / folder) if folder else folder) for names, folder in calls]


def test_a_build_folder_that_is_not_there_is_no_empty_one(tmp_path):
    with pytest.raises(ConfigError, match=r"there is no build folder .*lit; records are made by"):
        report.render("lite", build=tmp_path / "lit")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("overrides", "parts", "suffix"),
    [
        ([], [], ""),
        ([], ["data", "stage1"], "-data-stage1"),
        (["data.train_size=100", "epochs.30=2"], [], "-data.train_size=100-epochs.30=2"),
        (["seeds=[1, 2]"], ["stage1"], "-stage1-seeds=-1-2"),
    ],
)
def test_a_changed_scale_does_not_replace_the_scales_own_report(
    monkeypatch, tmp_path, overrides, parts, suffix
):
    monkeypatch.setattr(paths, "BUILD", tmp_path)
    assert report.name_suffix(open_results("smoke", overrides), parts) == suffix
    elsewhere = open_results("smoke", overrides, tmp_path / "elsewhere")
    assert report.name_suffix(elsewhere, parts) == "".join(f"-{part}" for part in parts)
    assert report.name_suffix(elsewhere, [], ["threshold=65"]) == "-threshold=65"
    long = report.name_suffix(open_results("smoke", [f"seeds={[*range(10**8, 10**8 + 13)]}"]))
    assert len(long) == report.MOST_LETTERS


@pytest.mark.parametrize(
    ("only", "chosen"),
    [
        ([], ["01_data", "02_stage1", "03_stage2"]),
        (["stage1"], ["02_stage1"]),
        (["03"], ["03_stage2"]),
        (["notebooks/03_stage2.ipynb"], ["03_stage2"]),
        (["stage2", "data"], ["01_data", "03_stage2"]),
        (["stage"], ["02_stage1", "03_stage2"]),
    ],
)
def test_chapters_are_chosen_by_a_part_of_their_names(only, chosen):
    notebooks = [Path(f"{name}.ipynb") for name in ("01_data", "02_stage1", "03_stage2")]
    assert [n.stem for n in report.choose_chapters(notebooks, only)] == chosen
    for part in ("stgae1", "", ".ipynb", "x"):
        with pytest.raises(ConfigError, match=r"no such chapter; .*(stage1)"):
            report.choose_chapters(notebooks, [part])


def test_the_names_of_runs_stand_where_only_ids_did(tmp_path):
    results = open_results("smoke", build=tmp_path)
    first, second = results.conditions[:2]
    frame = pd.DataFrame({"Run": ["one", "two"], "n": [1, 2]})
    frame.attrs["runs"] = [(first.run_id,), (first.run_id, second.run_id)]
    shown = show.table(frame, "I", "Runs").html
    notebook = executed_notebook(tmp_path / "a.ipynb", shown)
    told = front.describe(results, "--scale smoke")
    page = assemble([notebook], tmp_path / "x.html", told).read_text(encoding="utf-8")
    assert f'<a href="#run-{first.run_id}" title="stage1-base/1">one</a>' in page
    assert f'<summary>two</summary><a href="#run-{first.run_id}">stage1-base/1</a>' in page
    for run in (first, second):
        assert f'id="run-{run.run_id}"' in page


def test_sentences_in_tables_are_stacked_on_a_phone(tmp_path):
    words = pd.DataFrame({"Claim": ["a claim in many words, enough to be broken"], "n": [1]})
    notebook = executed_notebook(tmp_path / "a.ipynb", show.table(words, "I", "T").html)
    page = assemble([notebook], tmp_path / "x.html").read_text(encoding="utf-8")
    assert re.search(r'<table class="data[^"]* stacked">', page)
    assert '<td data-label="n">1</td>' in page


def test_a_chapter_that_reads_others_does_not_read_its_older_self(tmp_path, monkeypatch):
    (tmp_path / "b.ipynb").write_text("what an answer was called before", encoding="utf-8")
    seen = []

    def note(chosen, folder, *_):
        seen.append((chosen, [path.name for path in folder.iterdir()]))

    monkeypatch.setattr(report, "execute_all", note)
    report._execute([Path("b.ipynb"), Path("a.ipynb")], tmp_path, [{"executed": ""}, {}], print)
    assert seen == [([Path("a.ipynb")], ["b.ipynb"]), ([Path("b.ipynb")], [])]


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (['<a href="#table-IX">Table IX</a>'], ["a.ipynb", "'Table IX'", "#table-IX"]),
        (['<p id="x">1</p>', '<p id="x">2</p>'], ["'x'", "twice", "a.ipynb"]),
        (['<img src="https://example.org/a.png" alt="">'], ["img", "https://example.org/a.png"]),
        (['<script src="x.js"></script>'], ["script", "x.js"]),
        (['<link rel="stylesheet" href="//x.css">'], ["link"]),
        (['<p style="background: url(a.png)">x</p>'], ["a.png"]),
        (['<style>@import "a.css";</style>'], ["a.css"]),
    ],
)
def test_a_broken_page_is_refused(tmp_path, parts, words):
    with pytest.raises(ReportError) as caught:
        assemble([executed_notebook(tmp_path / "a.ipynb", *parts)], tmp_path / "x.html")
    for word in words:
        assert word in str(caught.value)
    assert not (tmp_path / "x.html").exists()


def test_names_with_markup_are_shown_as_text(tmp_path):
    scale = tmp_path / "<b>'x'&.yaml"
    scale.write_text((paths.PARAMS / "smoke.yaml").read_text())
    results = open_results(str(scale), ["seeds=[1]  # <u>"], tmp_path / "<i>")
    told = front.describe(results, results.options)
    notebook = executed_notebook(tmp_path / "a.ipynb")
    page = assemble([notebook], tmp_path / "x.html", told).read_text(encoding="utf-8")
    assert not re.search(r"<[biu]>", page)
    assert "&lt;b&gt;" in page


@pytest.mark.parametrize(
    ("scale", "changes", "kind"),
    [
        ("smoke", [], "standin"),
        ("lite", [], "reduced"),
        ("full", [], "full"),
        ("full", ["data.test_size=9999"], "reduced"),
        ("full", ["epochs.200=199"], "reduced"),
        ("full", ["image_size=192"], "reduced"),
    ],
)
def test_a_reduced_number_never_passes_for_the_papers(tmp_path, scale, changes, kind):
    assert front.describe(open_results(scale, changes, tmp_path), "")["kind"] == kind


def test_all_runs_recorded_is_said(tmp_path):
    results = open_results("smoke", build=tmp_path)
    write_records(results.store, results.conditions, **MARKED_UP)
    told = front.describe(open_results("smoke", build=tmp_path), "--scale smoke")
    assert told["counts"] == "All 120 runs are recorded."
    assert {stage["pending"] for stage in told["stages"]} == {0}
    assert {stage["cost"] for stage in told["stages"]} == {"–"}
    assert dict(told["provenance"])["Devices"] == ["A <b>bold</b> processor (cpu)"]
