"""Missing runs, trained from a chapter's set-up cell."""

from types import SimpleNamespace

import nbformat
import papermill
import pytest
from conftest import (
    OF_STAGE2,
    SET_TINY,
    TINY,
    make_record,
    tiny_conditions,
    tiny_store,
    write_records,
)

from cifarlib import cli, extras, paths
from cifarlib.errors import ConfigError, DataError
from cifarlib.report import notebooks
from cifarlib.runs import in_notebook, parameters
from cifarlib.runs.display import Display
from cifarlib.runs.locks import lock
from cifarlib.runs.progress import Prices
from cifarlib.runs.results import open_results
from cifarlib.runs.worker import RunJob

LONG = "stage1-long"  # two runs


@pytest.fixture
def results(tmp_path):
    return open_results("smoke", TINY, tiny_store(tmp_path).folder)


@pytest.fixture
def with_images(monkeypatch):
    monkeypatch.setattr(in_notebook.data, "find", lambda name: paths.DATA)


def test_complete_says_what_is_missing_and_trains_nothing_unasked(results, capsys):
    assert results.complete([LONG]).records == {}
    said = capsys.readouterr().out
    assert said.startswith("2 of the 2 runs of this chapter are not recorded yet; ")
    assert said.endswith(
        "estimated from the usual speed of such a machine. Set train = True to train them here.\n"
    )


def test_complete_trains_what_is_missing_once(results, made_up, with_images, capsys):
    first, second = results.select(LONG)
    results.store.write(make_record(first))
    done = results.complete([LONG], train=True)
    assert set(done.records) == {first.run_id, second.run_id}
    said = capsys.readouterr().out
    assert said.startswith("1 of the 2 runs of this chapter is not recorded yet; ")
    assert "[2/2] stage1-long/13: test " in said
    again = done.complete([LONG], train=True)
    assert set(again.records) == set(done.records)
    assert capsys.readouterr().out == "All 2 runs of this chapter are recorded.\n"
    assert len((results.store.folder / "trained.log").read_text().splitlines()) == 1


def test_complete_knows_the_stages_of_both_studies(results):
    chosen = in_notebook.choose_conditions(results, [LONG, "noise-floor"])
    assert [c.stage for c in chosen.values()] == [LONG] * 2 + ["noise-floor"] * 20
    with pytest.raises(ConfigError, match="no stage 'stage1-lang'; did you mean 'stage1-long'"):
        results.complete(["stage1-lang"])


def test_complete_takes_the_seeds_of_one_condition(results):
    name = "seeds-of-13/1,rate 0.1"
    chosen = list(in_notebook.choose_conditions(results, [name]).values())
    assert [c.name for c in chosen] == [name] * 5
    assert [c.config.seed for c in chosen] == [42, 43, 44, 45, 46]
    assert {c.config.learning_rate for c in chosen} == {0.1}
    assert in_notebook.choose_conditions(results, [name, "seeds-of-13"]).keys() > {
        c.run_id for c in chosen
    }
    with pytest.raises(ConfigError, match="no condition 'seeds-of-13/1,rate 1'; did you mean"):
        results.complete(["seeds-of-13/1,rate 1"])


def test_complete_stops_at_its_budget(results, made_up, with_images, capsys):
    results.complete([LONG], train=True, budget="0.001s")
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("The budget of 0.001s is used: 0 done, 0 stopped on the way, 2 not ")
    with pytest.raises(ConfigError, match="budget soon: write a time such as"):
        results.complete([LONG], train=True, budget="soon")


@pytest.mark.parametrize(
    ("place", "error"),
    [
        ("data.find", DataError("CIFAR-10 was not found; `cifarlib data --download` fetches it")),
        ("extras.require", extras.missing("torch")),
    ],
)
def test_complete_without_the_data_set_or_torch_says_how_to_get_it(
    results, monkeypatch, capsys, place, error
):
    def refuse(*_):
        raise error

    monkeypatch.setattr(f"cifarlib.{place}", refuse)
    assert results.complete([LONG], train=True) is results
    assert capsys.readouterr().out.endswith(f"Nothing is trained: {error}.\n")


def test_complete_shows_what_another_process_trains(results, capsys):
    condition = results.select(LONG)[0]
    state = results.store.state
    state.mkdir()
    (state / f"{condition.run_id}.pt").write_bytes(bytes(32) + (2).to_bytes(4, "big"))
    with lock(state / f"{condition.run_id}.lock"):
        results.complete([LONG])
        assert set(results.runs.query("stage == @LONG")["state"]) == {"running", "pending"}
    said = capsys.readouterr().out
    assert "In training in another process: stage1-long/9 (epoch 2 of 3)." in said


