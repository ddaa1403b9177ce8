"""Mixed provenance: refused unless the scale declares it, and then said on the title page."""

import pandas as pd
import pytest
from conftest import SET_TINY, TINY, make_record, render_page, tiny_conditions

from cifarlib import cli
from cifarlib.errors import ReportError
from cifarlib.report import front
from cifarlib.runs import mixed_provenance
from cifarlib.runs.results import open_results
from cifarlib.runs.store import RecordStore


def open_mixed(folder, *changes, overrides=()):
    """A study whose first runs are recorded, each with its changed provenance."""
    for condition, changed in zip(tiny_conditions(), changes, strict=False):
        RecordStore(folder).write(make_record(condition, **changed))
    return open_results("smoke", [*TINY, *overrides], folder)


@pytest.mark.parametrize(
    "changes",
    [
        [],
        [{}, {}],
        [{"dirty": True}, {"dirty": True}],  # nothing to compare a dirty run with
        [{"commit": "a" * 40}, {"commit": "b" * 40}],
        [{"versions": {"torch": "2.11.0"}}, {"versions": {"torch": "2.12.0"}}],
        [{"device": "a processor"}, {"device": "another"}],
    ],
)
def test_find_mixtures_finds_none_in_records_that_belong_together(tmp_path, changes):
    results = open_mixed(tmp_path, *changes)
    assert mixed_provenance.find_mixtures(results) == {}
    mixed_provenance.refuse_undeclared(results)


@pytest.mark.parametrize(
    ("dirty", "said"),
    [
        (True, "1 run is with uncommitted changes"),
        (None, "1 run is from a copy whose changes nobody can know"),  # such as an archive
    ],
)
def test_a_run_of_changed_or_unknown_code_among_clean_ones_is_refused(tmp_path, dirty, said):
    results = open_mixed(tmp_path, {}, {"dirty": dirty}, {})
    assert mixed_provenance.find_mixtures(results).keys() == {"dirty"}
    with pytest.raises(ReportError, match=rf"{said} \(stage1-base/2\)"):
        mixed_provenance.refuse_undeclared(results)


def test_processors_and_gpus_are_refused_and_the_fewer_named(tmp_path):
    results = open_mixed(tmp_path, *[{"device_class": "cuda"}] * 5, *[{}] * 6)
    with pytest.raises(ReportError) as caught:
        mixed_provenance.refuse_undeclared(results)
    said = str(caught.value)
    assert said.startswith(
        "The kind of device differs: 6 runs are on processors, 5 runs are on GPUs "
        "(stage1-base/1, stage1-base/2, stage1-base/3 and 2 more); remove "
    )
    assert "--set 'mixed=[device_class]'" in said
    assert len(said.splitlines()) == 1


def test_the_report_says_so_in_one_line(tmp_path, capsys):
    open_mixed(tmp_path, {}, {"dirty": True})
    assert cli.main(["report", *SET_TINY, "--out", str(tmp_path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("cifarlib: The state of the code differs: ")
    assert not (tmp_path / "report.html").exists()


def test_a_declared_mixture_is_on_the_title_page(tmp_path):
    results = open_mixed(tmp_path, {}, {"dirty": True}, overrides=["mixed=[dirty]"])
    mixed_provenance.refuse_undeclared(results)
    page = render_page(front.describe(results, ""))
    banner = page.select_one("header [aria-label='Mixed records']")
    assert "1 run is with uncommitted changes" in banner.get_text()


def test_every_note_under_a_table_names_the_mixture_behind_it(tmp_path):
    """A notebook that somebody executes by hand has no title page."""
    results = open_mixed(tmp_path, {}, {"dirty": True}, {}, overrides=["mixed=[dirty]"])
    shown = tiny_conditions()[:2]
    note = results.describe(shown)
    assert note.endswith(
        "Mixed: The state of the code differs: 1 run is without uncommitted changes, "
        "1 run is with uncommitted changes (stage1-base/2)."
    )
    assert "Mixed" not in results.describe(shown[:1])


def test_a_note_counts_further_seeds_that_stand_in_a_frame(tmp_path):
    results = open_mixed(tmp_path, {})
    of_paper, further = results.known[0], results.beyond.select("noise-floor")[1]
    shown = pd.DataFrame({"run_id": [of_paper.run_id, further.run_id]})
    assert results.describe(shown).startswith("1 of 2 runs;")
    results.store.write(make_record(further, dirty=True))
    note = open_results("smoke", TINY, tmp_path).describe(shown)
    assert note.startswith("2 of 2 runs;")
    assert f"1 run is with uncommitted changes ({further.name})" in note


def test_one_declaration_does_not_cover_another(tmp_path):
    changes = [{}, {"dirty": True, "device_class": "cuda"}]
    results = open_mixed(tmp_path, *changes, overrides=["mixed=[dirty]"])
    with pytest.raises(ReportError, match=r"--set 'mixed=\[dirty, device_class\]'"):
        mixed_provenance.refuse_undeclared(results)
