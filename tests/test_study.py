"""Rows of the paper are known by their settings, whatever a user makes of the study's file."""

import json

import pytest
import yaml
from conftest import TINY, make_data_record, tiny_store, write_records

from cifarlib import cli, paths
from cifarlib.errors import ConfigError
from cifarlib.paper import tables as published
from cifarlib.runs.results import open_results
from cifarlib.runs.store import RecordStore
from cifarlib.runs.sweep import sweep
from cifarlib.study import STUDIES, Study, expand, expand_paper, load_scale, load_study

LITE = ("data={name: cifar10, train_size: 100, validation_size: 50, test_size: 200}",)


def edited(change) -> Study:
    """The paper's study after a change to its content."""
    content = yaml.safe_load(paths.STUDY.read_text(encoding="utf-8"))
    change(content)
    return Study.model_validate_json(json.dumps(content))


def write(folder, change):
    """The same as a file."""
    content = yaml.safe_load(paths.STUDY.read_text(encoding="utf-8"))
    change(content)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def add_rate(content):
    content["stages"]["stage1-daa1"]["grid"]["learning_rate"].insert(2, 0.003)


def drop_rates(content):
    content["stages"]["stage1-daa1"]["grid"]["learning_rate"] = [0.0001]


def drop_stage(content):
    del content["stages"]["interpolation"]


def pad_more(content):
    content["presets"]["augmentation"]["daa1"]["padding"] = 6


def turn_round(content):
    grid = content["stages"]["stage1-daa1"]["grid"]
    for values in grid.values():
        values.reverse()
    content["stages"]["stage1-daa1"]["grid"] = dict(reversed(grid.items()))


def step_everywhere(content):
    content["defaults"]["schedule"] = "step_at_89"


def add_dropout(content):
    content["stages"]["stage2-dropout"]["grid"]["dropout"].insert(2, 0.3)


def add_stage(content):
    content["stages"]["stage1-mine"] = {
        "title": "SGD with DAA-1",
        "fixed": {"epochs": 30, "optimizer": "sgd", "augmentation": "daa1", "batch_size": 64},
        "grid": {"learning_rate": [0.1, 0.01], "weight_decay": [0.001]},
    }


def all_at_once(content):
    for change in (add_rate, drop_stage, turn_round, add_dropout, add_stage):
        change(content)


EDITS = [
    *(add_rate, drop_rates, drop_stage, pad_more, turn_round),
    *(step_everywhere, add_dropout, add_stage),
]


@pytest.fixture(scope="module")
def scale():
    return load_scale("full")


@pytest.fixture(scope="module")
def paper(scale):
    """Run id of each of the paper's conditions, by name."""
    return {c.name: c.run_id for c in expand_paper(load_study(), scale)}


# ---------------------------------------------------------------------------------------------
# Numbers and names
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["smoke", "lite", "full"])
def test_the_study_is_the_papers_conditions(name):
    study, scale = load_study(), load_scale(name)
    assert expand(study, scale) == expand_paper(study, scale)


def test_the_paper_has_114_conditions_in_its_tables():
    _, stages = published.read_conditions()
    assert sum(map(len, stages.values())) - len(stages["interpolation"]) == 114


@pytest.mark.parametrize("change", EDITS)
def test_a_number_of_the_paper_belongs_to_its_settings(scale, paper, change):
    study = edited(change)
    conditions = expand(study, scale)
    own = [c for c in conditions if c.name not in paper]
    assert {c.name: c.run_id for c in conditions if c.name in paper}.items() <= paper.items()
    assert not {c.run_id for c in own} & set(paper.values())
    assert all(c.run is None for c in own if c.stage != "stage1-mine")
    assert len({c.name for c in conditions}) == len(conditions)
    assert {c.name: c.run_id for c in expand_paper(study, scale)} == paper


def test_a_rate_more_is_ones_own(scale):
    study = edited(add_rate)
    own = [c for c in expand(study, scale, "stage1-daa1") if c.run is None]
    assert [c.name for c in own][:2] == [
        "stage1-daa1/batch_size=32,learning_rate=0.003,weight_decay=0.001",
        "stage1-daa1/batch_size=32,learning_rate=0.003,weight_decay=0.0001",
    ]
    assert all(c.settings["learning_rate"] == 0.003 for c in own)
    assert len(own) == 8


