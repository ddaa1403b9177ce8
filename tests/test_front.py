"""What the title page says: the scale, what was run, what held and what did not."""

from dataclasses import replace

import pandas as pd
import pytest
from conftest import make_record, make_verdicts, render_page

import cifarlib as cl
from cifarlib import paper
from cifarlib.paper import tables as published
from cifarlib.report import front
from cifarlib.report.verdicts import COLUMNS
from cifarlib.runs import provenance
from cifarlib.runs.results import open_results
from cifarlib.runs.store import RecordStore


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A study of which one run is recorded."""
    folder = tmp_path_factory.mktemp("begun")
    condition = open_results("smoke", [], folder).conditions[0]
    RecordStore(folder).write(make_record(condition))
    return open_results("smoke", [], folder)


def show(told, *html):
    """The title page as it stands in a report whose only chapter shows some HTML."""
    return render_page(told, *html).select_one("header.front")


def test_verdicts_are_counted_and_the_first_claims_named(begun):
    shown = make_verdicts(
        "held", "did not hold", "not distinguishable", "pending", "not tested", *["held"] * 4
    )
    groups = {group["verdict"]: group for group in front.describe(begun, "", shown)["verdicts"]}
    assert list(groups) == ["held", "did not hold", "not distinguishable"]
    assert [group["count"] for group in groups.values()] == [5, 1, 1]
    assert len(groups["held"]["claims"]) == front.SHOWN
    assert groups["did not hold"]["claims"][0]["ours"] == "31.5 %"
    shown["p"] = [0.3, None, None, None, None, 0.2, 0.02, None, 0.001]  # the clearest come first
    groups = {group["verdict"]: group for group in front.describe(begun, "", shown)["verdicts"]}
    held = shown[shown["verdict"] == "held"]["id"].tolist()
    assert [claim["id"] for claim in groups["held"]["claims"]] == [held[4], held[2], held[3]]


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (None, ""),
        (make_verdicts(), ""),
        (make_verdicts("held", provisional=False), ""),
        (make_verdicts("pending", "held"), "1 claim of 2 cannot be judged yet. "
         "Every verdict is provisional."),
        (make_verdicts("not tested", "held", "did not hold", "held", provisional=False),
         "1 claim could not be tested."),
        (make_verdicts("pending", "pending", "pending"), "3 claims of 3 cannot be judged yet."),
        (make_verdicts("not judged", "not judged"),
         "None of the 2 claims is judged: these data are not CIFAR-10."),
    ],
)  # fmt: skip
def test_what_is_open_is_said(begun, shown, text):
    assert front.describe(begun, "", shown)["pending"] == text


def test_some_provisional_verdicts_are_counted(begun):
    shown = make_verdicts("held", "did not hold")
    shown.loc[0, "provisional"] = False
    assert front.describe(begun, "", shown)["pending"] == "1 verdict is provisional."
    answer = cl.answer(1, "Optimiser", "12 points.", begun)  # not on CIFAR-10
    assert (answer.content, "12" in answer.html) == (None, False)


def test_nothing_is_counted_on_other_data_than_cifar10(begun):
    claims = make_verdicts("not judged", "not judged", "not judged", provisional=False)
    doubts = make_verdicts("confirmed", kind="doubt")
    told = front.describe(begun, "", pd.concat([claims, doubts]))
    assert (told["verdicts"], told["audit"]) == ([], "")
    page = show(told)
    assert not page.select(".verdict")
    assert "these data are not CIFAR-10" in page.select_one(".onward").get_text()


def test_answers_open_the_title_page_in_their_order(tmp_path):
    results = open_results("lite", [], tmp_path)
    shown = [
        cl.answer(n, f"<{n}>", f"{n} <b>points</b>.", results).content | {"chapter": "x"}
        for n in (10, 2, 1)
    ]
    told = front.describe(results, "", pd.DataFrame(shown, columns=list(COLUMNS)))
    answers = show(told, '<p id="answer-1"></p>').select(".answers li")
    assert [answer.get_text().removesuffix(" evidence") for answer in answers] == [
        "<1>. 1 <b>points</b>.",
        "<2>. 2 <b>points</b>.",
        "<10>. 10 <b>points</b>.",
    ]
    paragraphs = front.describe_paper(results, told, "What?")["summary"]
    assert paragraphs[1:4] == [(f"<{n}>", f"{n} <b>points</b>.") for n in (1, 2, 10)]
    assert answers[0].a["href"] == "#answer-1"
    assert answers[1].a is None  # that chapter is not there


def test_doubts_are_summed_up(tmp_path):
    results = open_results("lite", [], tmp_path)
    shown = make_verdicts("confirmed", "refuted", "confirmed", "undecidable", kind="doubt")
    told = front.describe(results, "", shown)
    assert told["audit"] == "4 doubts examined: 2 confirmed, 1 refuted, 1 undecidable"
    assert front.describe(results, "", make_verdicts())["audit"] == ""


def test_the_facts_are_the_scales_and_the_records(begun):
    facts = dict(front.describe(begun, "")["facts"])
    assert facts["Runs done"] == "1 of 120"
    assert facts["Conditions"] == "120, 1 seed each"
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
    assert dict(told["facts"])["Conditions"] == "120 and 1 of your own, 1 seed each"


def test_the_papers_best_is_its_table(begun):
    best = front.describe(begun, "")["best"]
    assert str(best) == str(published.table(15)["test_top1"].iloc[0])
    text = " ".join(show(front.describe(begun, "")).get_text().split())
    assert f"reached {best} % at best" in text
    assert paper.source["title"] in text
    assert paper.source["author"] in text


def test_claims_link_to_their_place_and_markup_stays_text(tmp_path):
    shown = make_verdicts("held", "did not hold")
    shown = pd.concat([shown, make_verdicts("confirmed", kind="doubt")])
    told = front.describe(open_results("lite", [], tmp_path), "", shown)
    page = show(told, f'<div id="claim-{shown["id"].iloc[0]}"></div>')
    assert not page.find("b")
    held, other = page.select_one(".held li"), page.select_one(".did-not-hold li")
    assert held.a["href"] == f"#claim-{shown['id'].iloc[0]}"
    assert held.a.get_text() == "Rate <b>decides</b>"
    assert other.a is None
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
