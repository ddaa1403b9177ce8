"""The study as data: counts, order, ids, and what a user is told about a mistake."""

import json
import typing
from collections import Counter
from pathlib import Path

import pytest

from cifarlib import paths
from cifarlib.checking import parse_value, suggest, validate
from cifarlib.config import (
    ENGINE,
    NETWORKS,
    ModelConfig,
    RunConfig,
    canonical,
    flatten,
    images_in_epoch,
    run_id,
    steps_by_epoch,
)
from cifarlib.errors import ConfigError
from cifarlib.study import (
    STUDIES,
    expand,
    load_scale,
    load_study,
    scale_names,
    split_overrides,
)

KNOWN_IDS = Path(__file__).with_name("run_ids.json")


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
    short = flatten(by_name["stage1-daa1/13"].config.model_dump())
    long = flatten(by_name["stage1-long/13"].config.model_dump())
    dropped = flatten(by_name["stage2-dropout/13,dropout=0.5"].config.model_dump())
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


def test_the_patience_of_a_plateau_shrinks_with_the_epochs():
    """Or it would hardly ever take effect in fewer epochs."""
    beyond = load_study("params/beyond.yaml")
    for scale, patience in (("full", 3), ("lite", 1)):
        found = expand(beyond, load_scale(scale, [], beyond), "schedules")
        plateaus = [c.config.schedule for c in found if c.settings["schedule"] == "plateau"]
        assert {schedule.patience for schedule in plateaus} == {patience}


def test_no_epoch_leaves_a_batch_of_one_image(conditions):
    """Neither the first nor a later one, that progressive dropping makes shorter."""
    config = next(c.config for c in conditions if c.stage == "interpolation")
    small = config.resize.model_copy(update={"size": 36, "crop": 32})
    content = config.model_dump() | {"resize": small.model_dump(), "batch_size": 49, "epochs": 3}
    content["data"] = config.data.model_dump() | {"train_size": 100}
    RunConfig.model_validate(content)
    with pytest.raises(ValueError, match="50 training images in batches of 49"):
        RunConfig.model_validate(content | {"progressive_dropping": 0.5})
    assert steps_by_epoch(RunConfig.model_validate(content), 100) == [3, 3, 3]
    dropping = content | {"progressive_dropping": 0.5, "batch_size": 32}
    dropping = RunConfig.model_validate(dropping)
    assert [images_in_epoch(dropping, 100, epoch) for epoch in (1, 2, 3)] == [100, 75, 50]
    assert images_in_epoch(dropping.model_copy(update={"progressive_dropping": 0.99}), 10, 3) == 1


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


SHORT = {"name": "sgd", "momentum": 0.9}


def changed(run, **changes):
    content = run.model_dump(mode="json")
    for key, value in changes.items():
        merge = isinstance(value, dict) and key in ("augmentation", "model", "evaluation")
        content[key] = content[key] | value if merge else value
    return validate(type(run), content, "test")