def test_another_padding_makes_every_run_with_it_ones_own(scale):
    conditions = expand(edited(pad_more), scale)
    padded = [c for c in conditions if c.settings["augmentation"] == "daa1"]
    assert len(padded) == 32 + 2 + 8 + 1
    assert all(c.run is None for c in padded)
    assert (
        "stage1-daa1/augmentation.padding=6,batch_size=64,learning_rate=0.1,weight_decay=0.001"
        in {c.name for c in padded}
    )
    assert {c.name for c in padded if c.stage == "stage2-improved"} == {
        "stage2-improved/augmentation.padding=6"
    }


def test_stages_taken_from_a_run_have_the_papers_settings(scale, paper):
    for change in (add_rate, drop_rates, turn_round):
        conditions = expand(edited(change), scale)
        later = [c for c in conditions if c.stage in ("stage1-long", "stage2-dropout")]
        assert len(later) == 10
        assert all(paper[c.name] == c.run_id for c in later)


def test_a_setting_of_the_scale_is_ones_own_in_a_stage(scale):
    def publish(content):
        content["stages"]["stage1-long"]["list"] = [{}, {"protocol": "published"}]

    names = [c.name for c in expand(edited(publish), scale, "stage1-long")]
    assert names[0::2] == ["stage1-long/9", "stage1-long/13"]
    assert names[1::2] == [
        "stage1-long/learning_rate=0.1,protocol=published",
        "stage1-long/learning_rate=0.001,protocol=published",
    ]


def test_a_label_makes_no_condition_the_papers(scale):
    def name_it(content):
        content["stages"]["stage1-long"]["list"] = [{"label": "13", "weight_decay": 0.5}]

    assert [c.name for c in expand(edited(name_it), scale, "stage1-long")] == [
        "stage1-long/learning_rate=0.1,weight_decay=0.5",
        "stage1-long/learning_rate=0.001,weight_decay=0.5",
    ]


def test_what_a_stage_says_for_one_scale_is_part_of_its_budget():
    def shorten(content):
        content["stages"]["stage1-long"]["at"] = {
            "smoke": {"epochs": 5, "data.train_size": 150},
            "lite": {"learning_rate": 0.5, "epochs": 5},
        }

    study = edited(shorten)
    smoke, lite = (load_scale(name) for name in ("smoke", "lite"))
    assert [c.name for c in expand(study, smoke, "stage1-long")] == [
        "stage1-long/9",
        "stage1-long/13",
    ]
    assert expand(study, smoke) == expand_paper(study, smoke)
    own = expand(study, lite, "stage1-long")
    assert {c.name for c in own} == {"stage1-long/learning_rate=0.5"}
    assert all(c.config.epochs == 5 for c in own)
    assert {c.config.epochs for c in expand_paper(study, lite) if c.stage == "stage1-long"} == {5}


def test_a_study_past_the_paper_has_none_of_its_conditions(scale):
    beyond = load_study(STUDIES["beyond"])
    assert expand_paper(beyond, load_scale("full", study=beyond)) == []


# ---------------------------------------------------------------------------------------------
# What is said twice
# ---------------------------------------------------------------------------------------------


def test_a_seed_or_a_run_twice_is_refused(tmp_path):
    def repeat(content):
        content["stages"]["stage1-long"]["seeds"] = [1, 1]

    def repeat_run(content):
        content["stages"]["stage1-long"]["from"]["runs"] = [9, 13, 9]

    with pytest.raises(ConfigError, match=r"at seeds: 42 stands there twice; name each once"):
        load_scale("smoke", ["seeds=[42, 43, 42]"])
    with pytest.raises(ConfigError, match=r"stages.stage1-long.seeds: 1 stands there twice"):
        load_study(write(tmp_path, repeat))
    with pytest.raises(ConfigError, match=r"stages.stage1-long.from.runs: 9 stands there twice"):
        load_study(write(tmp_path, repeat_run))


STAGE = """
presets: {}
defaults: {model: {name: residual, initialization: kaiming}, resize: null, augmentation: {},
  schedule: {name: constant}, early_stopping: null, optimizer: {name: sgd, momentum: 0.9},
  dropout: 0.0, batch_size: 64, weight_decay: 0.0, learning_rate: 0.1, epochs: 30}
stages:
  first: {title: First}
  mine: {title: Mine, from: {stage: first, runs: [1]}, %s}
"""


