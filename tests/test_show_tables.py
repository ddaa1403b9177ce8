"""Numbered tables and figures: what is shown is text, missing is said, the same twice."""

import base64
import csv
import re
from urllib.parse import unquote

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from cifarlib.formatting import fixed, signed
from cifarlib.report import show

FRAME = pd.DataFrame(
    {
        ("", "Run"): [1, 2, 3],
        ("Test", "paper"): [50.0, None, 70.0],
        ("Test", "ours"): [60.04, 61.0, None],
        ("Test", "diff."): [10.04, -9.96, None],
    }
)
FORMATS = {"paper": "{:.1f}", "ours": fixed(1), "diff.": signed(1)}


def cells(shown):
    body = shown.html[shown.html.index("<tbody>") :]
    return [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row) for row in body.split("</tr>")[:-1]]


def test_a_table_shows_its_cells_formatted():
    shown = show.table(FRAME, "IV", "Title", formats=FORMATS)
    assert cells(shown) == [
        ["1", "50.0", "60.0", "+10.0"],
        ["2", "–", "61.0", "−10.0"],
        ["3", "70.0", "pending", "–"],
    ]
    assert 'id="table-IV"' in shown.html
    assert '<th scope="colgroup" colspan="3" style="text-align: center">Test</th>' in shown.html
    assert "Table IV" in shown.text


def test_a_long_table_is_ruled_off_by_group_and_its_differences_are_shaded():
    frame = pd.DataFrame({("", "Batch"): [32] * 7 + [64] * 7, ("Test", "diff."): range(-8, 6)})
    frame.attrs["group"] = ("", "Batch")
    rows = show.table(frame, "IV", "Title").html.partition("<tbody>")[2].split("</tr>")[:-1]
    assert [n for n, row in enumerate(rows) if 'class="group"' in row] == [7]
    assert 'style="--by:1.00;--tone:var(--less)"' in rows[0]
    assert 'style="--by:0.50;--tone:var(--more)"' in rows[12]


def test_a_difference_that_reads_0_is_not_shaded():
    frame = pd.DataFrame({("", "Batch"): ["a", "b"], ("Test", "diff."): [1e-7, -1e-7]})
    assert "--tone" not in show.table(frame, "II", "Title", decimals=6).html
    assert "--tone" in show.table(frame, "II", "Title", decimals=7).html


def test_an_index_with_a_name_names_the_rows():
    runs = pd.DataFrame({"optimizer": ["sgd", "adam"], "rate": [1, 2], "top": [50.0, 60.0]})
    means = runs.groupby(["optimizer", "rate"])[["top"]].mean()
    means.attrs["runs"] = {("sgd", 1): ("0123456789abcdef",)}
    first, second = cells(show.table(means, "1", "Title"))
    assert [first[0], *first[1:]] == ["adam", "2", "60.0"]
    assert second[0] == '<a href="#run-0123456789abcdef">sgd</a>'
    assert cells(show.table(runs.set_index("optimizer", drop=False), "1", "T"))[0][0] == "sgd"


def test_the_first_cell_leads_to_the_runs_behind_its_row():
    frame = FRAME.copy()
    frame.attrs["runs"] = [("0123456789abcdef",), (), ("aaaaaaaaaaaaaaaa", "bbbbbbbbbbbbbbbb")]
    first, second, third = (row[0] for row in cells(show.table(frame, "IV", "Title")))
    assert first == '<a href="#run-0123456789abcdef">1</a>'
    assert second == "2"
    assert re.findall('href="#run-(.)', third) == ["a", "b"]
    assert "<summary>3</summary>" in third


def test_a_table_carries_its_csv():
    shown = show.table(FRAME, "IV", "Title", formats=FORMATS)
    link = re.search(
        r'download="table-IV.csv"[^>]*href="data:text/csv;charset=utf-8,(.*?)"', shown.html
    )
    rows = list(csv.reader(unquote(link[1]).removeprefix("\ufeff").splitlines()))
    assert rows[0] == ["Run", "Test, paper", "Test, ours", "Test, diff."]
    assert rows[1:] == [
        ["1", "50", "60.04", "10.04"],
        ["2", "", "61", "-9.96"],
        ["3", "70", "", ""],
    ]


