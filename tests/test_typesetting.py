"""The PDF: what notebooks show is in it, linked, tagged, and the same bytes every time."""

import base64
import io
import re

import matplotlib.pyplot as plt
import nbformat
import pandas as pd
import pypdf
import pytest
from conftest import PNG, write_records
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from cifarlib.errors import ReportError
from cifarlib.report import assembly as report
from cifarlib.report import front, notebooks, show, typesetting
from cifarlib.runs.results import open_results
from cifarlib.runs.store import RecordStore

PLAIN = {"title": "A title", "timestamp": 0, "partial": False}
SENTENCE = "Every run above 70 % has the larger learning rate, and no smaller one comes near it."


def shown(value):
    """A code cell that displayed something of ``cifarlib.report.show``, or a bundle of forms."""
    bundle = value if isinstance(value, dict) else value._repr_mimebundle_()
    return new_code_cell("show()", outputs=[new_output("display_data", data=bundle)])


def set_pdf(*cells, front=PLAIN, name="a.ipynb"):
    cells = [new_markdown_cell(cell) if isinstance(cell, str) else cell for cell in cells]
    return typesetting.typeset(notebooks.join([(name, new_notebook(cells=cells))]), front)


def read(content):
    return pypdf.PdfReader(io.BytesIO(content))


def text_of(content):
    """A PDF's text, each run of blanks and line ends as one blank."""
    return " ".join(" ".join(page.extract_text() for page in read(content).pages).split())


def show_table(number="IV", rows=3, **columns):
    frame = pd.DataFrame({"Run": range(1, rows + 1), "Test": [50.5 + n for n in range(rows)]})
    return show.table(
        frame.assign(**columns), number, "A table", note="A note.", formats={"Test": "{:.1f}"}
    )


def show_figure(alt="A line that rises", number="5", height=2):
    figure, axis = plt.subplots(figsize=(3, height))
    axis.plot([1, 2])
    return show.figure(figure, number, "A figure", alt=alt)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A study of which two runs are recorded."""
    folder = tmp_path_factory.mktemp("begun")
    recorded = open_results("smoke", [], folder).conditions[:2]
    write_records(RecordStore(folder), recorded, dirty=True, device="A #strange *device*")
    return open_results("smoke", [], folder)


@pytest.fixture(scope="module")
def whole(results):
    """The front matter of a report over those records."""
    told = front.describe(results, "--scale smoke")
    return front.describe_paper(results, told, report.TITLE) | {"partial": False}


def test_a_table_is_set_with_its_number_cells_and_note():
    said = text_of(set_pdf("# One", shown(show_table())))
    assert "Table IV. A table Run Test 1 50.5 2 51.5 3 52.5 A note." in said
    frame = pd.DataFrame(
        {("", "Run"): [1, 2], ("Test", "paper"): [50.0, None], ("Test", "ours"): [None, 61.25]}
    )
    said = text_of(set_pdf("# One", shown(show.table(frame, "V", "T", best="Test"))))
    assert re.search(r"Test Run paper ours 1 50\.0 pending 2 – 61\.2", said)


def test_text_with_markup_is_set_as_it_is():
    strange = '*a* _b_ #c $d$ <e> @f `g` \\h "i" [j] // k'
    table = show.table(pd.DataFrame({strange: [strange]}), "IV", strange, note=strange)
    assert text_of(set_pdf("# One", shown(table))).count(strange) == 4


def test_a_long_table_goes_on_with_its_head_on_the_next_page():
    pages = [p.extract_text() for p in read(set_pdf("# One", shown(show_table(rows=100)))).pages]
    assert len(pages) > 1
    assert all("Run Test" in " ".join(page.split()) for page in pages)


def test_tables_and_figures_stay_in_their_order():
    # A high one goes to the foot of its page; the next one would have room above it.
    tables = [shown(show_table(number, rows)) for number, rows in (("IV", 15), ("V", 2), ("VI", 2))]
    figures = [shown(show_figure(number=f"{n}", height=5 if n == 1 else 1)) for n in (1, 2, 3)]
    for items in (tables, figures):
        cells = [cell for item in items for cell in (SENTENCE, item)]
        pages = read(set_pdf("# One", *cells)).pages
        said = "\n".join(page.extract_text(extraction_mode="layout") for page in pages)
        numbers = [item.outputs[0].data["text/plain"].split(":")[0] for item in items]
        places = [said.index(f"{number}.") for number in numbers]
        assert places == sorted(places)


def test_a_figure_is_a_vector_drawing_with_its_alternative_text():
    content = read(set_pdf("# One", shown(show_figure())))
    assert "Figure 5. A figure" in " ".join(content.pages[0].extract_text().split())
    assert not content.pages[0].images
    assert b"A line that rises" in every_string(content)
    pending = show.figure(None, "5", "A figure", alt="A line")
    assert re.search(r"pending Figure 5\. A figure", text_of(set_pdf("# One", shown(pending))))


def every_string(reader):
    """All strings of a PDF's structure, for alternative texts."""
    found, seen, waiting = [], set(), [reader.trailer["/Root"]["/StructTreeRoot"]]
    while waiting:
        item = waiting.pop()
        if isinstance(item, pypdf.generic.IndirectObject):
            if item.idnum in seen:
                continue
            seen.add(item.idnum)
            item = item.get_object()
        if isinstance(item, dict):
            waiting += [item.raw_get(key) for key in item if key != "/P"]
        elif isinstance(item, list):
            waiting += list(item)
        elif isinstance(item, str):
            found.append(item.encode())
    return b"\n".join(found)