def test_ids_stay_where_nothing_later_is_said():
    """Configurations as records of engine 2 hold them, from before there were later fields."""
    for name, content in json.loads(KNOWN_IDS.read_text()).items():
        run = validate(RunConfig, content, "a record")
        assert run_id(run, engine=2) == name


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"optimizer": {"name": "sgd", "momentum": 0.0, "nesterov": True}}, "needs a momentum"),
        ({"augmentation": {"alternating_flip": True}}, "needs a flip_probability"),
        ({"model": {"branch_scale": 0.0}}, "branch_scale = 0.0 is not valid"),
        ({"model": {"name": "resnet18", "last_layer_scale": 0.5}}, "for the residual network only"),
        ({"model": {"name": "resnet18", "whitening": {"frozen": True}}}, "residual network only"),
        ({"optimizer": {"name": "muon", "rest": {"name": "muon"}}}, "optimizer.muon.rest"),
        ({"optimizer": {"name": "muon", "rest": SHORT, "step": 3}}, "did you mean 'steps'"),
        ({"schedule": {"name": "triangular", "start": 0.0, "peak": 1.0, "final": 0.0}}, "peak"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(conditions, changes, said):
    with pytest.raises(ConfigError) as caught:
        changed(conditions[0].config, **changes)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_resized_images_are_not_reflected(conditions):
    stage3 = next(c.config for c in conditions if c.stage == "stage3")
    with pytest.raises(ConfigError, match="padded in black only"):
        changed(stage3, augmentation={"padding": 4, "padding_mode": "reflect"})


# -- past the paper ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def beyond():
    return load_study(STUDIES["beyond"])


@pytest.mark.parametrize("scale", ["smoke", "lite", "full"])
def test_the_study_past_the_paper_expands_at_every_scale(beyond, scale):
    conditions = expand(beyond, load_scale(scale, study=beyond))
    assert Counter(c.stage for c in conditions).keys() == beyond.stages.keys()
    for name, stage in beyond.stages.items():
        seeds = [c.config.seed for c in conditions if c.stage == name]
        assert set(seeds) == set(stage.seeds)


def test_runs_of_the_second_study_are_the_papers_where_they_are_the_same(beyond, conditions):
    known = {c.run_id: c.name for c in conditions}
    full = expand(beyond, load_scale("full", study=beyond))
    shared = {(c.stage, known[c.run_id]) for c in full if c.run_id in known}
    dropped = {f"stage2-dropout/13,dropout={p}" for p in (0.1, 0.2, 0.5, 0.7)}
    assert shared >= {
        ("noise-floor", "stage1-daa1/13"),
        ("noise-floor", "stage1-base/26"),
        ("schedules", "stage1-daa1/13"),
        *(("dropout-question", name) for name in dropped | {"stage1-long/13"}),
    }


def test_each_switch_that_changes_a_training_stands_alone(beyond):
    full = expand(beyond, load_scale("full", study=beyond))
    runs = [c for c in full if c.stage in ("protocol-ablation", "clean-evaluation")]
    first = {c.settings["label"]: c for c in runs if (c.run, c.config.seed) == (1, 42)}
    published = first["as published"].config.protocol.model_dump()
    corrected = first["corrected"].config.protocol.model_dump()
    switched = []
    for label, condition in first.items():
        protocol = condition.config.protocol.model_dump()
        differ = {key for key in protocol if protocol[key] != published[key]}
        assert all(protocol[key] == corrected[key] for key in differ)
        if label not in ("as published", "corrected"):
            (key,) = differ
            switched.append(key)
        assert condition.name.startswith(f"{condition.stage}/1")
    said_of_it = {"loss", "checkpoint", "selection"}  # read from a run's history
    assert sorted(switched) == sorted(published.keys() - said_of_it)
    assert published.keys() == {key for key in published if published[key] != corrected[key]}


def test_a_stage_may_say_what_a_scale_becomes_in_it(beyond):
    """Unless --set says how much is run, or it is a scale of one's own."""
    whole = expand(beyond, load_scale("lite", study=beyond), "recipe-whole")
    assert {c.config.data.train_size for c in whole} == {45_000}
    assert {c.config.evaluation.test_every for c in whole} == {1}
    smaller = expand(beyond, load_scale("lite", ["epochs.10=1"], study=beyond), "recipe-whole")
    assert {c.config.data.train_size for c in smaller} == {9_000}
    smoke = load_scale("smoke", study=beyond)
    for condition in expand(beyond, smoke, "recipe-whole"):
        assert condition.config.data == smoke.data


@pytest.mark.parametrize(
    ("name", "epochs", "images"), [("smoke", 4, 200), ("lite", 30, 45_000), ("full", 30, 45_000)]
)
def test_epochs_that_a_stage_gives_for_a_scale_are_not_reduced(beyond, name, epochs, images):
    config = expand(beyond, load_scale(name, study=beyond), "recipe-30")[0].config
    assert (config.epochs, config.data.train_size) == (epochs, images)


def test_a_protocol_of_a_stage_outlasts_the_scales(beyond):
    scale = load_scale("full", ["protocol=published"], study=beyond)
    runs = expand(beyond, scale, "noise-floor")
    assert {c.config.protocol.selection for c in runs} == {"validation"}


def test_a_dotted_key_that_is_wrong_is_named(tmp_path):
    text = STUDIES["beyond"].read_text()
    path = tmp_path / "beyond.yaml"
    path.write_text(text.replace("protocol.shuffle:", "protocol.shufle:", 1))
    study = load_study(path)
    with pytest.raises(ConfigError, match="did you mean 'shuffle'"):
        expand(study, load_scale("smoke", study=study))
    path.write_text(text.replace("protocol.shuffle:", "dropout.shuffle:", 1))
    study = load_study(path)
    with pytest.raises(ConfigError, match="dropout has no settings of its own"):
        expand(study, load_scale("smoke", study=study))


def test_steps_are_added_to_the_kept_ones_before_them_and_each_alone(beyond):
    scale = load_scale("full", study=beyond)
    steps = [c for c in expand(beyond, scale, "recipe") if c.config.seed == 42]
    alone = [c for c in expand(beyond, scale, "recipe-alone") if c.config.seed == 42]
    flat = [flatten(canonical(c.config)) for c in steps]
    assert steps[0].settings["label"] == "run 13"
    assert [c.settings["label"] for c in alone] == [c.settings["label"] for c in steps[1:]]
    assert len({c.run_id for c in [*steps, *alone]}) == 2 * len(steps) - 2  # the first is the same
    listed = beyond.stages["recipe"].list_
    before = flat[0]
    for after, single, item in zip(flat[1:], alone, listed[1:], strict=True):
        one = flatten(canonical(single.config))
        step = {key for key in before | after if before.get(key) != after.get(key)}
        assert step
        alone_changes = {key for key in one | flat[0] if one.get(key) != flat[0].get(key)}
        assert step <= alone_changes | {"average.decay", "average.lookahead"}  # of another average
        before = after if item.get("kept", True) else before
    assert all(c.config.epochs == 10 and c.config.evaluation.flip_averaged for c in steps)


def test_every_network_has_its_numbers():
    assert typing.get_args(ModelConfig.model_fields["name"].annotation) == tuple(NETWORKS)


def test_a_study_is_no_scale():
    assert not {"study", "beyond"} & set(scale_names())


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
        ("data.train_size=1e3", "input should be a valid integer"),
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
        ("epochs.³=1", "epochs.³"),
        ("data.①=1", "unknown key 'data.①'"),
        (f"epochs.{'9' * 5000}=1", "is the number of epochs of no run"),
        ("name=lite", "unknown key 'name'; a scale is named by its file"),
        ("seeds=[1:30]", "must be a number, not the text '1:30'"),
        ("data.split_seed=0x10", "must be a number, not the text '0x10'"),
        ("early_stopping=true", "unknown key 'early_stopping'"),
        ("epochs.20=2", "20 is the number of epochs of no run; known are 8, 10, 15, 30, 40, 200"),
        ("thresholds.88=70", "88 is the threshold of no run; known are 89"),
    ],
)
def test_a_wrong_override_is_named_in_one_sentence(override, said):
    with pytest.raises(ConfigError) as caught:
        load_scale("smoke", [override])
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("042", 42), ("+7", 7), ("1_000", 1000), ("1e-3", 0.001), ("2.5E+2", 250.0)),
        *((".5", 0.5), ("-1.", -1.0), ("1:30", "1:30"), ("0x10", "0x10"), (".", ".")),
    ],
)
def test_plain_numbers_are_read_as_they_stand(text, value):
    assert repr(parse_value(text, "a test")) == repr(value)


