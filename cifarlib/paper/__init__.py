"""The 2023 study as data: printed tables and constants, listings, claims, and doubts about it."""

from collections.abc import Mapping
from typing import Any

from cifarlib import paths
from cifarlib.checking import read_yaml
from cifarlib.paper.statements import Fact, Statement, read_listings, read_statements
from cifarlib.paper.tables import read_normalization, table

claims: Mapping[str, Statement]
doubts: Mapping[str, Statement]
listings: Mapping[str, Fact]
source: Mapping[str, Any]

__all__ = ["claims", "doubts", "listings", "read_normalization", "source", "table"]
__dir__ = __all__.copy  # what a notebook completes


def __getattr__(name: str) -> Any:
    """``claims``, ``doubts``, ``listings`` and ``source``, read on first use."""
    if name == "source":
        return read_yaml(paths.PUBLISHED / "source.yaml")
    if name == "listings":
        return read_listings()
    if name in ("claims", "doubts"):
        return read_statements(name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
