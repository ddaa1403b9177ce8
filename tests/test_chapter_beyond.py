"""The chapter past the paper, executed on made-up records: empty, half of them, all."""

import math

import numpy as np
import pytest
from chapters import CIFAR10, run_chapter
from conftest import make_data_record, make_network_record, make_record, with_result
from scipy import stats
from test_cifar10_1 import keep_shift, make_shift

from cifarlib.formatting import say_count
from cifarlib.runs.cifar10_1 import read_shift
from cifarlib.runs.results import open_results
from cifarlib.runs.schema import FlipAveraged
from cifarlib.runs.store import RecordStore

pytestmark = pytest.mark.integration


def execute(folder, share: float):
    """Results of the second study with a share of the records, and what the chapter shows."""
    store = RecordStore(folder)
    studies = [open_results("smoke", CIFAR10, folder, study) for study in ("beyond", "study")]
    chosen = [c for study in studies for c in study.conditions]
    draws = np.random.default_rng(4).random(len(chosen))
    for number, (condition, draw) in enumerate(zip(chosen, draws, strict=True)):
        if draw >= share:
            continue
        record = make_record(condition)
        if condition.config.evaluation.flip_averaged:
            record = with_result(record, flip_averaged=FlipAveraged(validation=5, test=11))
        store.write(record)
        if number % 7 == 0:
            keep_shift(store, make_shift(record, right=0.6))
    if share:
        store.write(make_data_record("cifar10"))
        store.write(make_network_record())
    shown = run_chapter("08_beyond.ipynb", folder, overrides=CIFAR10)
    return open_results("smoke", CIFAR10, folder, "beyond"), shown


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return execute(tmp_path_factory.mktemp("full"), 1)


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    return execute(tmp_path_factory.mktemp("half"), 0.5)


def accuracies(results, stage, label, measure=lambda record: record.accuracy("test"), run=None):
    """Seed → a measure of the records of one setting, straight from the records."""
    return {
        c.config.seed: measure(results.records[c.run_id])
        for c in results.select(stage)
        if c.settings["label"] == label and run in (None, c.run)
    }


def cells(table: dict, *first: str) -> list[str]:
    """The texts of a table's row that begins with some cells."""
    return next(row for row in table["rows"] if row[: len(first)] == list(first))


def test_an_empty_chapter_past_the_paper_is_pending(tmp_path):
    _, shown = execute(tmp_path, 0)
    assert shown.verdicts["can-be-exceeded"]["verdict"] == "pending"
    assert not any(figure["drawn"] for figure in shown.figures.values())
    assert set(shown.tables["B11"]["rows"][0]) <= {"pending", "–"}  # the text leads there
    assert shown.said[0].startswith("0 of the ")
    assert "nan" not in " ".join(shown.said)
    assert all("is pending" in shown.verdicts[f"answer-{place}"]["text"] for place in (4, 7))


def test_a_half_recorded_chapter_past_the_paper_has_no_undefined_number(half):
    results, shown = half
    texts = [*shown.said, *(content["note"] for content in shown.contents if "note" in content)]
    texts += [text for table in shown.tables.values() for row in table["rows"] for text in row]
    assert not any("nan" in text.lower().split() for text in texts)
    assert all(figure["alt"] for figure in shown.figures.values())
    pending = [number for number, figure in shown.figures.items() if not figure["drawn"]]
    assert pending == ["B4", "B4b"]  # of searches, none of which is whole
    counts = {"B2b": (3, 6), "B3": (3, 6), "B5": (2,), "B6": (2, 5), "B7": (6,)}
    cells_of = [
        row[at : at + 3]
        for number, places in counts.items()
        for row in shown.tables[number]["rows"]
        for at in places
    ]
    assert {n for n, *_ in cells_of} >= {"–", "0", "1", "2", "3"}
    for n, mean, half in cells_of:  # one seed has a mean without ±, none has yet to come
        assert (mean == "pending", half == "pending") == (n == "0", n == "0")
        assert half == "–" or n not in ("–", "1")
    several = [half for n, _, half in cells_of if n not in ("–", "0", "1")]
    assert several.count("–") < len(several) / 3  # of equal seeds, as made-up ones often are
    eight = [c for c in results.select("recipe-whole") if c.settings["label"] == "8 epochs"]
    records = [results.records[c.run_id] for c in eight if c.run_id in results.records]
    assert 0 < len(records) < len(eight)
    reached = ", ".join(f"{record.accuracy('test'):.2f}" for record in records)
    answer = shown.verdicts["answer-7"]["text"]
    assert f"The same network reaches {reached} % in" in answer
    assert f"({len(records)} of {len(eight)} seeds so far)" in answer


