"""The 2023 study as data: printed tables and constants, listings, claims, and doubts about it."""

from typing import TYPE_CHECKING, Any

from cifarlib.paper.tables import read_normalization, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cifarlib.paper.facts import Fact
    from cifarlib.paper.statements import Statement

    claims: Mapping[str, Statement]
    doubts: Mapping[str, Statement]
    listings: Mapping[str, Fact]
    source: Mapping[str, Any]

__all__ = ["claims", "doubts", "listings", "read_normalization", "source", "table"]


def __getattr__(name: str) -> Any:
    """``claims``, ``doubts``, ``listings`` and ``source``, read on first use."""
    if name == "source":
        from cifarlib import paths
        from cifarlib.checking import read_yaml

        return read_yaml(paths.PUBLISHED / "source.yaml")
    if name == "listings":
        from cifarlib.paper.facts import read_listings

        return read_listings()
    if name not in ("claims", "doubts"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cifarlib.paper.statements import read_statements

    return read_statements(name)
