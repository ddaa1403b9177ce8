"""The chapter on stage 1, executed on made-up records of which one diverged."""

import numpy as np
import pytest
from chapters import CIFAR10, run_chapter
from conftest import diverge, make_data_record, make_record, rewrite, write_records

from cifarlib.runs.results import open_results
from cifarlib.runs.store import RecordStore

pytestmark = pytest.mark.integration

STAGES = ("stage1-daa1", "stage1-long", "stage2-dropout", "stage2-improved")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """Results in which run 1 with DAA-1 diverged, and what the chapter says of the claims."""
    folder = tmp_path_factory.mktemp("stage1")
    store = RecordStore(folder)
    store.write(make_data_record("cifar10"))
    results = open_results("smoke", CIFAR10, folder)
    write_records(store, results.select(*STAGES))
    lost = results.select("stage1-daa1", run=1)[0]
    rewrite(store, make_record(lost), diverge)
    shown = run_chapter("02_stage1.ipynb", folder, overrides=CIFAR10)
    return open_results("smoke", CIFAR10, folder), shown.verdicts


def test_claims_are_judged_beside_a_run_that_diverged(executed):
    _, claims = executed
    smallest = claims["smallest-gaps"]
    assert (smallest["verdict"], smallest["p"]) == ("did not hold", None)  # no test tells it
    assert "run 1 diverged" in smallest["ours"]
    assert claims["run-9-above-run-1"]["reason"].endswith("No seeds have a result.")


def test_claims_wait_for_the_seeds_of_every_run(tmp_path):
    store = RecordStore(tmp_path)
    store.write(make_data_record("cifar10"))
    given = [*CIFAR10, "seeds=[42, 43]"]
    searches = open_results("smoke", given, tmp_path).select("stage1-base", "stage1-daa1")
    write_records(store, (c for c in searches if c.config.seed == 42))
    claims = run_chapter("02_stage1.ipynb", tmp_path, overrides=given).verdicts
    for name in ("base-best-run", "above-70-one-rate", "smallest-gaps", "daa1-best-run"):
        assert claims[name]["verdict"] == "pending", name


def test_the_optimisers_of_run_26_are_compared_seed_by_seed(tmp_path):
    store = RecordStore(tmp_path)
    store.write(make_data_record("cifar10"))
    results = open_results("smoke", CIFAR10, tmp_path)
    plain = [c for c in results.beyond.select("noise-floor") if c.settings["label"] == "run 26"]
    changed = results.beyond.select("seeds-of-26")
    write_records(store, [*results.select("stage1-base"), *plain, *changed])
    adamw = {c.config.seed: make_record(c).accuracy("test") for c in plain}
    answer = run_chapter("02_stage1.ipynb", tmp_path, overrides=CIFAR10).verdicts["answer-5"]
    told = answer["text"].replace("−", "-").partition("At the setting of run 26 it gives ")[2]
    for optimizer in ("SGD", "Adam"):
        gains = [
            adamw[c.config.seed] - make_record(c).accuracy("test")
            for c in changed
            if c.settings["label"] == optimizer
        ]
        assert len(gains) == 5
        assert f"{np.mean(gains):+.1f} points (95 %: " in told
        assert f" relative to {optimizer}" in told
    assert told.endswith(" (5 seeds).")


def test_two_runs_confuse_as_much_alike_as_each_with_itself(executed):
    """Correlations of the rates of confusion between long runs 9 and 13, and within each."""
    results, claims = executed
    conditions = results.select("stage1-long", "stage2-dropout")
    rates, off = [], ~np.eye(10, dtype=bool)
    for condition in conditions:
        matrix = results.predictions(condition.run_id).confusion("test")
        rates.append((matrix / matrix.sum(axis=1, keepdims=True))[off])
    ninth = np.array([condition.run == 9 for condition in conditions])
    r = np.corrcoef(rates)
    within = [
        np.mean([r[i, j] for i in side for j in side if i < j])
        for side in (np.flatnonzero(ninth), np.flatnonzero(~ninth))
    ]
    between = r[ninth][:, ~ninth].mean()
    found = claims["similar-matrices"]
    said = f"r = {between:.2f} between runs 9 and 13, {np.mean(within):.2f} within"
    assert found["ours"].replace("−", "-") == said
    assert (found["n"], len(found["runs"])) == (10, 10)
    low, high = (float(end) for end in found["interval"].replace("−", "-").split()[1::2])
    assert low < between - np.mean(within) < high
