"""What the paper claims, what was noticed about it, and what its code listings do, in our words.

``params/published/claims.yaml`` and ``doubts.yaml`` are lists of one form; whether it is so is
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
    ids = [statement.id for statement in found]
    if double := next((i for i in ids if ids.count(i) > 1), None):
        raise ConfigError(f"{path.name} has the id {double!r} twice; rename one")
    return Catalogue(dict(zip(ids, found, strict=True)), "text")


class Fact(Strict):
    """What a place of a listing does; ``values`` is what the notebooks calculate with."""

    listing: int
    place: str  # function or class
    lines: str  # as the listing counts them
    fact: str
    values: dict[str, Any]

    @property
    def source(self) -> str:
        """Where the fact can be read: “Listing 2, run_sims, lines 586–588”."""
        word = "line" if self.lines.isdecimal() else "lines"
        return f"Listing {self.listing}, {self.place}, {word} {self.lines}"


class _Facts(Strict):
    facts: dict[str, Fact]


@cache
def read_listings() -> Catalogue[Fact]:
    """Facts of ``listings.yaml`` by a short name; ``ConfigError`` for a missing or damaged file."""
    path = paths.PUBLISHED / "listings.yaml"
    return Catalogue(validate(_Facts, {"facts": read_yaml(path)}, path.name).facts, "fact")