def test_rows_of_the_recipe_name_what_was_trained(full):
    results, shown = full
    plain, *rows = shown.tables["B1"]["rows"]
    assert plain[:3] == ["Run 13, as in the paper", "45,000", "30"]
    stages = ("recipe-whole", "recipe-30", "recipe-200")
    configs = {c.settings["label"]: c.config for c in results.select(*stages)}
    for row, config in zip(rows, configs.values(), strict=True):
        cutout = config.augmentation.cutout
        assert (f"cutout of {cutout} pixels" in row[0]) == bool(cutout)
        assert row[2] == str(config.epochs)


def test_the_first_screen_is_told_what_the_recipe_reaches(full):
    results, shown = full
    reached = list(accuracies(results, "recipe-whole", "8 epochs").values())
    answer = shown.verdicts["answer-7"]["text"]
    assert f"The same network reaches {np.mean(reached):.2f} %" in answer
    assert f"({len(reached)} seeds)" in answer


def test_gains_of_the_steps_are_paired_by_seed(full):
    results, shown = full

    def validation(record):
        return record.accuracy("validation")

    first = accuracies(results, "recipe", "run 13", validation)
    second = accuracies(results, "recipe", "triangular rate", validation)
    third = accuracies(results, "recipe", "SGD with Nesterov momentum", validation)
    gains = np.array([third[seed] - second[seed] for seed in second])
    row = cells(shown.tables["B2b"], "SGD with Nesterov momentum")
    assert row[3] == "3"
    assert float(row[4].replace("−", "-")) == pytest.approx(gains.mean(), abs=0.005)
    margin = stats.t.ppf(0.975, 2) * gains.std(ddof=1) / math.sqrt(3)
    assert float(row[5]) == pytest.approx(margin, abs=0.005)
    alone = accuracies(results, "recipe-alone", "triangular rate", validation)
    row = cells(shown.tables["B2b"], "triangular rate")
    single = np.mean([alone[seed] - first[seed] for seed in first])
    assert float(row[7].replace("−", "-")) == pytest.approx(single, abs=0.005)
    muon = cells(shown.tables["B2"], "Muon (batch 250)")[2]
    assert all(word in muon for word in ("batch size: 64 → 250", "learning rate: 0.05 → 0.1"))


def test_the_effect_of_the_published_protocol_and_the_interaction_that_single_changes_leave(full):
    results, shown = full
    stage = "protocol-ablation"
    published = accuracies(results, stage, "as published", run=1)
    corrected = accuracies(results, stage, "corrected", run=1)
    optimism = np.mean([published[seed] - corrected[seed] for seed in published])
    told = next(text for text in shown.said if "the published protocol" in text)
    verb = "raises" if optimism > 0 else "lowers"
    effect = f"{verb} the reported accuracy by {abs(optimism):.2f} ± "
    assert f"Run 13, DAA-1: the published protocol {effect}" in told
    singles = [
        accuracies(results, stage, "shuffled", run=1),
        accuracies(results, "clean-evaluation", "clean evaluation", run=1),
        accuracies(results, stage, "true normalisation", run=1),
    ]
    read = accuracies(
        results,
        stage,
        "as published",
        lambda r: r.accuracy("test", epoch=r.result.chosen["validation"]),
        run=1,
    )
    total = sum(
        np.mean([changed[seed] - published[seed] for seed in published])
        for changed in (*singles, read)
    )
    nothing = cells(shown.tables["B3"], "Run 26, no augmentation", "clean evaluation")
    assert nothing[2] == "nothing to correct"
    assert float(nothing[7]) == 0
    row = cells(shown.tables["B3"], "Run 13, DAA-1", "interaction")
    assert float(row[7].replace("−", "-")) == pytest.approx(-optimism - total, abs=0.006)