def test_prose_is_translated_cell_by_cell():
    texts = ["# A *b*\n\n[c][d] `e`", "[d]: https://f.org\n\n#g"]
    pieces = [typesetting.Piece("prose", "", "", False, text) for text in texts]
    one, two = typesetting.translate("ipynb", pieces)
    assert one.startswith("= A #emph[b]")
    assert "`e`" in one
    assert "f.org" not in one
    assert "\\#g" in two
    assert b"x^2 + \\alpha" in every_string(read(set_pdf("# One\n\nIt is $x^2 + \\alpha$.")))


@pytest.mark.parametrize(
    ("bundle", "said"),
    [
        ({"text/html": pd.DataFrame({"a<b": ["x & y", "#z"]}).to_html()}, "a<b 0 x & y 1 #z"),
        ({"text/html": "<p>One</p><script>two()</script>"}, "One"),
        ({"text/markdown": "**loud** [out](https://example.org)"}, "loud out"),
        ({"text/plain": "{'a': *1*}"}, "{'a': *1*}"),
        ({"application/vnd.jupyter.widget-view+json": {}, "text/plain": "Box()"}, "Box()"),
    ],
)
def test_ordinary_outputs_are_set(bundle, said):
    text = text_of(set_pdf("# One", shown(bundle)))
    assert said in text
    assert "two()" not in text


def test_what_was_printed_is_set_in_its_first_lines_without_colours_and_warnings():
    lines = ("/checkpoints/" + "x" * 60 + f"/{number}.pt" for number in range(100_000))
    outputs = [
        new_output("stream", name="stdout", text="\x1b[31mred\x1b[0m " + "\n".join(lines)),
        new_output("stream", name="stderr", text="a warning"),
    ]
    said = text_of(set_pdf("# One", new_code_cell("print()", outputs=outputs)))
    for words in ("warning", "print()", "/1000.pt", "\x1b"):
        assert words not in said
    for words in ("red /checkpoints/", "/999.pt", "… 99,000 more lines, in the HTML report"):
        assert words in said.replace("\u200b", "")


def test_images_are_set():
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><path d="M0 0h9"/></svg>'
    inline = f'<p><img src="data:image/png;base64,{PNG}" alt="A dot"> {svg}</p>'
    content = read(
        set_pdf(
            "# One",
            shown({"image/png": PNG}),
            shown({"image/svg+xml": svg}),
            shown({"text/html": inline}),
        )
    )
    assert sum(len(page.images) for page in content.pages) == 1  # one file, though shown twice
    said = every_string(content)
    assert said.count(b"An image") == 2
    assert b"A dot" in said
    assert b"A drawing" in said