def expand_own(tmp_path, stage):
    """The names and rates of the conditions of a stage of one's own."""
    path = tmp_path / "own.yaml"
    path.write_text(STAGE % stage)
    study = load_study(path)
    found = expand(study, load_scale("smoke", study=study), "mine")
    return [(c.name, c.config.learning_rate) for c in found]


@pytest.mark.parametrize(
    ("stage", "said"),
    [
        (
            "list: [{label: a, dropout: 0.1}, {label: a, dropout: 0.2}]",
            "stage mine: two different runs have the name mine/1,a; give each a label of its own",
        ),
        ("grid: {seed: [1, 2]}", "seed is no setting; give the stage its `seeds`"),
        ("fixed: {seed: 1}", "seed is no setting; give the stage its `seeds`"),
        ('list: [{kept: "false"}]', "kept = 'false' must be true or false"),
        ("grid: {dropout: [0.1]}}\n  '': {title: Nameless", "at least 1 character"),
        ("grid: {<<: {dropout: [0.1]}}", "the merge key << is not read here; write its keys out"),
        ("fixed: {dropout: 0.1, dropout: 0.2}", "the key 'dropout' stands there twice"),
        ("fixed: {}}\nepochs: {smoke: {7: 0}", r"own\.yaml: epochs\.smoke\.7 = 0 is not valid"),
    ],
)
def test_a_study_that_says_what_cannot_be_is_refused(tmp_path, stage, said):
    with pytest.raises(ConfigError, match=said):
        expand_own(tmp_path, stage)


