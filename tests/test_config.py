"""The study as data: counts, order, ids, and what a user is told about a mistake."""

from collections import Counter

import pytest

from cifarlib import config
from cifarlib.config import ENGINE, expand, load_scale, load_study, run_id
from cifarlib.errors import ConfigError


@pytest.fixture(scope="module")
def study():
    return load_study()


@pytest.fixture(scope="module")
def conditions(study):
    return expand(study, load_scale("full"))


def test_every_condition_of_the_paper_stands_in_its_stage(conditions):
    assert Counter(c.stage for c in conditions) == {
        "stage1-base": 36,
        "stage1-daa1": 32,
        "stage1-daa2": 32,
        "stage1-long": 2,
        "stage2-dropout": 8,
        "stage2-improved": 1,
        "stage3": 3,
        "interpolation": 6,
    }
    assert len({c.run_id for c in conditions}) == 120


@pytest.mark.parametrize("scale", ["smoke", "lite", "full"])
def test_every_scale_expands(study, scale):
    assert len(expand(study, load_scale(scale))) == 120


def test_runs_are_numbered_in_the_order_of_the_tables(conditions):
    base = [c for c in conditions if c.stage == "stage1-base"]
    assert [c.run for c in base] == list(range(1, 37))
    run26 = base[25].config  # the paper's best without augmentation, Table VI
    assert (run26.optimizer.name, run26.batch_size) == ("adamw", 32)
    assert (run26.learning_rate, run26.weight_decay) == (0.001, 0.0001)
    daa1 = {c.run: c.config for c in conditions if c.stage == "stage1-daa1"}
    assert (daa1[9].batch_size, daa1[9].learning_rate, daa1[9].weight_decay) == (64, 0.1, 0.001)
    assert (daa1[13].batch_size, daa1[13].learning_rate) == (64, 0.001)
    assert daa1[13].augmentation.padding == 4
    assert daa1[13].augmentation.rotation_degrees == 0


def test_a_stage_taken_from_another_changes_only_what_it_says(conditions):
    by_name = {c.name: c for c in conditions}
    short = config.flatten(by_name["stage1-daa1/13"].config.model_dump())
    long = config.flatten(by_name["stage1-long/13"].config.model_dump())
    dropped = config.flatten(by_name["stage2-dropout/13,dropout=0.5"].config.model_dump())
    assert {k for k in short if short[k] != long[k]} == {"epochs", "early_stopping"}
    assert {k for k in long if long[k] != dropped.get(k)} == {"dropout"}
    improved = by_name["stage2-improved/13"].config.schedule
    assert (improved.threshold, improved.learning_rate) == (89.0, 0.0001)


def test_stage_three_follows_the_scales_image_size(study):
    full, lite = (expand(study, load_scale(s), "stage3")[0].config.resize for s in ("full", "lite"))
    assert (full.size, full.crop, full.method) == (256, 224, "bilinear")
    assert (lite.size, lite.crop) == (73, 64)


def test_early_stopping_shrinks_with_the_epochs(study):
    long = expand(study, load_scale("lite"), "stage1-long")[0].config
    assert (long.epochs, long.early_stopping) == (30, 8)


def test_the_full_scale_is_the_papers_budget(conditions):
    epochs = {(c.stage, c.config.epochs) for c in conditions}
    assert ("stage1-base", 30) in epochs
    assert ("stage1-long", 200) in epochs
    assert ("stage3", 40) in epochs
    data = conditions[0].config.data
    assert (data.train_size, data.validation_size, data.test_size) == (45_000, 5_000, 10_000)


def test_seeds_multiply_conditions(study):
    several = expand(study, load_scale("smoke", ["seeds=[1, 2, 3]"]), "stage1-long")
    assert [c.config.seed for c in several] == [1, 2, 3, 1, 2, 3]
    assert len({c.run_id for c in several}) == 6


# -- ids --------------------------------------------------------------------------------------


def test_an_id_survives_a_round_trip_and_changes_with_every_field(conditions):
    one = conditions[0].config
    again = type(one).model_validate_json(one.model_dump_json())
    assert run_id(again) == run_id(one)
    changes = {
        "learning_rate": 0.002,
        "weight_decay": 0.002,
        "batch_size": 33,
        "epochs": 31,
        "dropout": 0.1,
        "early_stopping": 3,
        "precision": "fp32",
        "seed": 43,
    }
    for field, value in changes.items():
        assert run_id(one.model_copy(update={field: value})) != run_id(one), field
    for field, switched in {
        "shuffle": False,
        "augmented_evaluation": True,
        "normalization": "published",
        "loss": "batch_means",
        "checkpoint": "last",
        "selection": "test",
    }.items():
        protocol = one.protocol.model_copy(update={field: switched})
        assert run_id(one.model_copy(update={"protocol": protocol})) != run_id(one), field


