"""The ledger: well formed, true to the paper's tables, and fair to whatever is recorded."""

import re
from dataclasses import replace

import numpy as np
import pytest
import yaml
from conftest import make_data_record, make_record

from cifarlib import claims, paths, published
from cifarlib.display import Links, show_table
from cifarlib.errors import ConfigError
from cifarlib.ledger import CHECKS, NO_LABELS, Case, printed
from cifarlib.records import RecordStore, RunRecord, open_results, pack_predictions
from cifarlib.study import Condition

LEDGER = claims.load_claims()


# ---------------------------------------------------------------------------------------------
# Made-up records of given accuracies
# ---------------------------------------------------------------------------------------------


def score(condition: Condition, test: float, train: float) -> RunRecord:
    """A record with these accuracies in %: the first images right, cat and dog exchanged."""
    record = make_record(condition)
    history, confusion, classes = {}, {}, np.array([])
    for name, accuracy in (("train", train), ("validation", test), ("test", test)):
        split = record.result.history.split(name)
        count = round(accuracy * split.images / 100)
        one = tuple(None if value is None else count for value in split.top1)
        loss = (2.5, *split.loss[1:])
        history[name] = split.model_copy(update={"top1": one, "loss": loss})
        labels = np.arange(split.images) % 10
        mistaken = np.array([1, 2, 4, 5, 7, 3, 7, 8, 9, 0])[labels]
        classes = np.where(np.arange(split.images) < count, labels, mistaken)
        matrix = np.zeros((10, 10), dtype=int)
        np.add.at(matrix, (labels, classes), 1)
        confusion[name] = tuple(map(tuple, matrix.tolist()))
    before = record.result.predictions
    predictions = pack_predictions(
        before.epoch, confusion, classes.tolist(), [0.5] * len(classes), before.weights
    )
    result = record.result.model_copy(
        update={
            "history": record.result.history.model_copy(update=history),
            "predictions": predictions,
        }
    )
    return record.model_copy(update={"result": result})


MODEL_ROWS = {"resnet18": 2, "resnet18_imagenet": 3, "densenet121_imagenet": 4}


