"""Forms made from models: every field has its widget, every value comes back."""

from typing import Literal

import ipywidgets as widgets
import pytest
from conftest import tiny_conditions
from pydantic import BaseModel, Field

from cifarlib.checking import validate
from cifarlib.config import RunConfig, flatten
from cifarlib.errors import ConfigError
from cifarlib.explore.forms import Group, describe_bounds
from cifarlib.study import load_study


@pytest.fixture
def form() -> Group:
    return Group(RunConfig, load_study().presets, {"batch_size": "images"})


def field_names(model: type[BaseModel]) -> set[str]:
    """Every dotted field name of a model, through unions and options, from its JSON schema."""
    schema = model.model_json_schema()

    def walk(node: dict, place: str) -> set[str]:
        if "$ref" in node:
            return walk(schema["$defs"][node["$ref"].rpartition("/")[2]], place)
        branches = [*node.get("anyOf", []), *node.get("oneOf", [])]
        inner = [b for b in branches if b.get("type") != "null"]
        if inner:
            found = set().union(*(walk(branch, place) for branch in inner))
            return found | {place} if len(inner) < len(branches) else found
        if "properties" not in node:
            return {place}
        return set().union(
            *(walk(n, f"{place}.{key}".lstrip(".")) for key, n in node["properties"].items())
        )

    return walk(schema, "")


def test_every_field_of_a_run_has_an_entry(form):
    assert set(form.entries()) == field_names(RunConfig)


def test_every_condition_of_the_study_comes_back_as_it_was_put_in(form):
    for condition in tiny_conditions():
        form.set(condition.config.model_dump(mode="json"))
        assert validate(RunConfig, form.get(), "the form") == condition.config


def test_types_give_widgets(form):
    entries = form.entries()
    assert isinstance(entries["learning_rate"].widget, widgets.FloatText)
    assert isinstance(entries["batch_size"].widget, widgets.IntText)
    assert isinstance(entries["protocol.shuffle"].widget, widgets.Checkbox)
    assert entries["resize.method"].widget.options[0] == "nearest"
    assert entries["optimizer.name"].choice.options == ("sgd", "adam", "adamw", "muon")
    assert entries["batch_size"].widget.description == "batch size, images"
    assert entries["learning_rate"].widget.tooltip == "learning rate: > 0, ≤ 100"


def test_a_variant_shows_its_own_fields_with_the_studys_values(form):
    form.entries()["optimizer.name"].choice.value = "sgd"
    assert form.get()["optimizer"] == {"name": "sgd", "momentum": 0.9, "nesterov": False}
    form.entries()["optimizer.name"].choice.value = "adamw"
    assert form.get()["optimizer"] == {
        "name": "adamw",
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
    }


@pytest.mark.parametrize("schedule", ["plateau", "multi_step", "cosine", "validation_step"])
def test_every_schedule_starts_valid(form, schedule):
    (condition,) = tiny_conditions("stage1-daa1/1")
    form.set(condition.config.model_dump(mode="json"))
    form.entries()["schedule.name"].choice.value = schedule
    assert validate(RunConfig, form.get(), "the form").schedule.name == schedule


def test_an_optimiser_within_an_optimiser_has_its_own_fields(form):
    (condition,) = tiny_conditions("stage1-daa1/1")
    form.set(condition.config.model_dump(mode="json"))
    form.entries()["optimizer.name"].choice.value = "muon"
    assert form.get()["optimizer"]["momentum"] == 0.95
    fields = form.entries()["optimizer.name"].groups["muon"].entries("optimizer")
    fields["optimizer.rest.name"].choice.value = "adamw"
    fields["optimizer.rest.epsilon"].set(1e-8)
    assert validate(RunConfig, form.get(), "the form").optimizer.rest.name == "adamw"


def test_an_option_is_none_until_it_is_checked(form):
    stopping = form.entries()["early_stopping"]
    assert form.get()["early_stopping"] is None
    assert stopping.inner.widget.layout.display == "none"
    stopping.check.value = True
    assert form.get()["early_stopping"] == 1
    assert stopping.inner.widget.layout.display != "none"
    form.set({"resize": {"size": 40, "crop": 36, "method": "box"}})
    assert form.get()["resize"] == {"size": 40, "crop": 36, "method": "box"}


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("learning_rate", 0.0, "learning_rate = 0.0 is not valid: input should be greater than 0"),
        ("dropout", 1.0, "dropout = 1.0 is not valid: input should be less than 1"),
        ("epochs", -1, "epochs = -1 is not valid"),
        ("model.initialization", "imagenet", "the residual network has no ImageNet weights"),
        ("data.train_size", 10**6, "train_size of synthetic is at most 9000"),
    ],
)
def test_what_the_model_refuses_is_said_in_its_own_words(form, place, value, said):
    (condition,) = tiny_conditions("stage1-daa1/1")
    form.set(condition.config.model_dump(mode="json"))
    form.entries()[place].set(value)
    with pytest.raises(ConfigError, match=f"the form.*{said}"):
        validate(RunConfig, form.get(), "the form")


def test_numbers_are_a_list_and_what_is_none_is_left_to_the_model(form):
    (condition,) = tiny_conditions("stage1-daa1/1")
    form.set(condition.config.model_dump(mode="json"))
    form.entries()["schedule.name"].choice.value = "multi_step"
    marks = form.entries()["schedule.milestones"]
    marks.set((0.25, 0.5))
    assert form.get()["schedule"]["milestones"] == [0.25, 0.5]
    marks.widget.value = "0.5, soon"
    with pytest.raises(ConfigError, match="must be a number"):
        validate(RunConfig, form.get(), "the form")


def test_changes_are_told_wherever_they_happen(form):
    told = []
    form.observe(lambda: told.append(form.get()))
    form.entries()["learning_rate"].set(0.25)
    form.entries()["schedule.name"].choice.value = "cosine"
    form.entries()["schedule.warmup"].set(0.25)
    assert [t["learning_rate"] for t in told] == [0.25, 0.25, 0.25]
    assert told[-1]["schedule"]["warmup"] == 0.25


def test_bounds_are_words():
    class Model(BaseModel):
        share: float = Field(ge=0, lt=1)
        count: int = Field(gt=0, le=50_000)
        name: Literal["a", "b"]

    said = [describe_bounds(field) for field in Model.model_fields.values()]
    assert said == ["≥ 0, < 1", "> 0, ≤ 50,000", ""]


def test_a_type_without_a_widget_is_a_fault_of_the_program():
    class Model(BaseModel):
        odd: dict[str, int]

    with pytest.raises(TypeError, match="odd: no widget"):
        Group(Model, {}, {})


def test_the_walk_sees_the_fields_of_one_condition():
    (condition,) = tiny_conditions("stage1-daa1/1")
    assert set(flatten(condition.config.model_dump(mode="json"))) <= field_names(RunConfig)
