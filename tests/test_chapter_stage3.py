"""The chapter on other networks, executed on made-up records."""

import pytest
from chapters import CIFAR10, run_chapter
from conftest import write_records

from cifarlib.analysis import judges
from cifarlib.runs.results import open_results

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(("of", "decided"), [("noise-floor", False), ("resize-seeds", True)])
def test_resize_methods_are_judged_by_the_noise_of_their_own_network(tmp_path, of, decided):
    results = open_results("smoke", CIFAR10, tmp_path)
    beyond = open_results("smoke", CIFAR10, tmp_path, study="beyond")
    write_records(results.store, [*results.select("interpolation"), *beyond.select(of)])
    shown = run_chapter("04_stage3.ipynb", tmp_path, overrides=CIFAR10)
    claim = shown.verdicts["resize-accuracies"]
    assert claim["n"] == 1
    assert (claim["verdict"] != "pending") is decided
    assert (judges.UNDECIDABLE in claim["reason"]) is not decided