def look_up(condition: Condition) -> tuple[float, float]:
    """What the paper prints for a condition: (test, training) top-1 in %."""
    run = condition.run
    number, key, value = {
        "stage1-base": (("IV", "V", "VI")[(run - 1) // 12], "run", run),
        "stage1-daa1": ("VII", "run", run),
        "stage1-daa2": ("VIII", "run", run),
        "stage1-long": ("IX", "run", run),
        "stage2-dropout": (
            {9: "XIII"}.get(run, "XIV"),
            "dropout",
            condition.changed.get("dropout"),
        ),
        "stage2-improved": ("XV", None, 0),
        "stage3": ("XV", None, MODEL_ROWS.get(condition.settings["model"])),
        "interpolation": ("XV", None, 2),  # nothing is printed: all alike
    }[condition.stage]
    table = published.read_table(number)
    row = table.loc[value] if key is None else table[table[key] == value].iloc[0]
    return float(row["test_top1"]), float(row["train_top1"])


def judge(folder, scale, overrides=(), only=lambda condition: True, accuracies=look_up):
    """Finding by claim id, over records of these accuracies."""
    store = RecordStore(folder)
    results = open_results(scale, overrides, folder)
    store.write(make_data_record(results.scale.data.name))
    for condition in results.conditions:
        if only(condition):
            store.write(score(condition, *accuracies(condition)))
    results = open_results(scale, overrides, folder)
    return {finding.claim.id: finding for finding in claims.judge(results)}


@pytest.fixture(scope="module")
def as_printed(tmp_path_factory):
    """The paper's budget, and exactly the paper's numbers."""
    return judge(tmp_path_factory.mktemp("full"), "full")


@pytest.fixture(scope="module")
def reduced(tmp_path_factory):
    """Less than the paper's budget on CIFAR-10, with the paper's numbers all the same."""
    overrides = ["data.name=cifar10", "data.test_size=2000"]
    return judge(tmp_path_factory.mktemp("reduced"), "smoke", overrides)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    results = open_results("full", [], tmp_path_factory.mktemp("empty"))
    return {finding.claim.id: finding for finding in claims.judge(results)}


# ---------------------------------------------------------------------------------------------
# The ledger as a file
# ---------------------------------------------------------------------------------------------


def test_the_ledger_covers_the_paper():
    assert 25 <= len(LEDGER) <= 45
    assert len({claim.id for claim in LEDGER}) == len(LEDGER)
    places = " ".join(claim.where for claim in LEDGER)
    for place in ("Abstract", "V.A.1", "V.A.2", "V.B", "V.C", "VI"):
        assert place in places


def test_every_check_is_used():
    assert {claim.check for claim in LEDGER} == set(CHECKS)
    assert all(CHECKS[name].__doc__ for name in CHECKS)


def test_stated_accuracies_are_those_of_the_tables():
    stated = [claim for claim in LEDGER if claim.check == "accuracy"]
    assert len(stated) >= 7
    for claim in stated:
        table = printed(claim.arguments["row"])
        assert claim.arguments["stated"] == pytest.approx(table, abs=0.051), claim.id


def test_other_numbers_of_the_ledger_are_the_tables_own():
    by_id = {claim.id: claim for claim in LEDGER}
    difference = printed("XV/Published ResNet-18") - printed("XV/Improved run 13")
    assert by_id["close-to-reference"].tolerance == pytest.approx(difference)
    assert printed("XV/Improved run 13") - printed("IX/13") == pytest.approx(0.57)
    assert "0.57" in by_id["lowered-rate-gains"].text
    assert printed("VI/26") == 77.1
    assert printed("XIV/0.5") == 87.99


def test_rows_that_the_paper_has_not_got_are_refused():
    with pytest.raises(ConfigError, match=r"IX/14, a row that the paper has not got"):
        printed("IX/14")


def write(folder, **changed):
    path = folder / "claims.yaml"
    claim = {
        "id": "a-claim",
        "where": "VI",
        "text": "Something is so.",
        "kind": "ordering",
        "check": "best_run",
        "with": {"stage": "stage1-base", "run": 26, "tables": ["IV"]},
        "links": ["table-VI"],
    }
    path.write_text(yaml.safe_dump({"claims": [claim | changed]}), encoding="utf-8")
    return path


def test_a_good_ledger_is_read(tmp_path):
    (claim,) = claims.load_claims(write(tmp_path))
    assert claim.settings == {"stage": "stage1-base", "run": 26, "tables": ["IV"]}


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"check": "best_runs"}, "there is no check 'best_runs'; did you mean 'best_run'"),
        ({"with": {"stage": "x", "runs": 1}}, "takes no 'runs'; did you mean 'run'"),
        ({"with": {"stage": "x", "run": 1}}, "the check best_run needs 'tables'; add it"),
        ({"tolerance": 1.0}, "takes no 'tolerance'"),
        ({"kind": "guess"}, "kind = 'guess' is not valid"),
        ({"knd": "ordering"}, "unknown key 'claims.0.knd'; did you mean 'kind'"),
        ({"id": "A claim"}, "id = 'A claim' is not valid"),
        ({"links": ["chapter 6"]}, "is not valid"),
        ({"links": []}, "is not valid"),
    ],
)
def test_a_faulty_ledger_gets_one_sentence(tmp_path, changed, said):
    with pytest.raises(ConfigError) as caught:
        claims.load_claims(write(tmp_path, **changed))
    assert said in str(caught.value)
    assert "claims.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_id_stands_once(tmp_path):
    path = write(tmp_path)
    path.write_text(path.read_text() + path.read_text().replace("claims:\n", ""), encoding="utf-8")
    with pytest.raises(ConfigError, match="the id 'a-claim' stands 2 times; rename one"):
        claims.load_claims(path)


def test_a_setting_that_the_study_has_not_got_is_refused(tmp_path):
    results = open_results("lite", [], tmp_path)
    claim = next(c for c in LEDGER if c.check == "accuracy")
    arguments = claim.arguments | {"run": {"stage": "stage1-long", "run": 14}}
    with pytest.raises(ConfigError, match="which is not in the study"):
        claims.judge_claim(claim.model_copy(update={"arguments": arguments}), results)
    with pytest.raises(ConfigError, match="no stage of the study"):
        Case(results).stage("stage9")


def test_every_link_leads_to_a_numbered_table_or_figure():
    shown = set()
    for notebook in paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"):
        text = notebook.read_text(encoding="utf-8")
        for kind in ("table", "comparison", "figure"):
            for call in re.split(rf"(?:display\.show_|cl\.show\.){kind}\(", text)[1:]:
                cell = call.split('"cell_type"')[0]
                shown |= {f"{kind.replace('comparison', 'table')}-{n}"
                          for n in re.findall(r'\\"([IVX]+|[A-Z]?\d+)\\",', cell)}  # fmt: skip
    missing = {link for claim in LEDGER for link in claim.links} - shown
    assert not missing


