"""Runs of studies past the paper's: listed in the report where they are recorded or shown."""

import pytest
from conftest import SET_TINY, TINY, make_record, render_page

from cifarlib import cli, paths
from cifarlib.report import front
from cifarlib.runs import other_studies
from cifarlib.runs.results import open_results
from cifarlib.runs.store import RecordStore

OVERRIDES = (*TINY, "epochs.10=1")
OPTIONS = "--scale smoke"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """Both studies; of each one run is recorded, and the other study's is not the paper's."""
    folder = tmp_path_factory.mktemp("both")
    results = open_results("smoke", OVERRIDES, folder)
    RecordStore(folder).write(make_record(results.conditions[0]))
    told = {c.run_id for c in results.conditions}
    beyond = other_studies.open_others("smoke", OVERRIDES, folder)["beyond"]
    recorded = next(c for c in beyond.conditions if c.run_id not in told)
    RecordStore(folder).write(make_record(recorded, device="another processor"))
    results = open_results("smoke", OVERRIDES, folder)
    return results, other_studies.open_others("smoke", OVERRIDES, folder), recorded


def narrow(opened, shown=()):
    results, others, _ = opened
    return other_studies.narrow(others, results, shown)


def pick_pending(opened):
    results, others, recorded = opened
    told = {c.run_id for c in results.conditions}
    return next(c for c in others["beyond"].conditions if c.run_id not in told | {recorded.run_id})


def test_narrow_keeps_only_recorded_runs_and_none_of_the_papers(opened):
    kept = narrow(opened)["beyond"].conditions
    assert {c.run_id for c in kept} == {opened[2].run_id}
    pending, papers = pick_pending(opened), opened[0].conditions[3]
    shown = narrow(opened, {pending.run_id, papers.run_id})["beyond"].conditions
    assert {c.run_id for c in shown} == {opened[2].run_id, pending.run_id}


def test_join_has_the_records_of_both_studies(opened):
    results, _, recorded = opened
    joined = other_studies.join(results, narrow(opened))
    assert set(joined.records) == {results.conditions[0].run_id, recorded.run_id}
    assert joined.records[recorded.run_id].provenance.device == "another processor"
    assert joined.conditions[: len(results.conditions)] == results.conditions
    assert len(joined.conditions) > len(results.conditions)
    assert other_studies.join(results, {}) == results


@pytest.mark.parametrize("name", ["mine", "lite"])
def test_a_scale_of_ones_own_is_that_of_the_second_study_too(tmp_path, name):
    """With the epochs that the second study has at full scale, where its own name says no other."""
    scale = tmp_path / f"{name}.yaml"
    scale.write_text(
        (paths.PARAMS / "smoke.yaml").read_text().replace("train_size: 200", "train_size: 60")
    )
    others = other_studies.open_others(str(scale), [], tmp_path)
    results = open_results(str(scale), (), tmp_path)
    assert results.beyond.scale == others["beyond"].scale
    assert results.beyond.scale.data.train_size == 60
    assert results.beyond.scale.epochs == {8: 8, 10: 10, 15: 15, 30: 4, 40: 4, 200: 8}
    known = {c.run_id for c in results.beyond.conditions}
    assert known == {c.run_id for c in others["beyond"].conditions}


def test_the_page_has_every_run_that_it_shows(opened):
    results, _, recorded = opened
    pending = pick_pending(opened)
    others = narrow(opened, {pending.run_id})
    told = front.describe(results, OPTIONS, others=others)
    links = "".join(f'<a href="#run-{c.run_id}">it</a>' for c in (recorded, pending))
    soup = render_page(told, f"<p>{links}</p>", name="08_beyond.ipynb")
    fold = soup.find(id=f"run-{recorded.run_id}")
    assert "another processor" in fold.get_text()
    assert "--study beyond" in fold.select_one(".again code").get_text()
    assert "Pending" in soup.find(id=f"run-{pending.run_id}").get_text()
    rows = soup.select("table.runs tbody tr")
    assert len(rows) == len(told["runs"]) == told["total"] + 2
    assert "1 more, beyond the paper's study" in soup.select_one("section.provenance").get_text()
    listed = front.describe_paper(other_studies.join(results, others), told, "T")["runs"]
    assert {run["run_id"] for run in listed} == {run["run_id"] for run in told["runs"]}


def test_the_command_of_a_run_with_seeds_of_its_stage_names_that_run(opened):
    results, _, recorded = opened
    told = front.describe(results, OPTIONS, others=narrow(opened))
    run = next(run for run in told["runs"] if run["run_id"] == recorded.run_id)
    assert run["command"] == f"cifarlib verify --run {recorded.run_id} {OPTIONS} --study beyond"
    assert f", seed {recorded.config.seed}" in run["title"]
    assert f"“{recorded.settings['label']}”" in run["settings"]


def test_a_run_made_otherwise_in_a_further_study_is_refused(opened, tmp_path, capsys):
    results, _, recorded = opened
    store = RecordStore(tmp_path)
    store.write(make_record(results.conditions[0]))
    store.write(make_record(recorded, device_class="cuda"))
    options = [*SET_TINY, "--set", "epochs.10=1", "--out", str(tmp_path)]
    assert cli.main(["report", *options]) == 2
    assert recorded.name in capsys.readouterr().err
