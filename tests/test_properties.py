"""What holds for every configuration, and for every file that somebody may hand in."""

import contextlib
import copy
import json
import os
import pickle
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from conftest import make_record, tiny_conditions
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from cifarlib import cli, data, paths
from cifarlib.checking import Strict, validate
from cifarlib.config import DATASETS, RunConfig, flatten, run_id
from cifarlib.errors import CifarlibError, ConfigError, DataError, RecordError
from cifarlib.runs.schema import RunRecord
from cifarlib.runs.store import _digest, decode, encode
from cifarlib.study import expand, load_scale, load_study

settings.register_profile(
    "steady",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("steady")

# ---------------------------------------------------------------------------------------------
# Every configuration
# ---------------------------------------------------------------------------------------------

SHARE = st.floats(0, 1)
BELOW_ONE = st.floats(0, 1, exclude_max=True)
WITHIN = st.floats(0, 1, exclude_min=True, exclude_max=True)
POSITIVE_SHARE = st.floats(0, 1, exclude_min=True)


def record(**fields: st.SearchStrategy) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(fields)


def make_data() -> st.SearchStrategy[dict[str, Any]]:
    def sizes(name: str) -> st.SearchStrategy[dict[str, Any]]:
        info = DATASETS[name]
        held_out = info.train_images // 10
        return record(
            name=st.just(name),
            train_size=st.integers(10, info.train_images - held_out),
            validation_size=st.integers(10, held_out),
            test_size=st.integers(10, info.test_images),
            split_seed=st.integers(0, 2**32 - 1),
        )

    return st.one_of(*map(sizes, DATASETS))


RESIZE = st.integers(32, 512).flatmap(
    lambda size: record(
        size=st.just(size),
        crop=st.integers(32, size),
        method=st.sampled_from(["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]),
    )
)
AUGMENTATION = record(
    rotation_degrees=st.floats(0, 180),
    rotation_probability=SHARE,
    padding=st.integers(0, 16),
    padding_mode=st.sampled_from(["black", "reflect"]),
    flip_probability=SHARE,
    alternating_flip=st.booleans(),
    cutout=st.integers(0, 32),
)
MODEL = record(
    name=st.sampled_from(["residual", "resnet18", "densenet121"]),
    initialization=st.sampled_from(["kaiming", "imagenet"]),
    last_layer_scale=POSITIVE_SHARE,
    branch_scale=POSITIVE_SHARE,
    whitening=st.none() | record(frozen=st.booleans()),
    batch_norm_momentum=POSITIVE_SHARE,
    partial_identity=st.booleans(),
)
BASE_OPTIMIZER = st.one_of(
    record(name=st.just("sgd"), momentum=BELOW_ONE, nesterov=st.booleans()),
    record(
        name=st.sampled_from(["adam", "adamw"]),
        beta1=BELOW_ONE,
        beta2=BELOW_ONE,
        epsilon=st.floats(0, 1, exclude_min=True),
    ),
)
OPTIMIZER = BASE_OPTIMIZER | record(
    name=st.just("muon"),
    momentum=BELOW_ONE,
    nesterov=st.booleans(),
    steps=st.integers(1, 20),
    normalized=st.booleans(),
    rest=BASE_OPTIMIZER,
    rest_factor=st.floats(0, 1000, exclude_min=True),
)
SCHEDULE = st.one_of(
    st.just({"name": "constant"}),
    record(
        name=st.just("validation_step"),
        threshold=st.floats(0, 100, exclude_min=True, exclude_max=True),
        learning_rate=st.floats(0, 10, exclude_min=True),
    ),
    record(
        name=st.just("plateau"),
        factor=WITHIN,
        patience=st.integers(0, 99),
        cooldown=st.integers(0, 99),
        threshold=BELOW_ONE,
    ),
    record(
        name=st.just("multi_step"),
        milestones=st.lists(WITHIN, max_size=4, unique=True).map(sorted),
        factor=WITHIN,
    ),
    record(name=st.just("cosine"), warmup=BELOW_ONE, final=SHARE),
    record(name=st.just("triangular"), start=SHARE, peak=WITHIN, final=SHARE),
)
PROTOCOL = record(
    shuffle=st.booleans(),
    augmented_evaluation=st.booleans(),
    normalization=st.sampled_from(["computed", "published"]),
    loss=st.sampled_from(["per_sample", "batch_means"]),
    checkpoint=st.sampled_from(["best", "last"]),
    selection=st.sampled_from(["validation", "test"]),
)


def make_consistent(content: dict[str, Any]) -> dict[str, Any]:
    """What two fields may not be together, made right."""
    content = copy.deepcopy(content)
    model, augmentation = content["model"], content["augmentation"]
    if model["name"] == "residual":
        model["initialization"] = "kaiming"
    else:
        content["dropout"] = 0.0
        model |= {"last_layer_scale": 1.0, "branch_scale": 1.0, "whitening": None}
        model |= {"partial_identity": False}
    images, batch = content["data"]["train_size"], content["batch_size"]
    if model["name"] != "residual" and (batch == 1 or images % batch == 1):
        content["batch_size"] = images
    if content["resize"]:
        augmentation["padding_mode"] = "black"
    if not augmentation["flip_probability"]:
        augmentation["alternating_flip"] = False
    for optimizer in (content["optimizer"], content["optimizer"].get("rest", {})):
        if optimizer.get("name") == "sgd" and not optimizer["momentum"]:
            optimizer["nesterov"] = False
    if content["protocol"]["selection"] == "test" and not content["evaluation"]["test_every"]:
        content["evaluation"]["test_every"] = 1
    return content


CONFIGS = record(
    data=make_data(),
    resize=st.none() | RESIZE,
    augmentation=AUGMENTATION,
    model=MODEL,
    dropout=BELOW_ONE,
    label_smoothing=BELOW_ONE,
    optimizer=OPTIMIZER,
    learning_rate=st.floats(0, 100, exclude_min=True),
    weight_decay=st.floats(0, 10),
    decayed=st.sampled_from(["all", "weights"]),
    schedule=SCHEDULE,
    batch_norm_bias_factor=st.sampled_from([1.0, 64.0]),
    average=st.none() | record(decay=BELOW_ONE, every=st.integers(1, 50), lookahead=st.booleans()),
    progressive_dropping=BELOW_ONE,
    batch_size=st.integers(1, 50_000),
    epochs=st.integers(1, 10_000),
    early_stopping=st.none() | st.integers(1, 500),
    protocol=PROTOCOL,
    evaluation=record(
        train_every=st.integers(0, 9),
        test_every=st.integers(0, 9),
        flip_averaged=st.booleans(),
        crop_averaged=st.booleans(),
    ),
    precision=st.sampled_from(["fp32", "bf16"]),
    seed=st.integers(0, 2**32 - 1),
).map(make_consistent)


def parts(config: Strict) -> Iterator[Strict]:
    """A model and all that it holds."""
    yield config
    for name in type(config).model_fields:
        if isinstance(value := getattr(config, name), Strict):
            yield from parts(value)


def models(annotation: Any) -> set[type[Strict]]:
    """All models that may stand in a field of this type, and in theirs."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        fields = annotation.model_fields.values()
        return {annotation}.union(*(models(field.annotation) for field in fields))
    return set().union(*map(models, get_args(annotation)))


def test_the_configurations_made_up_here_vary_every_field():
    """So that a field which comes later is held by the tests below, too."""
    seen = defaultdict(set)

    @given(CONFIGS)
    @settings(max_examples=600)  # what is made up depends on the modules loaded before
    def collect(content):
        for part in parts(validate(RunConfig, content, "a test")):
            for name in type(part).model_fields:
                seen[type(part), name].add(repr(getattr(part, name)))

    collect()
    constant = {(model, name) for (model, name), values in seen.items() if len(values) < 2}
    assert {name for _, name in constant} == {"name"}  # the one that a kind of schedule has
    assert seen.keys() == {(m, name) for m in models(RunConfig) for name in m.model_fields}


@given(CONFIGS)
@settings(max_examples=60)
def test_a_configuration_survives_json_and_keeps_its_id(content):
    config = validate(RunConfig, content, "a test")
    again = RunConfig.model_validate_json(config.model_dump_json())
    assert again == config
    assert run_id(again) == run_id(config)
    assert len(run_id(config)) == 16


@given(CONFIGS, CONFIGS, st.data())
@settings(max_examples=80)
def test_any_field_that_changes_changes_the_id(content, other, draw):
    """At the top, or inside a part that is of one kind in both."""
    changed = copy.deepcopy(content)
    target, source = changed, other
    while True:
        field = draw.draw(st.sampled_from(sorted(target)))
        ours, theirs = target[field], source[field]
        alike = isinstance(ours, dict) and isinstance(theirs, dict) and ours.keys() == theirs.keys()
        if not alike or ours.get("name") != theirs.get("name") or draw.draw(st.booleans()):
            break
        target, source = ours, theirs
    target[field] = theirs
    try:
        second = validate(RunConfig, make_consistent(changed), "a test")
    except ConfigError:  # more images than there are, a crop larger than its image
        reject()
    first = validate(RunConfig, content, "a test")
    same = flatten(first.model_dump(mode="json")) == flatten(second.model_dump(mode="json"))
    assert (run_id(first) == run_id(second)) == same


@given(CONFIGS)
@settings(max_examples=30)
def test_zero_has_no_sign(content):
    """-0.0 is 0.0 wherever it stands, and names the same run."""
    text = json.dumps(content | {"weight_decay": 0.0, "dropout": 0.0})
    signed = re.sub(r"(?<=[ \[])0\.0(?=[,}\]])", "-0.0", text)
    assert signed != text
    plain, other = (validate(RunConfig, json.loads(t), "a test") for t in (text, signed))
    assert run_id(plain) == run_id(other)
    assert other.model_dump_json() == plain.model_dump_json()


# ---------------------------------------------------------------------------------------------
# Scales that somebody wrote
# ---------------------------------------------------------------------------------------------

SMOKE = (paths.PARAMS / "smoke.yaml").read_bytes()
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.dates()
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(max_size=5) | st.integers() | st.dates(), inner, max_size=3)
    ),
    max_leaves=6,
)


def read_scale(path: Path, content: bytes) -> None:
    """Read a scale and expand the study at it; only errors of ours may come of it."""
    path.write_bytes(content)
    study = load_study()
    with contextlib.suppress(CifarlibError):
        expand(study, load_scale(str(path), study=study), "stage1-long")


@pytest.mark.parametrize(
    "text",
    [
        "2020-01-01: 1",
        "data: {2020-01-01: 1}",
        "data: &a [*a]",
        "seeds: &a {a: *a}",
        "? [1, 2]\n: 3",
        "seeds: !!python/object/apply:os.system [exit]",
        "seeds: !!python/name:os.system",
        "seeds: [" + "9" * 5000 + "]",
        "seeds: [0x" + "f" * 5000 + "]",
        "seeds: [.nan, .inf]",
        '"\\ud800": 1',
        "seeds: " + "[" * 3000,
        "<<: 1",
        "a: *nowhere",
        "epochs: {2020-13-45: 1}",
        "seeds: !!binary '?'",
        "%YAML 9.9\n--- a",
        "seeds: !!int ''",
        "seeds: !!float ''",
        "seeds: !!bool x",
        "seeds: !!timestamp x",
        "\0",
        "a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
        + "\n".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)),
    ],
)
def test_odd_yaml_is_refused_in_a_sentence(tmp_path, text):
    path = tmp_path / "odd.yaml"
    for content in (SMOKE + b"\n" + text.encode(), text.encode()):
        path.write_bytes(content)
        with pytest.raises(ConfigError) as caught:
            load_scale(str(path))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["!!bool x", "[" * 3000, "{a: 1, a: 2}", "\0"])
@pytest.mark.parametrize("option", ["--set", "--parameter"])
def test_odd_values_on_the_command_line_are_refused_in_a_sentence(tmp_path, capsys, option, value):
    command = ["report", option, f"seeds={value}", "--out", str(tmp_path)]
    assert cli.main(command) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert f"{option} seeds=" in said
    assert len(said) < 400


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: path.write_text(SMOKE.decode(), encoding="utf-16"), "is not UTF-8 text"),
        (lambda path: path.write_bytes(SMOKE + b"# \xe9"), "is not UTF-8 text"),
        (lambda path: path.touch(), "must be a mapping"),
        (lambda path: path.write_bytes(SMOKE + b"#" * 2_000_000), "is longer than"),
        (os.mkfifo, "there is no scale"),
        (Path.mkdir, "there is no scale"),
        (lambda path: path.symlink_to(path), "there is no scale"),
    ],
    ids=["UTF-16", "Latin-1", "empty", "long", "pipe", "folder", "circle"],
)
def test_what_is_no_scale_file_is_refused_in_a_sentence(tmp_path, make, reason):
    path = tmp_path / "odd.yaml"
    make(path)
    with pytest.raises(ConfigError, match=reason) as caught:
        load_scale(str(path))
    assert path.name in str(caught.value)


@given(st.lists(st.tuples(st.integers(0, len(SMOKE) - 1), st.binary(max_size=3)), max_size=4))
@settings(max_examples=120)
def test_mutated_scales_raise_nothing_but_our_errors(tmp_path, changes):
    content = SMOKE
    for place, piece in changes:
        content = content[:place] + piece + content[place + max(1, len(piece)) :]
    read_scale(tmp_path / "mutated.yaml", content)


@given(st.sampled_from(sorted(yaml.safe_load(SMOKE))), VALUES)
@settings(max_examples=120)
def test_other_values_raise_nothing_but_our_errors(tmp_path, key, value):
    content = yaml.safe_load(SMOKE) | {key: value}
    read_scale(tmp_path / "changed.yaml", yaml.safe_dump(content).encode())


# ---------------------------------------------------------------------------------------------
# Records that somebody changed
# ---------------------------------------------------------------------------------------------

RECORD = encode(make_record(tiny_conditions()[0]))


PLACES = sorted(flatten(json.loads(RECORD)))


@given(st.sampled_from(PLACES), VALUES)
@settings(max_examples=100)
def test_records_with_a_right_digest_must_still_be_valid(place, value):
    """An edit that mends the digest, too, meets the model."""
    content = copy.deepcopy(json.loads(RECORD))
    content.pop("digest")
    *parents, last = place.split(".")
    inner = content
    for key in parents:
        inner = inner[key]
    inner[last] = json.loads(json.dumps(value, default=str, skipkeys=True))
    content["digest"] = _digest(content)
    with contextlib.suppress(RecordError):
        decode(RunRecord, json.dumps(content).encode(), "a record")


# ---------------------------------------------------------------------------------------------
# Data files that somebody made
# ---------------------------------------------------------------------------------------------

PIXELS = np.arange(3 * 3072, dtype=np.uint8).reshape(3, 3072)
ODD = st.one_of(
    VALUES,
    st.sampled_from(
        [
            PIXELS,
            PIXELS[:1],
            PIXELS.astype(float),
            PIXELS[:, :-1],
            PIXELS.tobytes(),
            np.zeros(3, dtype=[("a", "u1")]),
            np.array(5, dtype=np.uint8),
            [0, 1, 9],
            [0, 1, 10],
            [-1, 0, 1],
            ["0", "1", "2"],
            [0.5, 1, 2],
            [[0], [1], [2]],
            [10**30] * 3,
            (),
        ]
    ),
)


@given(ODD, ODD, st.integers(0, pickle.HIGHEST_PROTOCOL))
@settings(max_examples=100)
def test_odd_batches_are_refused_or_are_images(tmp_path, pixels, labels, protocol):
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps({b"data": pixels, b"labels": labels}, protocol))
    read_batch(path)


@given(ODD, st.integers(0, pickle.HIGHEST_PROTOCOL))
@settings(max_examples=60)
def test_what_is_no_batch_is_refused(tmp_path, content, protocol):
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(DataError):
        data.read_batch(path)


def read_batch(path: Path) -> None:
    """Read a batch; only an error of ours may come of it, or images with their labels."""
    try:
        batch = data.read_batch(path)
    except DataError:
        return
    assert batch.images.dtype == np.uint8
    assert batch.images.shape == (len(batch.labels), 3, 32, 32)
    assert set(batch.labels.tolist()) <= set(range(10))


class Command:
    """What a file may not make happen."""

    def __init__(self, function: Any, *arguments: Any):
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


@given(
    st.sampled_from(
        [
            Command(Path.touch, Path("touched")),
            Command(eval, "open('touched', 'w')"),
            Command(open, "touched", "w"),
            Command(np.memmap, "touched", np.uint8, "w+", 0, (1,)),
            Command(np.save, "touched.npy", 1),
            Command(getattr, "text", "upper"),
        ]
    ),
    st.sampled_from(["data", "labels", "whole"]),
)
@settings(max_examples=18)
def test_no_code_comes_from_a_file(tmp_path, here, command, where):
    content = {b"data": PIXELS, b"labels": [0, 1, 2]}
    content = command if where == "whole" else content | {where.encode(): command}
    path = tmp_path / "data_batch_1"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="which is refused"):
        data.read_batch(path)
    assert list(here.iterdir()) == []


@pytest.fixture
def here(tmp_path_factory, monkeypatch):
    """An empty folder to be in, where whatever was made would be seen."""
    folder = tmp_path_factory.mktemp("here")
    monkeypatch.chdir(folder)
    return folder
