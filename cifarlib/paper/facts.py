"""What the paper's code listings do, in our words: ``params/published/listings.yaml``."""

from functools import cache
from typing import Any

from cifarlib import paths
from cifarlib.checking import Catalogue, Strict, read_yaml, validate


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
    """Facts by a short name; ``ConfigError`` for a missing or damaged file."""
    path = paths.PUBLISHED / "listings.yaml"
    return Catalogue(validate(_Facts, {"facts": read_yaml(path)}, path.name).facts, "fact")
