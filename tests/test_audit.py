"""The chapter that checks the paper against itself, with CIFAR-10's record and without."""

import re
import shutil

import numpy as np
import pytest
from chapters import run_chapter
from conftest import write_records

import cifarlib as cl
from cifarlib import paths
from cifarlib.errors import ConfigError
from cifarlib.paper.statements import read_listings
from cifarlib.runs.results import open_results
from cifarlib.runs.store import RecordStore

NEEDS_DATA = {"factor-49", "input-scale", "centre-crop", "last-layer"}


def execute(folder):
    return run_chapter("05_audit.ipynb", folder, scale="lite")


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """With CIFAR-10's record and two runs."""
    folder = tmp_path_factory.mktemp("audit")
    (folder / "runs").mkdir()
    for record in (paths.ROOT / "build/lite/runs").glob("data-*.json"):
        shutil.copy(record, folder / "runs")
    write_records(RecordStore(folder), open_results("lite", [], folder).select("stage1-long"))
    return execute(folder)


def test_audit_judges_every_doubt_once_with_numbers(shown):
    doubts = [one for one in shown.contents if one["kind"] == "doubt"]
    assert [one["id"] for one in doubts] == list(cl.paper.doubts)
    assert {one["verdict"] for one in doubts} == {"confirmed", "refuted", "undecidable"}
    for doubt in doubts:
        assert re.fullmatch(r"[^\n]*\d[^\n]*\.", doubt["reason"])
        assert not re.search(r"\bnan\b", doubt["reason"])


def test_audit_lists_every_doubt_in_its_first_table(shown):
    table, verdicts = shown.tables["A1"], shown.verdicts
    assert shown.contents[0] is table
    assert [row[1] for row in table["rows"]] == [d.text for d in cl.paper.doubts.values()]
    assert [row[2] for row in table["rows"]] == [
        verdicts[name]["verdict"] for name in cl.paper.doubts
    ]
    assert table["links"][0] == [0, 0, [["1", f"doubt-{next(iter(cl.paper.doubts))}"]]]
    assert table["note"] == "58 doubts: 50 confirmed, 5 refuted, 3 undecidable."


def test_audit_waits_for_cifar10_only_where_it_is_needed(tmp_path):
    empty = execute(tmp_path / "nothing")
    pending = {name for name, one in empty.verdicts.items() if one["verdict"] == "pending"}
    assert pending == NEEDS_DATA
    assert {row[3] for row in empty.tables["A2"]["rows"]} == {"pending"}
    assert {row[2] for row in empty.tables["A8"]["rows"]} == {"pending"}


@pytest.mark.parametrize(
    ("verdict", "names"),
    [
        (
            "refuted",
            ["swapped-split", "whole-images", "differences", "depth-ratio", "class-numbers"],
        ),
        ("undecidable", ["step-gain", "dropout-settings", "shorter-training"]),
    ],
)
def test_audit_verdicts_other_than_confirmed(shown, verdict, names):
    found = {name for name, one in shown.verdicts.items() if one["verdict"] == verdict}
    assert found == set(names)


