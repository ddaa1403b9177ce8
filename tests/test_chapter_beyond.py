"""The chapter past the paper, executed on made-up records: empty, half of them, all."""

import math

import numpy as np
import pytest
from chapters import run_chapter
from conftest import make_data_record, make_network_record, make_record
from scipy import stats
from test_cifar10_1 import keep_shift, make_shift

from cifarlib.runs.cifar10_1 import read_shift
from cifarlib.runs.results import open_results
from cifarlib.runs.schema import FlipAveraged
from cifarlib.runs.store import RecordStore

pytestmark = pytest.mark.integration

SCALE = {
    "scale": "smoke",
    "overrides": ["data={name: cifar10, train_size: 60, validation_size: 50, test_size: 200}"],
}


def execute(folder, share: float):
    """(results of the second study, what the chapter shows by number, its sentences, its names)."""
    store = RecordStore(folder)
    studies = [open_results(*SCALE.values(), folder, study) for study in ("beyond", "study")]
    chosen = [c for study in studies for c in study.conditions]
    draws = np.random.default_rng(3).random(len(chosen))
    for number, (condition, draw) in enumerate(zip(chosen, draws, strict=True)):
        if draw >= share:
            continue
        record = make_record(condition)
        if condition.config.evaluation.flip_averaged:
            flips = FlipAveraged(validation=5, test=11)
            result = record.result.model_copy(update={"flip_averaged": flips})
            record = record.model_copy(update={"result": result})
        store.write(record)
        if number % 7 == 0:
            keep_shift(store, make_shift(record, right=0.6))
    if share:
        store.write(make_data_record("cifar10"))
        store.write(make_network_record())
    shown, names = run_chapter("08_beyond.ipynb", **SCALE, build=str(folder))
    numbered = {f"{c['kind']} {c['number']}": c for c in shown if "number" in c}
    claims = {c["id"]: c for c in shown if c["kind"] in ("claim", "answer")}
    said = [c["text"] for c in shown if c["kind"] == "text"]
    return open_results(*SCALE.values(), folder, "beyond"), numbered | claims, said, names


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return execute(tmp_path_factory.mktemp("full"), 1)


def accuracies(results, stage, label, measure=lambda record: record.accuracy("test"), run=None):
    """Seed → a measure of the records of one setting, straight from the records."""
    return {
        c.config.seed: measure(results.record(c))
        for c in results.select(stage)
        if c.settings["label"] == label and run in (None, c.run)
    }


def cells(table: dict, *first: str) -> list[str]:
    """The texts of a table's row that begins with some cells."""
    return next(row for row in table["rows"] if row[: len(first)] == list(first))


def test_an_empty_chapter_past_the_paper_is_pending(tmp_path):
    _, shown, said, _ = execute(tmp_path, 0)
    assert shown["can-be-exceeded"]["verdict"] == "pending"
    assert not any(c["drawn"] for name, c in shown.items() if name.startswith("figure"))
    assert set(shown["table X11"]["rows"][0]) <= {"pending", "–"}  # the text leads there
    assert said[0].startswith("0 of the ")
    assert "nan" not in " ".join(said)
    assert all("is pending" in shown[f"answer-{place}"]["text"] for place in (3, 5))


def test_a_half_recorded_chapter_past_the_paper_has_no_undefined_number(tmp_path):
    results, shown, said, _ = execute(tmp_path, 0.5)
    texts = [*said, *(c["note"] for c in shown.values() if "note" in c)]
    texts += [
        text for c in shown.values() if c["kind"] == "table" for row in c["rows"] for text in row
    ]
    assert not any("nan" in text.lower().split() for text in texts)
    figures = {name: c for name, c in shown.items() if c["kind"] == "figure"}
    assert all(c["alt"] for c in figures.values())
    pending = [name for name, c in figures.items() if not c["drawn"]]
    assert pending == ["figure X4", "figure X4b"]  # of searches, none of which is whole
    counts = {"X2b": (3, 6), "X3": (3, 6), "X4b": (2,), "X6": (2, 5), "X7": (6,)}
    cells_of = [
        row[at : at + 3]
        for number, places in counts.items()
        for row in shown[f"table {number}"]["rows"]
        for at in places
    ]
    assert {n for n, *_ in cells_of} >= {"–", "0", "1", "2", "3"}
    for n, mean, half in cells_of:  # one seed has a mean without ±, none has yet to come
        assert (mean == "pending", half == "pending") == (n == "0", n == "0")
        assert half == "–" or n not in ("–", "1")
    several = [half for n, _, half in cells_of if n not in ("–", "0", "1")]
    assert (
        several.count("–") < len(several) / 3
    )  # of seeds that are equal, as made-up ones often are
    eight = [c for c in results.select("recipe-whole") if c.settings["label"] == "8 epochs"]
    records = [results.records[c.run_id] for c in eight if c.run_id in results.records]
    assert 0 < len(records) < len(eight)
    reached = ", ".join(f"{record.accuracy('test'):.2f}" for record in records)
    assert f"The same network reaches {reached} % in" in shown["answer-5"]["text"]
    assert f"({len(records)} of {len(eight)} seeds so far)" in shown["answer-5"]["text"]