def test_a_person_sees_a_bar_for_each_running_run(results, monkeypatch):
    monkeypatch.setattr("cifarlib.runs.display.is_watched", lambda: True)
    jobs = [RunJob(c.run_id, c.name, c.config) for c in results.select(LONG)]
    shown = Display(jobs, 0, Prices(), 2, 1.0, results.store)
    shown.advance(jobs[0], 20)
    shown.epoch(jobs[0], 1, 31.25)
    (bar,) = shown.bars.values()
    assert (bar.n, bar.total, bar.desc) == (20, 60, "stage1-long/9")
    assert bar.postfix == "epoch 1 of 3, validation 31.2 %"
    shown.finish(jobs[0], make_record(results.select(LONG)[0]))
    shown.drop(jobs[0])
    assert (shown.bar.n, shown.bars) == (1, {})
    assert shown.bar.desc.startswith("1 of 2 runs, about ")
    shown.close()


# ---------------------------------------------------------------------------------------------
# Parameters
# ---------------------------------------------------------------------------------------------

DECLARED = 'scale: str = "smoke"\noverrides: list[str] = []\ntrain: bool = False'


@pytest.mark.parametrize(
    ("injected", "said"),
    [
        ("trian = True", "no parameter 'trian'; did you mean 'train'"),
        ('train = "false"', "'train' is of type str; give a bool, such as False"),
    ],
)
def test_injected_parameters_are_checked(injected, said):
    with pytest.raises(ConfigError, match=said):
        parameters.check_injected(["", DECLARED, f"# Parameters\n{injected}\n"])
    parameters.check_injected(["", DECLARED, "# Parameters\noverrides = \"['seeds=[1]']\"\n"])


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"scale": None}, "scale is None; write a text"),
        ({"scale": "smoke", "build": 5}, "build is 5; write a text"),
        ({"scale": "smoke", "overrides": None}, "overrides None: write texts"),
        ({"scale": "smoke", "overrides": ["seeds=[1]", 5]}, "overrides 5: write texts"),
        ({"scale": "smoke", "build": __file__}, "is no folder; name the build folder"),
    ],
)
def test_values_typed_into_the_parameters_cell_are_checked(given, said):
    with pytest.raises(ConfigError, match=said):
        open_results(**given)


def test_every_notebook_refuses_what_papermill_injects(monkeypatch):
    shell = SimpleNamespace(user_ns={"In": ["", DECLARED, "# Parameters\nnonsense = 5\n"]})
    monkeypatch.setattr(parameters, "find_shell", lambda: shell)
    with pytest.raises(ConfigError, match="no parameter 'nonsense'"):
        open_results("smoke")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"budget": 20}, "budget is 20; write a text, such as '20m'"),
        ({"budget": "20m"}, "the budget of 20m is for training; set train = True, too"),
        ({"train": "False"}, "train is 'False'; write True or False"),
    ],
)
def test_complete_refuses_what_says_nothing(results, given, said):
    with pytest.raises(ConfigError, match=said):
        results.complete("stage1-long", **given)


def test_values_that_no_parameter_can_have_get_one_sentence():
    with pytest.raises(ConfigError, match=r"'threshold' is 1000.*…; give a percentage"):
        parameters.check_values({"threshold": 10**400}, {"threshold": 0.0}, "it")
    with pytest.raises(ConfigError, match="'x' must be a plain value"):
        parameters.parse_parameters("x = {[1]: 2}", "it")


@pytest.mark.parametrize(
    "path", sorted(paths.NOTEBOOKS.glob("0[1-9]_*.ipynb")), ids=lambda p: p.stem
)
def test_papermill_describes_each_parameter_of_a_chapter(path):
    described = papermill.inspect_notebook(path)
    first = {"scale": "str", "overrides": "list[str]", "build": "str", "train": "bool"}
    names = {name: one["inferred_type_name"] for name, one in described.items()}
    assert names.items() >= (first | {"budget": "str"}).items()
    assert all(one["help"] for one in described.values())


@pytest.mark.integration
def test_a_chapter_trains_under_papermill_and_a_report_leaves_that_out(tmp_path):
    """One run of the chapter is missing."""
    store = tiny_store(tmp_path / "build")
    results = open_results("smoke", TINY, store.folder)
    *most, last = in_notebook.choose_conditions(results, OF_STAGE2).values()
    write_records(store, most)
    given = {"overrides": list(TINY), "build": str(store.folder), "train": True}
    done = papermill.execute_notebook(
        paths.NOTEBOOKS / "03_stage2.ipynb", tmp_path / "done.ipynb", given, progress_bar=False
    )
    assert store.read_run(last.run_id)
    said = [str(o) for cell in done.cells for o in cell.get("outputs", []) if "1 of the" in str(o)]
    assert len(said) == 1
    tidied = notebooks._tidy(nbformat.from_dict(done))
    assert "1 of the" not in str(tidied.cells[:5])


def test_report_trains_its_chapters_runs_first(tmp_path, made_up, with_images, capsys):
    store = tiny_store(tmp_path)
    write_records(store, (c for c in tiny_conditions() if c.stage != LONG))
    command = ["report", "--out", str(tmp_path), "--only", "stage2", "--train", *SET_TINY]
    assert cli.main(command) == 0
    assert all(store.read_run(c.run_id) for c in open_results("smoke", TINY, tmp_path).select(LONG))
    assert cli.main(["report", "--budget", "9m"]) == 2
    assert capsys.readouterr().err.endswith("cifarlib: --budget is for training; add --train\n")
