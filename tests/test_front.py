"""What the title page says: the scale, what was run, what held and what did not."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from bs4 import BeautifulSoup
from conftest import make_record
from nbformat.v4 import new_code_cell as code
from nbformat.v4 import new_markdown_cell, new_notebook, new_output

from cifarlib import notebooks, provenance, published
from cifarlib.pages import front
from cifarlib.records import RecordStore, open_results
from cifarlib.report import assembly as report

VERDICTS = ("held", "failed", "not distinguishable", "pending")


def make_finding(verdict, *, text="Rate <b>decides</b>", provisional=True, anchor="table-IV"):
    """A claim and its verdict, as ``claims.judge`` gives them."""
    return SimpleNamespace(
        claim=SimpleNamespace(id="rate", where="§V", text=text),
        paper="86.9 %",
        ours="31.5 %",
        interval="",
        verdict=verdict,
        provisional=provisional,
        reason="Because.",
        links=(("Table IV", anchor),) if anchor else (),
        runs=(),
    )


def make_doubts(*verdicts):
    return [SimpleNamespace(verdict=verdict) for verdict in verdicts]


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A study of which one run is recorded."""
    folder = tmp_path_factory.mktemp("begun")
    condition = open_results("smoke", [], folder).conditions[0]
    RecordStore(folder).write(make_record(condition))
    return open_results("smoke", [], folder)


def show(told, *html):
    """The title page as it stands in a report whose only chapter shows some HTML."""
    cells = [new_markdown_cell("# A title")]
    cells += [
        code("show()", outputs=[new_output("display_data", data={"text/html": text})])
        for text in html
    ]
    notebook = notebooks.join([("06_claims.ipynb", new_notebook(cells=cells))])
    return BeautifulSoup(report.make_page(notebook, told), "html.parser").select_one("header.front")


def test_verdicts_are_counted_and_the_first_claims_named(begun):
    findings = [make_finding(v) for v in VERDICTS] + [make_finding("held")] * 4
    told = front.describe(begun, "", findings)
    groups = {group["verdict"]: group for group in told["verdicts"]}
    assert list(groups) == ["held", "failed", "not distinguishable"]
    assert [group["count"] for group in groups.values()] == [5, 1, 1]
    assert len(groups["held"]["claims"]) + groups["held"]["more"] == 5
    assert groups["failed"]["claims"][0]["ours"] == "31.5 %"


@pytest.mark.parametrize(
    ("findings", "text"),
    [
        ([], ""),
        ([make_finding("held", provisional=False)], ""),
        ([make_finding("pending"), make_finding("held")], "One claim of 2 cannot be judged yet. "
         "Every verdict is provisional."),
        ([make_finding("held"), make_finding("failed", provisional=False)],
         "One verdict is provisional."),
        ([make_finding("pending")] * 3, "3 claims of 3 cannot be judged yet."),
        ([make_finding("not judged", provisional=False)] * 3,
         "None of the 3 claims is judged: these data are not CIFAR-10."),
    ],
)  # fmt: skip
def test_what_is_open_is_said(begun, findings, text):
    assert front.describe(begun, "", findings)["pending"] == text


def test_claims_that_are_not_judged_are_not_counted(begun):
    told = front.describe(begun, "", [make_finding("not judged", provisional=False)] * 3)
    assert told["verdicts"] == []
    page = show(told)
    assert not page.select(".verdict")
    assert "these data are not CIFAR-10" in page.select_one(".onward").get_text()


def test_the_audit_is_summed_up(begun):
    doubts = make_doubts("confirmed", "refuted", "confirmed", "undecidable")
    told = front.describe(begun, "", [], doubts)
    assert told["audit"] == "4 doubts examined: 2 confirmed, 1 refuted, 1 undecidable"
    assert front.describe(begun, "")["audit"] == ""


def test_the_facts_are_the_scales_and_the_records(begun):
    facts = dict(front.describe(begun, "")["facts"])
    assert facts["Runs done"] == "1 of 120"
    assert facts["Conditions"] == "120, one seed each"
    assert facts["Training images"] == "200 of 9,000"
    assert facts["Epochs"] == "4–8 (paper: 30–200)"
    assert facts["Machine time"] == "15 s on a processor"


def test_the_page_comes_out_the_same_from_another_commit(begun, monkeypatch):
    before = front.describe(begun, "")["provenance"]
    monkeypatch.setattr(provenance, "commit", lambda *_: ("f" * 40, True))
    assert front.describe(begun, "")["provenance"] == before


def test_conditions_of_ones_own_are_counted_apart(begun):
    own = replace(begun.conditions[0], name="stage1-base/epochs=31", run=None)
    told = front.describe(replace(begun, conditions=[*begun.conditions, own]), "")
    assert dict(told["facts"])["Conditions"] == "120 and 1 of your own, one seed each"


def test_the_papers_best_is_its_table(begun):
    best = front.describe(begun, "")["best"]
    assert str(best) == str(published.read_table(15)["test_top1"].iloc[0])
    text = " ".join(show(front.describe(begun, "")).get_text().split())
    assert f"its best test accuracy is {best} %" in text


def test_claims_link_to_what_the_page_has_and_markup_stays_text(begun):
    findings = [make_finding("held"), make_finding("failed", anchor="table-nowhere")]
    told = front.describe(begun, "", findings, make_doubts("confirmed"))
    page = show(told, '<figure class="table" id="table-IV"></figure>')
    assert not page.find("b")
    held, failed = page.select_one(".held li"), page.select_one(".failed li")
    assert held.a["href"] == "#table-IV"
    assert held.a.get_text() == "Rate <b>decides</b>"
    assert failed.a is None
    assert page.find("a", href="#chapter-06_claims")
    assert "the audit" in page.get_text()
    assert not page.find("a", href="#chapter-05_audit")  # that chapter is not there


def test_a_report_without_verdicts_has_no_empty_boxes(begun):
    page = show(front.describe(begun, ""))
    assert not page.select(".verdict")
    assert not page.select(".onward")


def test_a_part_of_the_report_says_so(begun):
    told = front.describe(begun, "--scale smoke", parts=["stage1"])
    assert told["label"].startswith("Only stage1 · Smoke scale")
    assert told["command"] == "cifarlib report --scale smoke --only stage1"