def test_rows_of_the_recipe_name_what_was_trained(full):
    results, shown, *_ = full
    plain, *rows = shown["table X1"]["rows"]
    assert plain[:3] == ["Run 13, as in the paper", "45,000", "30"]
    stages = ("recipe-whole", "recipe-30", "recipe-200")
    configs = {c.settings["label"]: c.config for c in results.select(*stages)}
    for row, config in zip(rows, configs.values(), strict=True):
        assert (f"cutout of {config.augmentation.cutout} pixels" in row[0]) == bool(
            config.augmentation.cutout
        )
        assert row[2] == str(config.epochs)


def test_the_first_screen_is_told_what_the_recipe_reaches(full):
    results, shown, *_ = full
    reached = list(accuracies(results, "recipe-whole", "8 epochs").values())
    assert f"The same network reaches {np.mean(reached):.2f} %" in shown["answer-5"]["text"]
    assert f"({len(reached)} seeds)" in shown["answer-5"]["text"]


def test_gains_of_the_steps_are_paired_by_seed(full):
    results, shown, _, _ = full

    def validation(record):
        return record.accuracy("validation")

    first = accuracies(results, "recipe", "run 13", validation)
    second = accuracies(results, "recipe", "triangular rate", validation)
    third = accuracies(results, "recipe", "SGD with Nesterov momentum", validation)
    gains = np.array([third[seed] - second[seed] for seed in second])
    row = cells(shown["table X2b"], "SGD with Nesterov momentum")
    assert row[3] == "3"
    assert float(row[4].replace("−", "-")) == pytest.approx(gains.mean(), abs=0.005)
    margin = stats.t.ppf(0.975, 2) * gains.std(ddof=1) / math.sqrt(3)
    assert float(row[5]) == pytest.approx(margin, abs=0.005)
    alone = accuracies(results, "recipe-alone", "triangular rate", validation)
    row = cells(shown["table X2b"], "triangular rate")
    single = np.mean([alone[seed] - first[seed] for seed in first])
    assert float(row[7].replace("−", "-")) == pytest.approx(single, abs=0.005)
    muon = cells(shown["table X2"], "Muon (batch 250)")[2]
    assert all(word in muon for word in ("batch size: 64 → 250", "learning rate: 0.05 → 0.1"))


def test_the_effect_of_the_published_protocol_and_the_interaction_that_single_changes_leave(full):
    results, shown, said, _ = full
    stage = "protocol-ablation"
    published = accuracies(results, stage, "as published", run=1)
    corrected = accuracies(results, stage, "corrected", run=1)
    optimism = np.mean([published[seed] - corrected[seed] for seed in published])
    told = next(text for text in said if "the published protocol" in text)
    verb = "raises" if optimism > 0 else "lowers"
    effect = f"{verb} the reported accuracy by {abs(optimism):.2f} ± "
    assert f"Run 13, DAA-1: the published protocol {effect}" in told
    singles = [
        accuracies(results, stage, label, run=1)
        for label in ("shuffled", "clean evaluation", "true normalisation")
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
    row = cells(shown["table X3"], "Run 13, DAA-1", "interaction")
    assert float(row[7].replace("−", "-")) == pytest.approx(-optimism - total, abs=0.006)


def test_the_noise_floor_is_t_times_root_two_times_sigma(full):
    results, shown, said, _ = full
    values = list(accuracies(results, "noise-floor", "run 13").values())
    limit = stats.t.ppf(0.975, 9) * math.sqrt(2) * np.std(values, ddof=1)
    assert cells(shown["table X4"], "Run 13, DAA-1")[-1] == f"{limit:.2f}"
    assert any(f"t·√2·σ̂ = {limit:.2f} points" in text and "10 seeds" in text for text in said)
    assert {row[-1] for row in shown["table X5"]["rows"]} == {"pending"}  # reduced: weak networks


def test_each_schedule_stands_at_its_best_rate_on_validation(full):
    results, shown, _, _ = full
    conditions = [
        c
        for c in results.select("schedules", label="SGD", schedule="cosine")
        if c.config.seed == 42
    ]
    best = max(
        conditions,
        key=lambda c: (results.record(c).accuracy("validation"), -c.config.learning_rate),
    )
    row = cells(shown["table X7"], "SGD", "cosine with warm-up")
    assert row[3] == f"{best.config.learning_rate:g}"
    rates = {c.config.learning_rate for c in conditions}
    assert row[2] == str(len(rates))


def test_overconfident_networks_are_counted(full):
    *_, said, _ = full
    rows = full[1]["table X9"]["rows"]
    over = sum(not row[4].startswith("−") for row in rows)
    assert any(f"{over} of {len(rows)} networks" in text for text in said)


def test_cifar_10_1_has_the_counts_of_its_records(full):
    results, shown, said, _ = full
    table = shown["table X11"]
    drops = []
    for row, (run,) in zip(table["rows"], table["runs"], strict=True):
        record, shift = results.store.read_run(run), read_shift(results.store, run)
        matrix = np.array(record.result.predictions.confusion["test"])
        old, new = 100 * matrix.trace() / matrix.sum(), shift.accuracy
        assert [row[1], row[2]] == [f"{old:.2f}", f"{new:.2f}"]
        drops.append(old - new)
    assert f"{np.mean(drops):.1f} on average" in said[-1]