# ---------------------------------------------------------------------------------------------
# Verdicts
# ---------------------------------------------------------------------------------------------

CONTRADICTED = {
    "conditions",
    "gain-up-to-12",
    "resize-statistics",
    "daa1-best-run",
    "smallest-gaps",
}


def test_the_papers_own_tables_contradict_five_claims(empty):
    found = {name for name, finding in empty.items() if finding.contradicted}
    assert found == CONTRADICTED
    assert all("the paper's own tables contradict it" in empty[name].reason for name in found)


def test_nothing_recorded_is_pending(empty):
    judged = {name for name, finding in empty.items() if finding.verdict != "pending"}
    assert judged == {"conditions"}  # the study alone decides it
    assert empty["best-accuracy"].reason == "0 of 1 run behind it is recorded."
    assert not any(finding.provisional for finding in empty.values())
    assert all(finding.paper for finding in empty.values())


def test_the_papers_own_numbers_fail_no_claim_that_its_tables_bear_out(as_printed):
    failed = {name for name, finding in as_printed.items() if finding.verdict == "failed"}
    assert failed <= CONTRADICTED
    assert not any(finding.provisional for finding in as_printed.values())
    assert not any(finding.verdict == "pending" for finding in as_printed.values())


def test_the_papers_own_numbers_hold_what_they_can(as_printed):
    for claim in LEDGER:
        if claim.kind == "absolute" and claim.id not in CONTRADICTED:
            assert as_printed[claim.id].verdict == "held", claim.id
    for name in ("rate-decides-most", "base-rate-decides", "gains-everywhere", "equal-starts",
                 "above-70-one-rate", "daa1-beats-daa2", "run-13-overfits", "cat-and-dog",
                 "dropout-no-gain-run-9", "densenet-is-lowest", "rate-and-batch-interact",
                 "adamw-is-best", "resize-accuracies"):  # fmt: skip
        assert as_printed[name].verdict == "held", name
    assert as_printed["gain-up-to-12"].verdict == "failed"
    assert as_printed["daa1-best-run"].verdict == "failed"
    assert as_printed["gain-up-to-12"].ours == "+9.4 to +19.6 points"
    assert as_printed["best-accuracy"].interval == "89.4 to 90.5"


def test_below_the_papers_budget_absolute_numbers_wait_and_orderings_are_provisional(reduced):
    for finding in reduced.values():
        if finding.claim.kind == "absolute":
            assert finding.verdict == "pending"
            assert finding.reason.startswith("Needs the paper's budget")
            assert finding.ours != "–"
        elif finding.runs:
            assert finding.provisional
    assert reduced["run-9-above-run-1"].verdict == "held"
    assert "exact McNemar" in reduced["run-9-above-run-1"].reason.replace("Exact", "exact")
    assert reduced["resize-accuracies"].verdict == "not distinguishable"  # of no power is no proof


def test_a_study_that_has_begun_judges_what_it_can(tmp_path):
    found = judge(tmp_path, "full", only=lambda c: c.stage == "stage1-base" and c.run <= 26)
    assert found["base-best-accuracy"].verdict == "held"
    assert found["base-best-run"].verdict == "pending"
    assert found["base-best-run"].reason == "26 of 36 runs behind it are recorded."


def test_the_reverse_of_a_claim_fails(tmp_path):
    def reverse(condition):
        return {9: (80.0, 90.0), 13: (70.0, 71.0)}[condition.run]

    found = judge(tmp_path, "full", only=lambda c: c.stage == "stage1-long", accuracies=reverse)
    assert found["run-13-above-run-9"].verdict == "failed"
    assert found["run-13-above-run-9"].ours == "−10.0 points"
    assert found["run-13-overfits"].verdict == "failed"
    assert found["long-run-13"].verdict == "failed"


def test_what_no_test_separates_is_not_distinguishable(tmp_path):
    def equal(condition):
        return (85.0, 90.0)

    found = judge(tmp_path, "full", only=lambda c: c.stage == "stage1-long", accuracies=equal)
    assert found["run-13-above-run-9"].verdict == "not distinguishable"
    assert found["run-13-overfits"].verdict == "not distinguishable"


