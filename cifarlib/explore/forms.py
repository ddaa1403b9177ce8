"""A form made from a configuration model: a field's type and bounds give its widget.

The form knows nothing of what the fields mean. A nested model becomes a group, an optional field
a check box beside its widget, a union of models a choice whose group follows it. Checking is the
model's own business: the form hands out plain data, valid or not.
"""

import types
import typing
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal

import annotated_types
import ipywidgets as widgets
from pydantic import BaseModel, create_model
from pydantic.fields import FieldInfo

WIDTH, WORDS = "264px", "152px"  # of a widget with its label, and of the label

Presets = Mapping[str, Mapping[str, Mapping[str, Any]]]


class Entry:
    """One field: its widget, and its value as plain data."""

    def __init__(self, widget: widgets.Widget, value_of: widgets.ValueWidget | None = None):
        self.widget = widget
        self.holder = value_of or widget

    def get(self) -> Any:
        """The value, as JSON has it."""
        return self.holder.value

    def set(self, value: Any) -> None:
        """Show a value."""
        self.holder.value = value

    def observe(self, call: Callable[[], None]) -> None:
        """Call after every change by the user."""
        self.holder.observe(lambda _: call(), names="value")

    def entries(self, place: str) -> dict[str, "Entry"]:
        """The fields below this one by dotted name, itself where there is none."""
        return {place: self}


class Numbers(Entry):
    """Several numbers with commas between them."""

    def get(self) -> Any:
        parts = [part.strip() for part in self.holder.value.split(",") if part.strip()]
        try:
            return [float(part) for part in parts]
        except ValueError:
            return parts  # for the model to refuse

    def set(self, value: Any) -> None:
        self.holder.value = ", ".join(f"{number:g}" for number in value)


class Group(Entry):
    """The fields of a model, one below the other."""

    def __init__(
        self, model: type[BaseModel], presets: Presets, units: Mapping[str, str], place: str = ""
    ):
        self.fields: dict[str, Entry] = {}
        for name, field in model.model_fields.items():
            below = f"{place}.{name}" if place else name
            self.fields[name] = build(name, field.annotation, field, presets, units, below)
        super().__init__(widgets.VBox([entry.widget for entry in self.fields.values()]))

    def get(self) -> Any:
        return {name: entry.get() for name, entry in self.fields.items()}

    def set(self, value: Mapping[str, Any]) -> None:
        for name, entry in self.fields.items():
            if name in value:
                entry.set(value[name])

    def observe(self, call: Callable[[], None]) -> None:
        for entry in self.fields.values():
            entry.observe(call)

    def entries(self, place: str = "") -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        for name, entry in self.fields.items():
            found |= entry.entries(f"{place}.{name}" if place else name)
        return found


class Optional(Entry):
    """A field that may be none: a check box, and the field where it is checked."""

    def __init__(self, inner: Entry, title: str):
        self.inner = inner
        self.check = widgets.Checkbox(description=title, indent=False)
        self.check.layout.width = WIDTH
        self.check.observe(lambda _: self._show(), names="value")
        super().__init__(widgets.VBox([self.check, inner.widget]), self.check)
        self._show()

    def _show(self) -> None:
        self.inner.widget.layout.display = "" if self.check.value else "none"

    def get(self) -> Any:
        return self.inner.get() if self.check.value else None

    def set(self, value: Any) -> None:
        self.check.value = value is not None
        if value is not None:
            self.inner.set(value)

    def observe(self, call: Callable[[], None]) -> None:
        super().observe(call)
        self.inner.observe(call)

    def entries(self, place: str) -> dict[str, Entry]:
        return self.inner.entries(place) | {place: self}


