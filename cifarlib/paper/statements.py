"""What the paper claims, and what was noticed about it: one list each, of the same form.

``params/published/claims.yaml`` and ``doubts.yaml`` say it in our words; whether it is so is
computed in the notebooks, which show it with ``show.claim`` and ``show.doubt``.
"""

from functools import cache
from typing import Any, Literal

from pydantic import Field

from cifarlib import paths
from cifarlib.checking import Catalogue, Strict, read_yaml, validate
from cifarlib.errors import ConfigError


class Statement(Strict):
    """A claim of the paper, or a doubt about it."""

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    where: str = Field(min_length=1)  # section, table, figure or listing of the paper
    text: str = Field(min_length=1)  # in our words, a sentence
    family: str = Field(min_length=1)  # what it is about; tests are corrected within a family
    says: dict[str, Any] = Field(default={})  # numbers that the paper's prose states
    budget: bool = False  # a number that only the paper's budget can reproduce


class _Statements(Strict):
    claims: list[Statement] = Field(default=[])
    doubts: list[Statement] = Field(default=[])


@cache
def read_statements(name: Literal["claims", "doubts"]) -> Catalogue[Statement]:
    """The statements of a file by id, in its order.

    Raises ``ConfigError`` for a missing or damaged file, and for an id that stands there twice.
    """
    path = paths.PUBLISHED / f"{name}.yaml"
    found = getattr(validate(_Statements, read_yaml(path), path.name), name)
    known = {statement.id: statement for statement in found}
    ids = [statement.id for statement in found]
    if double := next((i for i in ids if ids.count(i) > 1), None):
        raise ConfigError(f"{path.name} has the id {double!r} twice; rename one")
    return Catalogue(known, "text")