def test_three_seeds_are_compared_by_a_t_test(tmp_path):
    def vary(condition):
        return {9: 80.0, 13: 85.0}[condition.run] + condition.config.seed / 10, 95.0

    found = judge(tmp_path, "full", ["seeds=[1, 2, 4]"], lambda c: c.stage == "stage1-long", vary)[
        "run-13-above-run-9"
    ]
    assert found.verdict == "held"
    assert "t test, 3 seeds" in found.reason.replace("T test", "t test")
    assert found.ours == "+5.0 points"
    assert len(found.runs) == 6


def test_a_missing_seed_makes_a_verdict_provisional(tmp_path):
    found = judge(
        tmp_path,
        "full",
        ["seeds=[1, 2]"],
        lambda c: c.stage == "stage1-long" and c.config.seed == 1,
    )["run-13-above-run-9"]
    assert (found.verdict, found.provisional) == ("held", True)
    assert "one seed" in found.reason


def test_without_labels_no_image_is_compared(tmp_path):
    store = RecordStore(tmp_path)
    for condition in open_results("lite", [], tmp_path).select("stage1-long"):
        store.write(score(condition, *look_up(condition)))
    claim = next(c for c in LEDGER if c.id == "run-13-above-run-9")
    found = claims.judge_claim(claim, open_results("lite", [], tmp_path))
    assert (found.verdict, found.reason) == ("pending", f"{NO_LABELS}.")


def test_two_seeds_give_difference_p_and_interval_by_one_rule(tmp_path):
    """That of their mean; the first seed alone would say another thing."""

    def vary(condition):
        gain = {1: 10.0, 2: 0.0}[condition.config.seed]
        return 80.0 + (gain if condition.run == 13 else 0.0), 95.0

    found = judge(tmp_path, "full", ["seeds=[1, 2]"], lambda c: c.stage == "stage1-long", vary)
    one = found["run-13-above-run-9"]
    assert (one.verdict, one.ours) == ("not distinguishable", "+5.0 points")
    assert "p = 0.500" in one.reason.replace("\N{NO-BREAK SPACE}", " ")
    assert "t test, 2 seeds" in one.reason.replace("T test", "t test")
    low, high = one.interval.split(" to ")
    assert float(low.replace("−", "-")) < -50
    assert float(high) > 60
    assert found["run-13-overfits"].verdict == "not distinguishable"


@pytest.mark.parametrize("overrides", [(), ("seeds=[1, 2, 3]",)])
def test_on_other_data_than_cifar10_no_claim_is_judged(tmp_path, overrides):
    found = judge(tmp_path, "smoke", overrides)
    assert {finding.verdict for finding in found.values()} == {"not judged"}
    assert not any(finding.provisional for finding in found.values())
    for finding in found.values():
        assert finding.reason.startswith("These data are not CIFAR-10")
        assert (finding.ours, finding.interval) == ("–", "")
        assert finding.paper
    count = claims.count_verdicts(list(found.values())).set_index("Kind of claim")
    assert "Held" not in count.columns
    assert count.loc["all", "Not judged"] == count.loc["all", "Claims"] == len(LEDGER)
    assert sum(finding.contradicted for finding in found.values()) == 5


# ---------------------------------------------------------------------------------------------
# As tables
# ---------------------------------------------------------------------------------------------


def test_the_ledger_is_a_table_with_links(reduced):
    findings = list(reduced.values())
    table = claims.tabulate_claims(findings)
    assert table["No."].tolist() == list(range(1, len(LEDGER) + 1))
    assert table.attrs["runs"] == [finding.runs for finding in findings]
    assert isinstance(table["See"].iloc[0], Links)
    html = show_table(table, "C2", "The ledger").html
    assert '<a href="#table-XV">Table XV</a>' in html
    assert f'href="#run-{reduced["best-accuracy"].runs[0]}"' in html


def test_the_table_says_what_is_provisional(reduced):
    finding = reduced["run-9-above-run-1"]
    assert claims.say_verdict(finding) == "held, provisionally"
    assert claims.say_verdict(replace(finding, provisional=False)) == "held"


def test_verdicts_are_counted(reduced):
    counts = claims.count_verdicts(list(reduced.values())).set_index("Kind of claim")
    verdicts = ["Held", "Failed", "Not distinguishable", "Pending"]
    assert (counts[verdicts].sum(axis=1) == counts["Claims"]).all()
    assert counts.loc["all", "Claims"] == len(LEDGER)
    assert (counts.drop("all").sum() == counts.loc["all"]).all()
    assert counts.loc["all", "Contradicted by the paper's tables"] == len(CONTRADICTED)
