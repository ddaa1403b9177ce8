"""The 2023 study as data: its printed tables and constants, its claims, and doubts about it."""

from typing import TYPE_CHECKING, Any

from cifarlib.paper.tables import read_normalization, table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cifarlib.paper.statements import Statement

    claims: Mapping[str, Statement]
    doubts: Mapping[str, Statement]

__all__ = ["claims", "doubts", "read_normalization", "table"]


def __getattr__(name: str) -> Any:
    """``claims`` and ``doubts`` by id, read on first use."""
    if name not in ("claims", "doubts"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from cifarlib.paper.statements import read_statements

    return read_statements(name)