def test_an_id_depends_on_data_and_engine(conditions, study):
    stand_in = expand(
        study,
        load_scale(
            "full",
            ["data={name: synthetic, train_size: 9000, validation_size: 1000, test_size: 2000}"],
        ),
    )
    assert stand_in[0].run_id != conditions[0].run_id
    assert run_id(conditions[0].config, engine=ENGINE + 1) != conditions[0].run_id
    assert len(conditions[0].run_id) == 16


# -- overrides and mistakes -------------------------------------------------------------------


def test_overrides_reach_the_runs(study):
    changed = load_scale("smoke", ["data.train_size=2000", "epochs.30=7", "protocol.shuffle=false"])
    run = expand(study, changed)[0].config
    assert (run.data.train_size, run.epochs, run.protocol.shuffle) == (2000, 7, False)
    published = load_scale("smoke", ["protocol=published", "protocol.shuffle=true"]).protocol
    assert published.shuffle
    assert published.selection == "test"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.train_sizee=3", "did you mean 'train_size'?"),
        ("protocol.shufle=true", "did you mean 'shuffle'?"),
        ("protocol=publishd", "did you mean 'published'?"),
        ("data.train_size=1e3", "write 1000"),
        ("data.train_size=-5", "data.train_size = -5 is not valid"),
        ("data.train_size=99999", "at most 9000"),
        ("data.name=cifar11", "input should be 'cifar10' or 'synthetic'"),
        ("precision=fp16", "input should be 'fp32' or 'bf16'"),
        ("epochs.30=0", "epochs.30 = 0 is not valid"),
        ("seeds=[]", "seeds"),
        ("image_size=3.5", "image_size"),
        ("nonsense", "write key=value"),
        ("data.train_size.x=1", "no settings of its own"),
        ("data=[", "not a YAML value"),
    ],
)
def test_a_wrong_override_is_named_in_one_sentence(override, said):
    with pytest.raises(ConfigError) as caught:
        load_scale("smoke", [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_scale_is_named():
    with pytest.raises(ConfigError, match="did you mean 'smoke'"):
        load_scale("smok")


def write_study(tmp_path, old, new):
    text = config.paths.STUDY.read_text()
    assert old in text
    path = tmp_path / "study.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("learning_rate: 0.1", "learning_rate: 1e-3", "write 1.0e-3"),
        ("learning_rate: 0.1", "learning_rate: '0.1'", "write it without quotes"),
        ("learning_rate: 0.1", "learning_rat: 0.1", "did you mean 'learning_rate'?"),
        ("fixed: {epochs: 30}", "fixed: {epochs: 30, batch_size: 8}", "both fixed and varied"),
        ("optimizer: [sgd, adam, adamw]", "optimizer: [sgd, adm]", "did you mean 'adam'?"),
        ("runs: [9, 13]", "runs: [9, 33]", "no such run"),
        ("stage: stage1-daa1", "stage: stage1-daa3", "no other stage"),
        ("fixed: {epochs: 30}", "fixed: {epochs: 31}", "add 31 to its `epochs`"),
        ("fixed: {epochs: 30}", "fxed: {epochs: 30}", "did you mean 'fixed'?"),
        ("defaults:", "defaults: [", "line"),
        ("dropout: 0.0", "dropout: 1.0", "dropout = 1.0 is not valid"),
        ("dropout: 0.0\n", "dropout: 0.0\n  dropout: 0.1\n", "stands there twice"),
        ("{name: sgd, momentum: 0.9}", "{name: sgd, momentm: 0.9}", "did you mean 'momentum'?"),
    ],
)
def test_a_wrong_study_is_named_in_one_sentence(tmp_path, old, new, said):
    path = write_study(tmp_path, old, new)
    with pytest.raises(ConfigError) as caught:
        expand(load_study(path), load_scale("smoke"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_study_is_named(tmp_path):
    with pytest.raises(ConfigError, match="No such file"):
        load_study(tmp_path / "nothing.yaml")


def test_stages_that_are_taken_from_each_other_are_refused(tmp_path):
    path = write_study(
        tmp_path,
        "from: {stage: stage1-daa1, runs: [9, 13]}",
        "from: {stage: stage2-dropout, runs: [9]}",
    )
    with pytest.raises(ConfigError, match="no other stage"):
        expand(load_study(path), load_scale("smoke"))