class Variant(Entry):
    """One of several models, told apart by a field with a fixed value."""

    def __init__(
        self,
        models: typing.Sequence[type[BaseModel]],
        tag: str,
        presets: Presets,
        units: Mapping[str, str],
        place: str,
        title: str,
    ):
        self.tag = tag
        self.groups: dict[str, Group] = {}
        for model in models:
            for name in typing.get_args(model.model_fields[tag].annotation):
                group = Group(_without(model, tag), presets, units, place)
                group.set(presets.get(place, {}).get(name, {}))
                self.groups[name] = group
        self.choice = widgets.Dropdown(options=list(self.groups), **_look(title))
        self.below = widgets.VBox()
        self.choice.observe(lambda _: self._show(), names="value")
        super().__init__(widgets.VBox([self.choice, self.below]), self.choice)
        self._show()

    def _show(self) -> None:
        self.below.children = [self.groups[self.choice.value].widget]

    def get(self) -> Any:
        return {self.tag: self.choice.value} | self.groups[self.choice.value].get()

    def set(self, value: Mapping[str, Any]) -> None:
        self.choice.value = value[self.tag]
        self.groups[self.choice.value].set(value)

    def observe(self, call: Callable[[], None]) -> None:
        super().observe(call)
        for group in self.groups.values():
            group.observe(call)

    def entries(self, place: str) -> dict[str, Entry]:
        found: dict[str, Entry] = {f"{place}.{self.tag}": self}
        for group in self.groups.values():
            found |= group.entries(place)
        return found


# ---------------------------------------------------------------------------------------------
# From a type to an entry
# ---------------------------------------------------------------------------------------------


def build(
    name: str,
    annotation: Any,
    field: FieldInfo,
    presets: Presets,
    units: Mapping[str, str],
    place: str,
) -> Entry:
    """The entry of a field; raises ``TypeError`` for a type that no form knows."""
    if typing.get_origin(annotation) is Annotated:
        annotation = typing.get_args(annotation)[0]
    title = name.replace("_", " ") + (f", {units[place]}" if place in units else "")
    parts = typing.get_args(annotation)
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):
        chosen = [part for part in parts if part is not type(None)]
        if len(chosen) < len(parts):
            (inner,) = chosen
            return Optional(build(name, inner, field, presets, units, place), title)
        if not isinstance(field.discriminator, str):
            raise TypeError(f"{place}: a union of models needs a discriminator")
        return Variant(chosen, field.discriminator, presets, units, place, title)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return Group(annotation, presets, units, place)
    look = _look(title, describe_bounds(field))
    if typing.get_origin(annotation) is Literal:
        entry = Entry(widgets.Dropdown(options=list(parts), **look))
    elif annotation is bool:
        entry = Entry(widgets.Checkbox(description=title, indent=False))
        entry.widget.layout.width = WIDTH
    elif annotation is int:
        entry = Entry(widgets.IntText(value=_start(field, 1), **look))
    elif annotation is float:
        entry = Entry(widgets.FloatText(value=_start(field, 0.5), **look))
    elif annotation == tuple[float, ...]:
        entry = Numbers(widgets.Text(value="0.5, 0.75", **look))
    else:
        raise TypeError(f"{place}: no widget for {annotation}")
    if not field.is_required():
        entry.set(field.default)
    return entry


def _look(title: str, bounds: str = "") -> dict[str, Any]:
    """A widget's label, the hint that its bounds are, and its width."""
    return {
        "description": title,
        "tooltip": f"{title}: {bounds}" if bounds else title,
        "style": {"description_width": WORDS},
        "layout": {"width": WIDTH},
    }


def _start(field: FieldInfo, otherwise: Any) -> Any:
    """The smallest value of a field, where its bounds say one."""
    lowest = [bound.ge for bound in field.metadata if isinstance(bound, annotated_types.Ge)]
    return lowest[0] if lowest else otherwise


def describe_bounds(field: FieldInfo) -> str:
    """What a field's bounds allow, such as “≥ 0, < 1”; empty where there are none."""
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    found = [
        f"{sign} {getattr(bound, key):,}"
        for bound in field.metadata
        for key, sign in signs.items()
        if hasattr(bound, key)
    ]
    return ", ".join(found)


def _without(model: type[BaseModel], tag: str) -> type[BaseModel]:
    """A model less the field that tells it apart; for its fields only, it checks nothing."""
    fields = {k: (f.annotation, f) for k, f in model.model_fields.items() if k != tag}
    return create_model(model.__name__, **fields)  # type: ignore[call-overload,no-any-return]
