"""Plain data against models: strict ones, files, YAML, and faults said in one sentence."""

import difflib
import errno
import io
import itertools
import json
import os
import re
import stat
import typing
from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict
from pydantic.fields import FieldInfo

from cifarlib import paths
from cifarlib.errors import ConfigError, UnreadableError

Found = typing.TypeVar("Found", bound=BaseModel)


class Strict(BaseModel):
    """A frozen model that refuses unknown keys and converts nothing."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    @pydantic.field_validator("*")
    @classmethod
    def _without_sign(cls, value: Any) -> Any:
        """Zero has none: -0.0 would be another text, and so another run."""
        return 0.0 if isinstance(value, float) and value == 0 else value


class Catalogue(Mapping[str, Found]):
    """Models by name, not to be changed, each shown as a line: its name, and its field ``told``."""

    def __init__(self, known: Mapping[str, Found], told: str):
        self._known, self._told = dict(known), told

    def __getitem__(self, name: str) -> Found:
        return self._known[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._known)

    def __len__(self) -> int:
        return len(self._known)

    def __repr__(self) -> str:
        return "\n".join(f"{name}: {getattr(one, self._told)}" for name, one in self.items())

    _ipython_key_completions_ = Mapping.keys


# ---------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------


def open_file(path: Path) -> io.BufferedReader:
    """A file to be read; ``OSError`` for a pipe or a device, whose reader might wait forever."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(handle, "rb")
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "a pipe or a device stands there, not a file", str(path))


def read_bytes(path: Path) -> bytes:
    """A file's content; errors of ``open_file``."""
    with open_file(path) as file:
        return file.read()


def named_folder(variable: str) -> Path | None:
    """The folder that an environment variable names, None where it is not set.

    Raises ``ConfigError`` for the home of a user that there is none of.
    """
    text = os.environ.get(variable)
    return expand_folder(text, f"{variable}=") if text else None