@pytest.mark.parametrize(
    ("name", "numbers"),
    [
        ("factor-49", ["49.0000 times"]),
        ("input-scale", ["6.23"]),
        ("last-layer", ["0.447", "0.0625", "8.23", "2.30"]),
        ("loss-scale", ["0.0313, 0.0156 and 0.0039", "8.0"]),
        ("matrices-of-test", ["880, 930 and 915", "500"]),
        ("highest-test", ["Run 5 has 86.9", "run 13 has 86.6"]),
        ("lowest-difference", ["1.43", "1.47", "1.59", "1.64", "0.05"]),
        ("augmentation-gain", ["9.4 to 19.6", "more than 12 in 8"]),
        ("conditions", ["114", "120", "115"]),
        ("five-methods", ["15 pairs", "nearest and box", "32", "256"]),
        ("step-gain", ["8,997", "8,940", "p = 0.185", "8.5 %"]),
        ("early-stopping", ["190 (best 139)", "128 (best 77)", "4 of 10", "other 6"]),
        ("schedulers", ["counts 0 as worse", "needs math", "0 are active"]),
        ("rotation", ["26 of 32", "DAA-2 in 4", "+1.2"]),
        ("shorter-training", ["182 epochs", "the 200", "after 128"]),
        ("depth-ratio", ["6.72", "3 %"]),
        ("rate-values", ["SGD with 2, Adam with 2 and AdamW with 4"]),
        ("times-printed", ["36 runs", "other 8"]),
        ("cat-and-dog", ["270 are cat and dog", "cat 48 against 17, deer 23 against 10"]),
        ("deer-recall", ["86.4 % of deer", "82.9 %"]),
        ("sgd-gap", ["10 of 12", "79.3 %"]),
        ("optimizer-choice", ["0.61 points", "1.3 points"]),
        ("validation-level", ["+0.95", "83 of 100", "3 of 10", "+0.74 to +1.15"]),
        ("order-of-effects", ["0.57 points", "Table VII 0.94", "27 points", "2 to 53", "1 to 29"]),
        ("kaiming-scale", ["√(2/576) = 0.0589", "0.0017"]),
        ("log-softmax", ["NaN", "0 and −1000"]),
    ],
)
def test_audit_evidence_has_known_numbers(shown, name, numbers):
    for number in numbers:
        assert number in shown.verdicts[name]["reason"]


def test_audit_table_of_crops_has_the_mean_over_all_random_crops(shown):
    data = open_results("lite", [], paths.ROOT / "build/lite").data
    resized = data.mean_image.repeat(8, axis=1).repeat(8, axis=2)
    crops = [
        resized[:, top : top + 224, left : left + 224].mean((1, 2))
        for top in range(33)
        for left in range(33)
    ]
    rows = {(row[0], row[1]): row for row in shown.tables["A3"]["rows"]}
    found = [float(rows["nearest", channel][4]) for channel in "RGB"]
    assert found == pytest.approx(np.mean(crops, axis=0), abs=1e-6)


def test_audit_table_of_digits_tells_truncated_from_rounded(shown):
    rows = {(row[0], row[2]): row for row in shown.tables["A4"]["rows"]}
    assert rows["validation", "4"][3:] == ["4", "0.02", "1", "4"]
    assert rows["validation", "2"][3:] == ["18", "9.00", "18", "3"]
    assert sum(int(row[3]) for row in rows.values()) == 366


def test_audit_measures_selection_on_our_records(shown):
    rows = [row for row in shown.tables["A8"]["rows"] if row[1] != "0"]
    assert [row[1] for row in rows] == ["2"]
    assert rows[0][4:] == ["0.00", "2"]  # made up so
    assert sorted(map(len, shown.tables["A8"]["runs"])) == [0] * 7 + [2]


# ---------------------------------------------------------------------------------------------
# Listings
# ---------------------------------------------------------------------------------------------


def test_listings_name_their_source():
    assert cl.paper.listings["loaders"].source == "Listing 2, run_sims, lines 586–588"
    assert cl.paper.listings["model_made"].source == "Listing 2, run_sims, line 590"


def test_listings_that_are_damaged_or_missing_are_refused(tmp_path, monkeypatch):
    text = (paths.PUBLISHED / "listings.yaml").read_text(encoding="utf-8")
    monkeypatch.setattr(paths, "PUBLISHED", tmp_path)
    with pytest.raises(ConfigError, match=r"listings\.yaml cannot be read .*; restore it"):
        read_listings.__wrapped__()
    (tmp_path / "listings.yaml").write_text(text.replace("listing: 5", "listing: five"))
    with pytest.raises(ConfigError, match=r"(?s)listings\.yaml.*listing"):
        read_listings.__wrapped__()
