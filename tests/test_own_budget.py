"""Claims about absolute numbers: the paper's own budget decides, where it is recorded."""

import json
import shutil
import zipfile

import numpy as np
import pytest
from chapters import run_chapter
from conftest import make_record, write_records

from cifarlib.analysis import judges
from cifarlib.report import archive, front
from cifarlib.runs.results import open_results
from cifarlib.runs.store import RecordStore

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A build folder at ``lite`` without runs, beside one at ``full`` with the best model."""
    folder = tmp_path_factory.mktemp("build")
    (condition,) = open_results("full", [], folder / "full").select("stage2-improved")
    RecordStore(folder / "full").write(make_record(condition))
    return folder / "lite", condition.run_id


def test_a_claim_is_judged_on_the_papers_own_budget_alone(recorded):
    folder, run = recorded
    claims = run_chapter("04_stage3.ipynb", folder, scale="lite").verdicts
    judged = claims["best-accuracy"]
    assert judged["verdict"] == "pending"
    assert judged["reason"] == judges.UNDECIDABLE
    assert judged["runs"] == [run]
    assert not judged["provisional"]
    assert claims["resnet-kaiming-accuracy"]["verdict"] == "pending"


def test_until_seeds_of_its_budget_are_recorded_those_of_a_smaller_one_judge_a_claim(recorded):
    folder, _ = recorded
    lite = open_results("lite", [], folder.with_name("seeds") / "lite")
    full = RecordStore(folder.with_name("seeds") / "full")
    (condition,) = open_results("full", [], full.folder).select("stage2-improved")
    full.write(make_record(condition))
    write_records(lite.store, lite.beyond.select("lowered-rate"))
    shown = run_chapter("04_stage3.ipynb", lite.store.folder, scale="lite")
    judged = shown.verdicts["best-accuracy"]
    assert judged["verdict"] == "did not hold"
    assert "(σ̂ of 2 seeds at a smaller budget)" in judged["reason"]
    assert judged["ours"].endswith(" %, at the paper's own budget")
    assert not judged["provisional"]


def test_the_page_lists_the_runs_of_the_papers_own_budget(recorded):
    folder, run = recorded
    told = front.describe(open_results("lite", [], folder), "--scale lite")
    (listed,) = [one for one in told["runs"] if one["run_id"] == run]
    assert listed["done"]
    assert "--scale full" in listed["command"]
    assert json.dumps(told["run_stages"]).count("At the paper's own budget") == 1


def test_the_first_screen_says_what_images_and_epochs_do(tmp_path):
    lite, full = (open_results(name, [], tmp_path / name) for name in ("lite", "full"))
    short, large = (results.select("stage1-daa1", run=13)[0] for results in (lite, full))
    longer = lite.select("stage1-long", run=13)[0]
    write_records(lite.store, [short, longer])
    write_records(full.store, [large])
    answers = run_chapter("06_claims.ipynb", lite.store.folder, scale="lite").verdicts
    answer = answers["answer-2"]
    tops = [make_record(condition).accuracy("test") for condition in (short, large)]
    assert answers["answer-0"]["text"].replace("−", "-") == (
        "Longer training on more images changes test accuracy by "
        f"{tops[1] - tops[0]:+.1f} points (run 13 of Table VII)."
    )
    parts = [
        f"{make_record(condition).accuracy('test'):.1f} % after {condition.config.epochs} epochs "
        f"of {condition.config.data.train_size:,} images (1 seed)"
        for condition in (short, longer, large)
    ]
    said = f"Run 13 with DAA-1 reaches {parts[0]}, {parts[1]} and {parts[2]}. That is "
    assert answer["text"].startswith(said)
    assert [part.split(" after ")[1] for part in parts] == [
        "10 epochs of 9,000 images (1 seed)",
        "30 epochs of 9,000 images (1 seed)",
        "30 epochs of 45,000 images (1 seed)",
    ]
    further = lite.beyond.select("noise-floor", run=1)[1]
    write_records(lite.store, [further])
    mean = np.mean([make_record(condition).accuracy("test") for condition in (short, further)])
    answer = run_chapter("06_claims.ipynb", lite.store.folder, scale="lite").verdicts["answer-2"]
    assert f"reaches {mean:.1f} % after 10 epochs of 9,000 images (2 seeds), " in answer["text"]


def test_a_run_of_the_papers_own_budget_that_is_not_recorded_is_no_link(tmp_path):
    shown = run_chapter("08_beyond.ipynb", tmp_path / "lite", scale="lite")
    linked = [run for row in shown.tables["B1"]["runs"] for run in row]
    full = open_results("full", [], tmp_path / "full").select("stage1-daa1", run=13)
    assert linked
    assert full[0].run_id not in linked


def test_an_archive_has_the_records_of_the_papers_own_budget(recorded, tmp_path):
    folder, run = recorded
    lite = open_results("lite", [], tmp_path / "lite")
    write_records(lite.store, lite.select("stage1-daa1", run=13))
    shutil.copytree(folder.with_name("full"), tmp_path / "full")
    with zipfile.ZipFile(archive.export("lite", [], lite.store.folder)) as file:
        assert f"build/full/runs/{run}.json" in file.namelist()


def test_stand_in_images_and_the_papers_own_budget_have_no_other(tmp_path):
    for scale in ("smoke", "full"):
        results = open_results(scale, [], tmp_path / scale)
        assert results.own_budget is results


@pytest.mark.parametrize(
    ("recorded", "said"),
    [
        ([], "Whether the paper's accuracies come out again is pending (0 of 8 "),
        ([2, 14, 26], "Test accuracies lie −"),
    ],
)
def test_the_first_screen_says_how_far_the_papers_accuracies_come_out_again(
    recorded, said, tmp_path
):
    full = open_results("full", [], tmp_path / "full")
    write_records(full.store, (full.select("stage1-base", run=run)[0] for run in recorded))
    shown = run_chapter("06_claims.ipynb", tmp_path / "lite", scale="lite")
    answer = shown.verdicts["answer-9"]["text"]
    assert answer.startswith(said)
    if recorded:
        assert "as in the paper; 3 of 8 runs recorded so far, one seed each. Ours are of" in answer