def test_a_study_of_stages_alone_may_start_from_a_run_of_the_paper(scale, paper, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text(
        "stages:\n  mine:\n    title: Rates\n    from: {stage: stage1-daa1, runs: [13]}\n"
        "    grid: {learning_rate: [0.001, 0.002]}\n"
    )
    same, other = expand(load_study(path), scale, "mine")
    assert (same.run_id, same.config.learning_rate) == (paper["stage1-daa1/13"], 0.001)
    assert other.config == same.config.model_copy(update={"learning_rate": 0.002})


def test_a_study_without_a_stage_is_refused(tmp_path):
    path = tmp_path / "own.yaml"
    path.write_text("presets: {}\ndefaults: {}\nstages: {}\n")
    with pytest.raises(ConfigError, match=r"own\.yaml: a study needs a stage; add one"):
        load_study(path)


def test_a_label_may_be_a_number(tmp_path):
    stage = "list: [{label: 1, learning_rate: 0.2}, {label: 2.5, learning_rate: 0.3}]"
    assert expand_own(tmp_path, stage) == [("mine/1,1", 0.2), ("mine/1,2.5", 0.3)]


@pytest.mark.parametrize(
    ("scale", "overrides", "name"),
    [
        ("lite", ["mixed=[dirty]", "seeds=[1, 2]"], "lite"),
        (str(paths.PARAMS / "lite.yaml"), [], "lite"),
        (str(paths.PARAMS / "published/../lite.yaml"), [], "lite"),
        ("lite", ["mixed=[dirty]", "epochs.30=2"], ""),
    ],
)
def test_a_scale_whose_runs_are_as_in_params_has_its_name(scale, overrides, name):
    assert load_scale(scale, overrides).name == name


def test_a_scale_without_a_protocol_is_told_so(tmp_path):
    text = (paths.PARAMS / "smoke.yaml").read_text()
    path = tmp_path / "mine.yaml"
    path.write_text("".join(line for line in text.splitlines(True) if "protocol:" not in line))
    with pytest.raises(ConfigError, match=r"mine\.yaml: 'protocol' is missing; add it"):
        load_scale(str(path))


def test_a_value_twice_in_a_grid_is_refused(scale):
    def repeat(content):
        content["stages"]["stage1-daa1"]["grid"]["learning_rate"].append(0.01)

    with pytest.raises(ConfigError, match=r"gives learning_rate the value 0\.01 twice"):
        expand(edited(repeat), scale)


# ---------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------


def show(results):
    """What the chapters read of the paper's conditions, as text."""
    return [frame.to_csv() for frame in (results.runs, results.curves)]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """A folder with a record of every condition of the paper, and of the edited studies."""
    store = RecordStore(tmp_path_factory.mktemp("recorded"))
    store.write(make_data_record("cifar10"))
    scale = load_scale("lite", LITE)
    conditions = {c.run_id: c for c in expand_paper(load_study(), scale)}
    for change in (all_at_once, pad_more):
        conditions |= {c.run_id: c for c in expand(edited(change), scale)}
    write_records(store, conditions.values())
    return store.folder


@pytest.fixture(scope="module")
def unedited(recorded):
    return show(open_results("lite", LITE, recorded))


@pytest.mark.parametrize("change", [all_at_once, pad_more])
def test_an_edited_study_changes_nothing_of_the_papers(recorded, unedited, tmp_path, change):
    results = open_results("lite", LITE, recorded, write(tmp_path, change))
    assert results.conditions != list(results.paper)
    assert show(results) == unedited


def test_conditions_of_ones_own_do_not_count_as_the_papers(tmp_path):
    results = open_results("lite", LITE, tmp_path, write(tmp_path, add_rate))
    assert results.runs["name"].nunique() == 120
    assert len(results.known) == len(results.conditions) > 120


def test_what_the_study_leaves_out_is_pending_and_can_be_named(tmp_path):
    results = open_results("lite", LITE, tmp_path, write(tmp_path, drop_rates))
    assert len(results.select("stage1-daa1")) == 32
    assert len([c for c in results.conditions if c.stage == "stage1-daa1"]) == 8
    (condition,) = cli._find(results, "stage1-daa1/13")
    assert condition == results.select("stage1-daa1", run=13)[0]
    assert condition in results.known
    assert results.runs.query("stage == 'stage1-daa1'")["state"].eq("pending").sum() == 32


def test_stages_are_the_papers_also_where_the_study_leaves_one_out(tmp_path):
    whole = open_results("lite", LITE, tmp_path).stages
    results = open_results("lite", LITE, tmp_path, write(tmp_path, drop_stage))
    assert results.stages == whole | {"interpolation": "interpolation"}  # by its name


def test_a_condition_of_ones_own_is_trained_by_its_name(tmp_path, made_up, capsys):
    tiny_store(tmp_path)
    results = open_results("smoke", TINY, tmp_path, write(tmp_path, add_rate))
    name = "stage1-daa1/batch_size=64,learning_rate=0.003,weight_decay=0.001"
    (condition,) = cli._find(results, name)
    assert condition.config.learning_rate == 0.003
    outcome = sweep([condition], results.store, workers=1)
    assert outcome.done == 1
    assert f"{name}: test" in capsys.readouterr().err


def test_a_scale_says_what_stands_for_a_threshold_of_accuracy():
    """Where validation accuracy cannot exceed the paper's 89 %, a schedule would never act."""
    study = load_study()
    for overrides, expected in (((), 89.0), (("thresholds.89=73.5",), 73.5)):
        scale = load_scale("smoke", overrides, study)
        schedules = {c.stage: c.config.schedule for c in expand(study, scale) if c.run == 13}
        assert schedules["stage2-improved"].threshold == expected
        assert schedules["stage1-long"].name == "constant"
    with pytest.raises(ConfigError, match="thresholds"):
        load_scale("smoke", ("thresholds.89=110",), study)


def test_the_errors_at_the_threshold_are_to_those_of_our_long_run_what_they_are_to_the_papers():
    results = open_results("lite", build=paths.BUILD / "lite")
    (long,) = results.select("stage1-long", run=13)
    ours = results.records[long.run_id].accuracy("validation")
    theirs = published.table(9).set_index("run")["validation_top1"][13]
    expected = 100 - (100 - ours) * (100 - 89) / (100 - theirs)
    assert results.scale.thresholds == {89: round(float(expected), 1)}


def test_the_rate_of_further_seeds_falls_where_it_falls_in_the_improved_run_13():
    results = open_results("lite", build=paths.BUILD / "lite")
    (improved,) = results.select("stage2-improved")
    rates = results.records[improved.run_id].result.history.learning_rate
    beyond = open_results("lite", build=paths.BUILD / "lite", study="beyond")
    for condition in beyond.select("lowered-rate"):
        (share,) = condition.config.schedule.milestones
        assert round(share * condition.config.epochs) == rates.count(rates[1])