def expand_folder(text: str | Path, source: str) -> Path:
    """A folder that a text names, ``~`` expanded; errors of ``named_folder``."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{source}{cut(str(text))} names no folder: {error}") from error


def parse_json(raw: str | bytes) -> Any:
    """What JSON says; ``ValueError`` for what is none, or nested too deeply to be read."""
    try:
        return json.loads(raw)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def list_folder(folder: Path, ending: str) -> list[Path]:
    """A folder's files with an ending, sorted; none where there is no such folder.

    Hidden files are left out: macOS puts ``._name`` beside the files that it copies. Unlike
    ``glob``, raises ``UnreadableError`` where the folder cannot be read.
    """
    try:
        files = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise UnreadableError(
            f"{folder} cannot be read ({error.strerror}); give yourself permission to read it"
        ) from error
    return [f for f in files if f.name.endswith(ending) and not f.name.startswith(".")]


# ---------------------------------------------------------------------------------------------
# YAML
# ---------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """PyYAML with the numbers of YAML 1.2, and without a key twice, of which it keeps the last.

    By YAML 1.1 it reads 042 as 34, 1:30 as 90 and 1e-3 as a text.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012
        first: [(tag, form) for tag, form in resolvers if not tag.endswith((":int", ":float"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        known = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                raise _fault("the merge key << is not read here; write its keys out", key_node)
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable):  # any other is refused below
                if key in known:
                    raise _fault(f"the key {key!r} stands there twice", key_node)
                known.add(key)
        return super().construct_mapping(node, deep)


def _fault(text: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, text, node.start_mark)


_DIGITS = "-+.0123456789"
_FLOAT = r"[-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$|[-+]?\.inf$|\.nan$"
_Loader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile("[-+]?[0-9][0-9_]*$"), _DIGITS)
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(_FLOAT), _DIGITS)
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that is a mapping; ``ConfigError`` for any other, and for a key twice."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ConfigError(f"{shown(path)} is longer than {MOST_BYTES:,} bytes; write less")
        text = read_bytes(path).decode()
    except OSError as error:
        raise ConfigError(
            f"{shown(path)} cannot be read ({error.strerror}); restore it or name another"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{shown(path)} is not UTF-8 text") from error
    content = parse_yaml(text, shown(path))
    if not isinstance(content, dict):
        raise ConfigError(f"{shown(path)} must be a mapping of keys to values")
    return content


def parse_yaml(text: str, source: str) -> Any:
    """What YAML says; ``ConfigError``, which names the source, for what is none or a key twice."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark and "\n" in text else ""
        raise ConfigError(f"{source}{line}: {error.problem or 'not valid YAML'}") from error
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        reason = " ".join(str(error).split())  # PyYAML takes several lines
        raise ConfigError(f"{source} is not valid YAML: {reason}") from error
    except (LookupError, AttributeError, TypeError, ArithmeticError) as error:  # for !!bool x
        raise ConfigError(
            f"{source} is not valid YAML: a tag such as !!int does not fit its value"
        ) from error


def parse_value(text: str, source: str) -> Any:
    """A value of the command line, which is YAML; ``ConfigError``, which names the source."""
    try:
        return parse_yaml(text, "it")
    except ConfigError as error:
        raise ConfigError(f"{source}: {cut(text)!r} is not a YAML value: {error}") from error


def cut(text: str) -> str:
    """A text of the command line as a sentence may quote it."""
    return text if len(text) <= 80 else f"{text[:79]}…"


def shown(path: Path) -> str:
    """A path as a user wrote or knows it: relative to the checkout where it lies inside."""
    path = path.absolute()
    return str(path.relative_to(paths.ROOT)) if path.is_relative_to(paths.ROOT) else str(path)


# ---------------------------------------------------------------------------------------------
# Models
# ---------------------------------------------------------------------------------------------

Model = typing.TypeVar("Model", bound=Strict)

MOST = 300_000  # values and separators of a file, its aliases written out
MOST_NAMES = 30  # that an error lists
MOST_BYTES = 1_000_000  # of a YAML file, which PyYAML takes a second to read


def validate(model: type[Model], content: Any, source: str) -> Model:
    """Check plain data against a model; the first fault becomes a one-sentence ``ConfigError``."""
    try:
        # As JSON, because strict models take a list for a tuple only from there; piece by piece,
        # because a few lines of YAML aliases may stand for billions of values.
        pieces = list(itertools.islice(json.JSONEncoder(default=str).iterencode(content), MOST))
    except (TypeError, ValueError, RecursionError) as error:  # a date as a key, an endless list
        raise ConfigError(f"{source} holds what no setting can be: {error}; correct it") from error
    if len(pieces) == MOST:
        raise ConfigError(f"{source} holds more values than a study can have; write fewer")
    try:
        return model.model_validate_json("".join(pieces))
    except pydantic.ValidationError as error:
        # A mistyped key is also a missing one: the unknown name says more.
        faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
        raise ConfigError(_sentence(model, faults[0], source)) from error


def _sentence(model: type[Strict], fault: Mapping[str, Any], source: str) -> str:
    location = [str(part) for part in fault["loc"]]
    place = cut(".".join(location)) or "the whole"
    given = fault["input"]
    match fault["type"]:
        case "extra_forbidden":
            names = _field_names(model, location[:-1])
            return f"{source}: unknown key {place!r}; {suggest(location[-1], names)}"
        case "missing":
            return f"{source}: {place!r} is missing; add it"
        case "value_error":
            where = f" at {place}" if location else ""
            return f"{source}{where}: {fault['ctx']['error']}"
        case "float_type" | "int_type" if isinstance(given, str):
            return f"{source}: {place} must be a number, not the text {cut(given)!r}"
        case "list_type" | "tuple_type":
            return f"{source}: {place} = {cut(repr(given))} must be a list; write it in brackets"
        case "dict_type" | "model_type" | "model_attributes_type":
            return f"{source}: {place} = {cut(repr(given))} must be keys with values"
        case "too_short":
            return f"{source}: {place} = {cut(repr(given))} is empty; give a value"
        case _:
            message = fault["msg"][0].lower() + fault["msg"][1:]
            return f"{source}: {place} = {cut(repr(given))} is not valid: {message}"


def _field_names(model: type[BaseModel], location: list[str]) -> set[str]:
    """The keys that the models at a place know; of a union those of the one that its tag names."""
    models = {model}
    for part in location:
        inner = (fields[part].annotation for fields in map(_fields, models) if part in fields)
        tagged = {m for m in models if part in _tags(m)}
        models = set().union(*map(_models_in, inner)) or tagged or models
    return set().union(*map(_fields, models))


def _fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


def _tags(model: type[BaseModel]) -> tuple[Any, ...]:
    """The names by which a union knows a model."""
    field = model.model_fields.get("name")
    return typing.get_args(field.annotation) if field else ()


def _models_in(annotation: Any) -> set[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return set().union(*map(_models_in, typing.get_args(annotation)))


def suggest(name: str, known: typing.Iterable[str]) -> str:
    """“did you mean …?”, or what is known, of many the first, when nothing is near."""
    known = [str(k) for k in known]
    near = [one for one in known if len(str(name)) > 2 and one.startswith(str(name))]
    near = near or difflib.get_close_matches(str(name), known, n=1, cutoff=0.6)
    if near:
        return f"did you mean {near[0]!r}?"
    rest = f" and {len(known) - MOST_NAMES} more" if len(known) > MOST_NAMES else ""
    return f"known are {', '.join(sorted(known)[:MOST_NAMES])}{rest}"