@pytest.mark.parametrize(
    ("given", "overrides"),
    [
        ([], ()),
        ("", ()),
        ("epochs.30=2", ("epochs.30=2",)),
        ('["epochs.30=2", "seeds=[1, 2]"]', ("epochs.30=2", "seeds=[1, 2]")),
    ],
)
def test_overrides_may_be_one_text_as_papermill_gives_them(given, overrides):
    assert split_overrides(given) == overrides


def test_overrides_that_are_no_texts_are_refused():
    with pytest.raises(ConfigError, match="write a list of texts"):
        split_overrides("[epochs.30, 2]")


def test_an_unknown_scale_is_named():
    with pytest.raises(ConfigError, match="did you mean 'smoke'"):
        load_scale("smok")


def write_study(tmp_path, old, new):
    text = paths.STUDY.read_text()
    assert old in text
    path = tmp_path / "study.yaml"
    path.write_text(text.replace(old, new, 1))
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("learning_rate: 0.1", "learning_rate: '0.1'", "a number, not the text '0.1'"),
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
        ("{name: sgd, momentum: 0.9}", "{name: sgd, beta1: 0.9}", "known are momentum, name, nest"),
        ("crop: 224, method: bilinear", "crop: 0, method: bilinear", "resize.crop = 0 is not"),
        ("size: 256, crop: 224", "size: big, crop: 224", "resize.size must be a number"),
        ("size: 256, crop: 224", "size: .inf, crop: 224", "resize.size"),
        ("early_stopping: null", "early_stopping: true", "early_stopping = True is not valid"),
        ("fixed: {epochs: 30}", "fixed: {epochs: true}", "epochs = True is not valid"),
        ("optimizer: [sgd, adam, adamw]", f"optimizer: {['sgd'] * 2000}", "24,000"),
    ],
)
def test_a_wrong_study_is_named_in_one_sentence(tmp_path, old, new, said):
    path = write_study(tmp_path, old, new)
    with pytest.raises(ConfigError) as caught:
        expand(load_study(path), load_scale("smoke"))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_endless_grid_is_refused_at_once(tmp_path, at_once):
    values = "[" + "0.1, " * 99 + "0.1]"
    keys = ("batch_size", "learning_rate", "weight_decay", "dropout", "early_stopping")
    grid = "    grid: {" + ", ".join(f"{key}: {values}" for key in keys) + "}"
    path = write_study(tmp_path, "defaults:", f"stages:\n  own:\n    title: own\n{grid}\nold:")
    text = path.read_text().partition("\nold:")[0] + "\ndefaults: {}\n"
    path.write_text(text)
    with pytest.raises(ConfigError, match="stage own: the study then has 10,000,000,000 cond"):
        expand(load_study(path), load_scale("smoke"))


