"""What was noticed about the paper, and what its listings do: read from ``params/published/``.

Both are said in our words. A lead's ``says`` and a fact's ``values`` are what the audit
calculates with: numbers of the paper's prose, settings of its code.
"""

from typing import Any

from pydantic import Field

from cifarlib import paths
from cifarlib.checking import Strict, read_yaml, validate
from cifarlib.errors import ConfigError


class Lead(Strict):
    """Something noticed about the paper that code can examine."""

    id: str
    text: str
    where: str  # sections, tables, figures and listings of the paper
    says: dict[str, Any] = Field(default_factory=dict)


class Fact(Strict):
    """What a place of a listing does."""

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


class _Leads(Strict):
    leads: list[Lead]


class _Facts(Strict):
    facts: dict[str, Fact]


def read_leads() -> list[Lead]:
    """The leads, in the order in which they are numbered from 1.

    Raises ``ConfigError`` for a missing or damaged file, and for an id that stands there twice.
    """
    path = paths.PUBLISHED / "leads.yaml"
    leads = validate(_Leads, read_yaml(path), path.name).leads
    names = [lead.id for lead in leads]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"{path.name} has the lead {name!r} twice; rename one")
    return leads


def find_lead(name: str) -> Lead:
    """The lead with an id; ``ConfigError`` where there is none."""
    for lead in read_leads():
        if lead.id == name:
            return lead
    raise ConfigError(f"leads.yaml has no lead {name!r}; restore it from the repository")


def read_facts() -> dict[str, Fact]:
    """What the listings do, by a short name; ``ConfigError`` for a missing or damaged file."""
    path = paths.PUBLISHED / "listings.yaml"
    return validate(_Facts, {"facts": read_yaml(path)}, path.name).facts
