"""What notebooks show: tables of frames with their runs, claims and doubts, and their count."""

import json
from dataclasses import dataclass

import pandas as pd
import pytest

import cifarlib as cl
from cifarlib.analysis import statistics as stats
from cifarlib.analysis.judges import Judgement
from cifarlib.errors import ConfigError, ReportError
from cifarlib.report import show, verdicts
from cifarlib.report.tables import cell_texts

HELD = Judgement("held", "+9.3 points", "+8.1 to +10.5", 0.0004, 16, "16 blocks.", ("a" * 16,))


@dataclass
class Scale:
    """Stands for results, of which a claim needs three things."""

    real: bool = True
    reduced: bool = False
    is_own_budget: bool = False


def test_tables_format_groups_of_paper_and_ours_by_their_kind():
    frame = pd.DataFrame({
        ("", "LR"): [0.0001], ("Epoch", "ours"): [3.0], ("Test", "paper"): [60],
        ("Test", "ours"): [61.234], ("Test", "diff."): [1.234], ("", "Share"): [0.123456],
    })  # fmt: skip
    texts = cell_texts(frame, {"Share": "{:.2f}"}, 2)
    assert texts == [["0.0001", "3", "60", "61.23", "+1.23", "0.12"]]


def test_tables_look_up_runs_and_states_by_index_label():
    frame = pd.DataFrame({("", "Run"): [1, 2], ("Test", "ours"): [None, None]}, index=[7, 4])
    frame.attrs = {"runs": {4: ("b" * 16,), 7: ("a" * 16,)}, "states": {7: "diverged"}}
    shown = show.table(frame.sort_index(), "IV", "A title")
    assert shown.content["rows"] == [["2", "pending"], ["1", "diverged"]]
    assert shown.content["runs"] == [["b" * 16], ["a" * 16]]
    assert f'<a href="#run-{"b" * 16}">2</a>' in shown.html


def test_a_setting_that_a_run_has_not_is_no_missing_value():
    frame = pd.DataFrame({"schedule": [None, "cosine"], "test_top1": [50.0, None]})
    shown = show.table(frame, "1", "A title")
    assert shown.content["rows"] == [["–", "50.0"], ["cosine", "pending"]]
    assert shown.html.count('"pending"') == 1


def test_claims_are_shown_a_line_each_and_completed_by_id():
    lines = repr(cl.paper.claims).splitlines()
    assert len(lines) == len(cl.paper.claims)
    assert lines[0] == f"conditions: {cl.paper.claims['conditions'].text}"
    assert set(cl.paper.claims._ipython_key_completions_()) == set(cl.paper.claims)
    for module in (cl.stats, cl.judge, cl.show, cl.style, cl.plots, cl.paper, cl.explore):
        assert all(hasattr(module, name) for name in dir(module))
        assert not {"np", "pd", "Any", "math"} & set(dir(module))


def test_tables_mark_the_best_of_paper_and_ours_in_a_group():
    frame = pd.DataFrame({("Test", "paper"): [1.0, 2.0], ("Test", "ours"): [4.0, 3.0]})
    assert show.table(frame, "IV", "A title", best="Test").content["best"] == [[0, 1], [1, 0]]


def test_figures_take_a_grid_of_panels_and_none():
    import seaborn as sns

    grid = sns.relplot(pd.DataFrame({"x": [1, 2], "y": [1, 2]}), x="x", y="y")
    assert show.figure(grid, "5", "A title", alt="Two dots").content["drawn"]
    assert "pending" in show.figure(None, "5", "A title", alt="Two dots").html


def test_claims_show_verdict_values_and_runs():
    shown = show.claim("adamw-is-best", HELD, Scale(), paper="77.1 %")
    assert 'id="claim-adamw-is-best"' in shown.html
    assert f'href="#run-{"a" * 16}"' in shown.html
    assert shown.text.splitlines() == [
        "✓ held: AdamW reaches a higher test accuracy than Adam and SGD. (V.A.1; Tables IV–VI)",
        "paper: 77.1 %; ours: +9.3 points (+8.1 to +10.5); p < 0.001; n = 16",
        "16 blocks.",
    ]
    assert shown.content["verdict"] == "held"
    assert not shown.content["provisional"]


def test_claims_are_not_judged_on_other_images():
    content = show.claim("adamw-is-best", HELD, Scale(real=False)).content
    assert (content["verdict"], content["reason"]) == ("not judged", show.NEEDS_IMAGES)


def test_claims_of_absolute_numbers_wait_for_the_papers_budget():
    content = show.claim("long-run-9", HELD, Scale(reduced=True)).content
    assert content["verdict"] == "pending"
    assert content["reason"].startswith(show.NEEDS_BUDGET)
    assert show.claim("long-run-9", HELD, Scale()).content["verdict"] == "held"
    assert show.claim("adamw-is-best", HELD, Scale(reduced=True)).content["provisional"]


