"""What holds for every configuration, and for every file that somebody may hand in."""

import contextlib
import copy
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
import yaml
from conftest import forge, make_record, tiny_conditions
from hypothesis import HealthCheck, given, reject, settings
from hypothesis import strategies as st

from cifarlib import cli, paths
from cifarlib.checking import Strict, validate
from cifarlib.config import DATASETS, RunConfig, flatten, run_id
from cifarlib.errors import CifarlibError, ConfigError, RecordError
from cifarlib.runs.schema import RunRecord
from cifarlib.runs.store import decode, encode
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


def made_of(annotation: Any, limits: Sequence[Any] = ()) -> st.SearchStrategy[Any]:
    """Plain data of which a model, or a field with its limits, can be made."""
    if isinstance(annotation, type) and issubclass(annotation, Strict):
        fields = annotation.model_fields.items()
        return st.fixed_dictionaries({n: made_of(f.annotation, f.metadata) for n, f in fields})
    parts = get_args(annotation)
    if get_origin(annotation) is Literal:
        return st.sampled_from(parts)
    if get_origin(annotation) is tuple:  # milestones
        return st.lists(st.floats(0.01, 0.99), max_size=4, unique=True).map(sorted)
    if parts:
        return st.one_of(*(made_of(part, limits) for part in parts))
    if annotation is bool or annotation is NoneType:
        return st.from_type(annotation)
    bound = {
        name: getattr(limit, name)
        for limit in limits
        for name in ("ge", "gt", "le", "lt")
        if hasattr(limit, name)
    }
    low, high = bound.get("ge", bound.get("gt")), bound.get("le", bound.get("lt"))
    if annotation is int:
        return st.integers(low, high - 1 if "lt" in bound else high)
    open_ends = {"exclude_min": "gt" in bound, "exclude_max": "lt" in bound}
    return st.floats(low, high, **open_ends, allow_nan=False, allow_infinity=False)


def make_consistent(content: dict[str, Any]) -> dict[str, Any]:
    """What two fields may not be together, made right."""
    content = copy.deepcopy(content)
    model, augmentation, chosen = content["model"], content["augmentation"], content["data"]
    info = DATASETS[chosen["name"]]
    held_out = info.train_images // 10
    sizes = (info.train_images - held_out, held_out, info.test_images)
    for name, most in zip(("train_size", "validation_size", "test_size"), sizes, strict=True):
        if chosen[name] > most:
            chosen[name] = 10 + chosen[name] % (most - 9)
    if model["name"] == "residual":
        model["initialization"] = "kaiming"
    else:
        content |= {"dropout": 0.0, "progressive_dropping": 0.0}
        model |= {"last_layer_scale": 1.0, "branch_scale": 1.0, "whitening": None}
        model |= {"partial_identity": False}
    images, batch = chosen["train_size"], content["batch_size"]
    if model["name"] != "residual" and (batch == 1 or images % batch == 1):
        content["batch_size"] = images
    if resize := content["resize"]:
        augmentation["padding_mode"] = "black"
        resize["crop"] = min(resize["crop"], resize["size"])
    if not augmentation["flip_probability"]:
        augmentation["alternating_flip"] = False
    for optimizer in (content["optimizer"], content["optimizer"].get("rest", {})):
        if optimizer.get("name") == "sgd" and not optimizer["momentum"]:
            optimizer["nesterov"] = False
    if content["protocol"]["selection"] == "test" and not content["evaluation"]["test_every"]:
        content["evaluation"]["test_every"] = 1
    return content


CONFIGS = made_of(RunConfig).map(make_consistent)


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

RECORD = make_record(tiny_conditions()[0])
PLACES = sorted(flatten(json.loads(encode(RECORD))).keys() - {"digest"})


@given(st.sampled_from(PLACES), VALUES)
@settings(max_examples=100)
def test_changed_records_with_a_right_digest_raise_nothing_but_our_error(place, value):
    """An edit that mends the digest, too, meets the model."""

    def change(content):
        *parents, last = place.split(".")
        for key in parents:
            content = content[key]
        content[last] = json.loads(json.dumps(value, default=str, skipkeys=True))

    with contextlib.suppress(RecordError):
        decode(RunRecord, forge(RECORD, change), "a record")