def test_of_two_images_of_one_output_the_drawing_is_set():
    kinds = ["image/png", "image/jpeg", "image/svg+xml"]
    for several in (kinds, kinds[::-1]):
        data = dict.fromkeys(several, "PHN2Zy8+")
        piece = typesetting._read_output(data, "A dot", ("a.ipynb", "a.ipynb", False))
        assert piece.markup.startswith('<img src="data:image/svg+xml;base64,')


def links(reader):
    """Annotations of links to a place in the document."""
    found = []
    for page in reader.pages:
        for item in page.get("/Annots", []):
            item = item.get_object()
            if item["/Subtype"] == "/Link" and "/URI" not in item.get("/A", {}):
                found.append(item)
    return found


def test_references_are_links():
    prose = "# One\n\nSee [Table IV](#table-IV) and [Figure 5](#figure-5)."
    reader = read(set_pdf(prose, shown(show_table()), shown(show_figure())))
    assert len(links(reader)) == 2
    assert "Table\u00a0IV and Figure\u00a05" in " ".join(reader.pages[0].extract_text().split(" "))


def test_a_dangling_reference_is_refused_by_the_name_of_its_notebook():
    with pytest.raises(ReportError) as caught:
        set_pdf("# One\n\nSee [Table IX](#table-IX).", name="02_two.ipynb")
    for word in ("02_two.ipynb", "'# One'", "#table-IX"):
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)
    reader = read(set_pdf("# One\n\nSee [Table IX](#table-IX).", front=PLAIN | {"partial": True}))
    assert not links(reader)
    assert "Table" in reader.pages[0].extract_text()


def test_a_row_leads_to_its_run(results, whole):
    frame = pd.DataFrame({"Run": [1, 2, 3], "Test": [1.5, 2.5, 3.5]})
    run = results.conditions[0].run_id
    frame.attrs["runs"] = [(run,), (), ("0123456789abcdef",)]  # the last is of another study
    table = shown(show.table(frame, "IV", "T"))
    assert len(links(read(set_pdf("# One", table)))) == 0
    with_runs, without = (
        len(links(read(set_pdf("# One", cell, front=whole)))) for cell in (table, "Two")
    )
    assert with_runs == without + 1


def test_a_cell_of_links_leads_to_its_place_where_the_report_has_it():
    frame = pd.DataFrame(
        {"No.": [show.Links((("1", "doubt-depth"),)), show.Links((("2", "doubt-no"),))]}
    )
    table = shown(show.table(frame, "A1", "T"))
    doubt = shown(show.doubt("depth", True, "Nine."))
    assert len(links(read(set_pdf("# One", table, doubt)))) == 1
    assert len(links(read(set_pdf("# One", table)))) == 0


def test_title_page_header_and_appendix(whole, results):
    reader = read(set_pdf("# One", "## Two", front=whole))
    pages = [" ".join(page.extract_text().split()) for page in reader.pages]
    label = "Smoke scale: generated stand-in set, not CIFAR-10 · 2 of 120 runs"
    assert all(page.startswith(label) for page in pages)
    assert all(f"{n} / {len(pages)}" in page for n, page in enumerate(pages, start=1))
    assert report.TITLE in pages[0]
    assert "2 January 2025" in pages[0]
    everything = " ".join(pages)
    said = "Of the 120 runs to which the tables of this report refer, 2 are recorded, all on A "
    assert said + "#strange *device*." in everything
    assert "lists the 118 pending ones, too" in everything
    record = results.records[results.conditions[0].run_id]
    assert f"{record.run_id} {record.result.history.epochs} {record.reported_epoch} " in everything
    assert f"{record.accuracy('test'):.2f}" in everything
    listed = {c.run_id for c in results.conditions if c.run_id in everything}
    assert listed == set(results.records)


def test_cells_tagged_front_stand_on_the_title_page(whole):
    cell = shown(show_table())
    cell.metadata["tags"] = ["front"]
    pages = read(set_pdf("# One", cell, front=whole)).pages
    assert "Table IV" in pages[0].extract_text()
    assert "Table IV" not in "".join(page.extract_text() for page in pages[1:])