def test_the_noise_floor_is_t_times_root_two_times_sigma(full):
    results, shown = full
    values = list(accuracies(results, "noise-floor", "run 13").values())
    limit = stats.t.ppf(0.975, 9) * math.sqrt(2) * np.std(values, ddof=1)
    assert cells(shown.tables["B4"], "Run 13, DAA-1")[-1] == f"{limit:.2f}"
    assert any(f"t·√2·σ̂ = {limit:.2f} points" in text and "10 seeds" in text for text in shown.said)


def test_each_schedule_stands_at_its_best_rate_on_validation(full):
    results, shown = full
    conditions = [
        c
        for c in results.select("schedules", label="SGD", schedule="cosine")
        if c.config.seed == 42
    ]
    best = max(
        conditions,
        key=lambda c: (results.records[c.run_id].accuracy("validation"), -c.config.learning_rate),
    )
    row = cells(shown.tables["B7"], "SGD", "cosine with warm-up")
    assert row[3] == f"{best.config.learning_rate:g}"
    rates = {c.config.learning_rate for c in conditions}
    assert row[2] == str(len(rates))


@pytest.mark.parametrize("share", ["half", "full"])
@pytest.mark.parametrize("optimizer", ["AdamW", "SGD"])
def test_schedules_are_ranked_over_the_seeds_that_all_of_them_have(request, share, optimizer):
    results, shown = request.getfixturevalue(share)
    scores = {}  # schedule → learning rate → seed → validation accuracy
    for c in results.select("schedules", label=optimizer):
        rates = scores.setdefault(c.settings["schedule"], {}).setdefault(c.config.learning_rate, {})
        if c.run_id in results.records:
            rates[c.config.seed] = results.records[c.run_id].accuracy("validation")
    at_best = {
        name: max(
            (seeds for _, seeds in sorted(rates.items()) if 42 in seeds),
            key=lambda seeds: seeds[42],
            default={},
        )
        for name, rates in scores.items()
    }
    shared = set.intersection(*map(set, at_best.values()))
    means = {name: sum(seeds[s] for s in shared) for name, seeds in at_best.items()}
    ranked = next(text for text in shown.said if f"{optimizer}: " in text and "schedule" in text)
    if shared:
        says = {"plateau": "reduce on plateau", "cosine": "cosine with warm-up"}
        says |= {"late_step": "one late step", "multi_step": "multi-step"}
        winner = max(means, key=means.get)
        among = f"({say_count(len(shared), 'seed')} of each schedule)"
        assert f"{optimizer}: {says.get(winner, winner)} has the best" in ranked
        assert among in ranked
    else:
        recorded = sum(map(bool, at_best.values()))
        assert f"{optimizer}: pending, {recorded} of 6 schedules recorded." in ranked


def test_overconfident_networks_are_counted(full):
    _, shown = full
    rows = shown.tables["B9"]["rows"]
    over = sum(not row[4].startswith("−") for row in rows)
    assert any(f"{over} of {len(rows)} networks" in text for text in shown.said)


def test_cifar_10_1_has_the_counts_of_its_records(full):
    results, shown = full
    table = shown.tables["B11"]
    drops = []
    for row, (run,) in zip(table["rows"], table["runs"], strict=True):
        record, shift = results.store.read_run(run), read_shift(results.store, run)
        matrix = np.array(record.result.predictions.confusion["test"])
        old, new = 100 * matrix.trace() / matrix.sum(), shift.accuracy
        assert [row[1], row[2]] == [f"{old:.2f}", f"{new:.2f}"]
        drops.append(old - new)
    assert f"{np.mean(drops):.1f} on average" in shown.said[-1]