def test_a_tables_columns_may_be_named_by_numbers():
    shown = show.table(pd.DataFrame({"Batch": ["test"], 0: [1.5], 32: [61.0]}), "I", "Title")
    assert shown.content["columns"] == [["", "Batch"], ["", "0"], ["", "32"]]
    assert '<th scope="col">32</th>' in shown.html
    assert "Batch,0,32" in unquote(shown.html)


def test_no_cell_of_a_csv_is_a_formula():
    texts = ["=1+1", "@SUM(1)", "+cmd|' /C calc'!A0", "-2+3", "-x"]
    texts += ["-2e3+cmd|x", "+1e"]
    harmless = ["+1.50 [0 to 3]", "-0.5", "−2", "a=1", "-8.75e-08", "+1e9"]
    table = show.table(pd.DataFrame({"A": [*texts, *harmless]}), "IV", "T", note="")
    content = unquote(re.search(r'utf-8,(.*?)"', table.html)[1]).removeprefix("\ufeff")
    cells = [row[0] for row in csv.reader(content.splitlines())][1:]
    assert cells == [*(f"'{text}" for text in texts), *harmless]


def test_markup_stays_text_in_csv():
    frame = pd.DataFrame({"a": ['<b>"x", y</b>']})
    link = re.search('href="data:([^"]*)"', show.table(frame, "I", "T").html)
    assert "<" not in link[1]
    assert next(iter(csv.reader(unquote(link[1]).split("\r\n")[1:]))) == ['<b>"x", y</b>']


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["sgd", "adam"], "text"),
        (["a sentence that is longer than a line of a table", None], "text long"),
        (["1", "two"], ""),
        ([1.0, 2.0], ""),
        ([None, None], ""),
    ],
)
def test_columns_of_words_are_set_flush_left(values, kind):
    shown = show.table(pd.DataFrame({"n": [1, 2], "x": values}), "I", "T")
    expected = f'<th scope="col" class="{kind}">x</th>' if kind else '<th scope="col">x</th>'
    assert expected in shown.html


def test_markup_in_names_is_shown_as_text():
    evil = "<script>alert(1)</script>"
    frame = pd.DataFrame({evil: [evil]})
    shown = show.table(frame, evil, evil, note=evil)
    assert "<script>" not in shown.html
    assert shown.html.count("&lt;script&gt;") >= 4
    figure = show.figure(None, "1", evil, alt=evil, note=evil)
    assert "<script>" not in figure.html


@pytest.mark.parametrize(
    ("value", "text"), [(1.25, "+1.2"), (-0.44, "−0.4"), (0.01, "0.0"), (-0.01, "0.0"), (0, "0.0")]
)
def test_differences_carry_their_sign(value, text):
    assert signed(1)(value) == text
    assert (fixed(1)(-0.04), fixed(1)(-0.06)) == ("0.0", "−0.1")


def draw():
    figure, axis = plt.subplots()
    axis.plot([1, 2])
    return figure


def test_a_figure_is_the_same_bytes_twice_with_its_alternative_text():
    one, two = (show.figure(draw(), "5", "T", alt='a "line"') for _ in range(2))
    assert one == two
    assert 'alt="a &quot;line&quot;"' in one.html
    source = re.search(r"base64,([^\"]+)", one.html).group(1)
    assert b"<svg" in base64.b64decode(source)
    assert plt.get_fignums() == []


def test_a_cell_of_links_leads_to_places_in_the_report():
    places = (("Table C3", "table-C3"), ("Figure <5>", "figure-5"))
    frame = pd.DataFrame({"Claim": ["so it is"], "See": [show.Links(places)]})
    shown = show.table(frame, "C2", "Claims")
    assert '<a href="#table-C3">Table C3</a>' in shown.html
    assert '<a href="#figure-5">Figure &lt;5&gt;</a>' in shown.html
    assert shown.content["rows"] == [["so it is", "Table C3, Figure <5>"]]
    assert shown.content["links"] == [[0, 1, [list(place) for place in places]]]


def test_computed_sentences_are_text_whatever_they_hold():
    shown = show.text("a < b & c")
    assert shown.html == '<p class="computed">a &lt; b &amp; c</p>'
    assert shown.text == "a < b & c"