def test_verdicts_are_summed_up(results):
    group = {"title": "Held", "sign": "✓", "count": 4}
    claim = {"text": "Rates *decide*", "paper": "86.9 %", "ours": "31.5 %"}
    told = front.describe(results, "") | {"pending": "Two wait."}
    told |= {"verdicts": [group | {"claims": [claim]}], "audit": "9 doubts examined"}
    pdf = set_pdf("# One", front=front.describe_paper(results, told, "T") | {"partial": False})
    for words in (
        "Two wait. The paper is also checked against itself and the data. 9 doubts examined.",
        "✓ Held: 4",
        "Rates *decide* (paper: 86.9 %; ours: 31.5 %)",
        "and 3 more",
    ):
        assert words in text_of(pdf)


def test_the_same_records_give_the_same_pdf(whole):
    cells = ["# One\n\n$x$", shown(show_table()), shown(show_figure()), shown({"image/png": PNG})]
    assert set_pdf(*cells, front=whole) == set_pdf(*cells, front=whole)


def test_the_pdf_is_accessible_and_carries_its_fonts(whole):
    reader = read(set_pdf("# One", shown(show_table()), shown(show_figure()), front=whole))
    root = reader.trailer["/Root"]
    assert root["/MarkInfo"]["/Marked"]
    assert root["/Lang"] == "en-GB"
    assert root["/ViewerPreferences"]["/DisplayDocTitle"]
    assert reader.metadata.title == report.TITLE
    assert reader.metadata.creation_date.year == 2025
    told = root["/Metadata"].get_object().get_data()
    assert b"<pdfuaid:part>1" in told
    assert b"<pdfaid:part>2" in told
    for page in reader.pages:
        for font in page["/Resources"].get("/Font", {}).values():
            inner = font.get_object()["/DescendantFonts"][0].get_object()["/FontDescriptor"]
            assert {"/FontFile2", "/FontFile3"} & set(inner.get_object())


@pytest.mark.parametrize(
    ("cell", "words"),
    [
        (shown({"image/png": base64.b64encode(b"no image").decode()}), ["a.ipynb", "show()"]),
        (shown({"text/html": '<img src="https://example.org/a.png">'}), ["https://example.org"]),
        ("![dot](dot.png)", ["a.ipynb", "dot.png", "put it into the notebook"]),
        (
            new_code_cell("1/0", outputs=[new_output("error", ename="E", evalue="", traceback=[])]),
            ["a.ipynb", "1/0", "failed"],
        ),
        (
            shown(show_figure()._repr_mimebundle_() | {"text/html": "<p>no image</p>"}),
            ["a.ipynb", "Figure 5 has no image"],
        ),
    ],
)
def test_what_cannot_be_set_is_named_in_one_sentence(cell, words):
    with pytest.raises(ReportError) as caught:
        set_pdf("# One", cell)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def executed(path):
    cells = [
        new_markdown_cell("# One\n\nSee [Table IX](#table-IX)."),
        new_code_cell("scale = 'smoke'", metadata={"tags": ["parameters"]}),
        shown(show_table()),
    ]
    nbformat.write(new_notebook(cells=cells), path)
    return path


def test_an_older_report_stays_where_the_pdf_cannot_be_made(tmp_path, monkeypatch):
    executed(tmp_path / "01_a.ipynb")  # with a reference that dangles
    build = tmp_path / "build"
    (build / "notebooks").mkdir(parents=True)
    executed(build / "notebooks" / "01_a.ipynb")
    for suffix in ("html", "pdf"):
        (build / f"report.{suffix}").write_text("old")
    monkeypatch.setattr("cifarlib.paths.NOTEBOOKS", tmp_path)
    monkeypatch.setattr(report, "_share_out", lambda *_: [{}])
    monkeypatch.setattr(report, "execute_all", lambda *_: None)
    with pytest.raises(ReportError, match=r"01_a\.ipynb.*#table-IX"):
        report.render("smoke", build=build)
    assert [(build / f"report.{suffix}").read_text() for suffix in ("html", "pdf")] == ["old"] * 2