def test_a_claim_leads_to_its_runs_or_says_nothing_of_any():
    counted = Judgement("held", "run 26: 52.4 %", n=1)
    shown = show.claim("base-best-run", counted, Scale(), runs=["b" * 16, "c" * 16, "b" * 16])
    assert shown.content["runs"] == ["b" * 16, "c" * 16]
    assert "<summary>2 runs</summary>" in shown.html
    assert "0 runs" not in show.claim("base-best-run", counted, Scale()).html


def test_a_claim_is_judged_by_a_judge():
    sample = stats.Sample(stats.estimate([1.0, 2.0]), ())
    with pytest.raises(ConfigError, match="a Sample is no judgement; give what a judge says"):
        show.claim("base-best-run", sample, Scale())


def test_claims_that_nobody_made_are_refused():
    with pytest.raises(ConfigError, match=r"claims.yaml has no id 'adamw-is-bst'; did you mean"):
        show.claim("adamw-is-bst", HELD, Scale())


@pytest.mark.parametrize(
    ("confirmed", "evidence", "verdict"),
    [
        (True, "It is so.", "confirmed"),
        (False, "It is not.", "refuted"),
        (None, "It is not printed.", "undecidable"),
        (None, "", "pending"),
    ],
)
def test_doubts_have_four_verdicts(confirmed, evidence, verdict):
    shown = show.doubt("factor-49", confirmed, evidence)
    assert shown.content["verdict"] == verdict
    assert shown.content["reason"] == evidence


def test_a_doubt_is_no_text():
    with pytest.raises(ConfigError, match="confirmed is 'no'; it is True, False or None"):
        show.doubt("factor-49", "no", "It is so.")


def write_executed(path, *shown):
    outputs = [{"output_type": "execute_result", "data": s._repr_mimebundle_()} for s in shown]
    cells = [{"cell_type": "markdown"}, *({"outputs": [output]} for output in outputs)]
    path.write_text(json.dumps({"cells": cells}), encoding="utf-8")
    return path


def claim(name, verdict, p, **scale):
    return show.claim(name, Judgement(verdict, "1", p=p), Scale(**scale))


@pytest.fixture
def executed(tmp_path):
    write_executed(
        tmp_path / "02_stage1.ipynb",
        show.text("A sentence."),
        claim("adamw-is-best", "held", 0.01),
        claim("adam-overfits-more", "did not hold", 0.04),
        claim("adam-converges-faster", "not distinguishable", 0.5),
        claim("base-best-run", "pending", None),
    )
    write_executed(
        tmp_path / "03_stage2.ipynb",
        show.doubt("factor-49", True, "It is so."),
        claim("confused-classes", "held", 0.02, real=False),
    )
    return tmp_path


def test_read_verdicts_finds_what_executed_notebooks_show(executed):
    (executed / "._02_stage1.ipynb").write_bytes(b"\x00\x05\x16\x07\xb0")  # as macOS leaves
    found = verdicts.read_verdicts(executed)
    assert found["id"].tolist()[:2] == ["adamw-is-best", "adam-overfits-more"]
    assert found["kind"].value_counts().to_dict() == {"claim": 5, "doubt": 1}
    assert set(found["chapter"]) == {"02_stage1.ipynb", "03_stage2.ipynb"}
    assert verdicts.read_verdicts([]).empty
    assert verdicts.read_verdicts(str(executed)).equals(found)
    with pytest.raises(ReportError, match="there is no folder '/nowhere' of executed chapters"):
        verdicts.read_verdicts("/nowhere")


def test_read_verdicts_refuses_a_claim_that_stands_twice(executed):
    write_executed(executed / "04_stage3.ipynb", claim("adamw-is-best", "held", 0.01))
    with pytest.raises(
        ReportError, match=r"stage1.ipynb and 04_stage3.ipynb: the claim 'adamw-is-best' is shown"
    ):
        verdicts.read_verdicts(executed)


def test_correct_adjusts_within_families_and_over_all(executed):
    claims = verdicts.correct(verdicts.read_verdicts(executed)).set_index("id")
    assert claims["holm"]["adamw-is-best"] == pytest.approx(0.03)
    assert claims["fdr"]["adam-overfits-more"] == pytest.approx(0.06)
    assert claims["holm"].isna()["base-best-run"]


def test_list_claims_has_every_claim_of_the_paper_in_its_order(executed):
    claims = verdicts.list_claims(verdicts.read_verdicts(executed))
    assert claims["id"].tolist() == list(cl.paper.claims)
    claims = claims.set_index("id")
    assert claims["said"]["adamw-is-best"] == "held"
    assert claims["said"]["confused-classes"] == "not judged"
    assert (claims["verdict"]["conditions"], claims["chapter"]["conditions"]) == ("pending", "")


def test_statements_are_sentences_with_distinct_ids():
    assert len(cl.paper.claims) >= 49
    assert len(cl.paper.doubts) == 58
    for statement in [*cl.paper.claims.values(), *cl.paper.doubts.values()]:
        assert statement.text.endswith(".")
        assert statement.text[0].isupper() or statement.text[0].isdigit()


def test_public_names_are_there_and_others_are_not():
    assert [getattr(cl, name) for name in cl.__all__]
    assert set(cl.__all__) <= set(dir(cl))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cl.nothing