def test_a_stage_of_an_endless_one_is_refused(tmp_path, at_once):
    path = write_study(tmp_path, "batch_size: [32, 64, 128, 256]", f"batch_size: {[32] * 9999}")
    with pytest.raises(ConfigError, match="stage stage1-daa1: the study then has 79,992"):
        expand(load_study(path), load_scale("smoke"), "stage1-long")


def test_seeds_count_among_a_studys_conditions(study):
    with pytest.raises(ConfigError, match="at most 10,000"):
        expand(study, load_scale("smoke", [f"seeds={list(range(1000))}"]))


@pytest.mark.parametrize(("stage", "run"), [("stage3", 1), ("interpolation", 1)])
def test_a_last_batch_of_one_image_is_refused_where_batch_norm_cannot_take_it(study, stage, run):
    scale = load_scale("smoke", ["data.train_size=129", "image_size=32"])
    with pytest.raises(ConfigError, match=f"{stage}/{run}: 129 training images in batches of"):
        expand(study, scale, stage)
    large_enough = load_scale("smoke", ["data.train_size=129", "image_size=61"])
    assert expand(study, large_enough, "stage3")
    assert expand(study, scale, "stage1-base")


def test_stages_that_are_taken_from_each_other_are_refused(tmp_path):
    path = write_study(
        tmp_path,
        "from: {stage: stage1-daa1, runs: [9, 13]}",
        "from: {stage: stage2-dropout, runs: [9]}",
    )
    with pytest.raises(ConfigError, match="no other stage"):
        expand(load_study(path), load_scale("smoke"))


def test_an_unknown_name_lists_no_more_names_than_can_be_read():
    names = [f"run-{n:03}" for n in range(400)]
    assert suggest("qqqq", names).endswith("run-029 and 370 more")
    assert suggest("run-399x", names) == "did you mean 'run-399'?"
    assert suggest("qqqq", ["b", "a"]) == "known are a, b"
