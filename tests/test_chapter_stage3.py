"""The chapter on other networks, executed on made-up records."""

import pytest
from chapters import run_chapter
from conftest import make_record

from cifarlib.analysis import judges
from cifarlib.runs.results import open_results

pytestmark = pytest.mark.integration

CIFAR10 = ["data={name: cifar10, train_size: 60, validation_size: 50, test_size: 200}"]


@pytest.mark.parametrize(("of", "decided"), [("noise-floor", False), ("resize-seeds", True)])
def test_resize_methods_are_judged_by_the_noise_of_their_own_network(tmp_path, of, decided):
    results = open_results("smoke", CIFAR10, tmp_path)
    beyond = open_results("smoke", CIFAR10, tmp_path, study="beyond")
    for condition in [*results.select("interpolation"), *beyond.select(of)]:
        results.store.write(make_record(condition))
    shown, _ = run_chapter("04_stage3.ipynb", scale="smoke", overrides=CIFAR10, build=str(tmp_path))
    (claim,) = [content for content in shown if content.get("id") == "resize-accuracies"]
    assert claim["n"] == 1
    assert (claim["verdict"] != "pending") is decided
    assert (judges.UNDECIDABLE in claim["reason"]) is not decided
