"""The report: what notebooks show (``show``), and the page and the PDF assembled from them."""

import importlib
import typing

if typing.TYPE_CHECKING:
    from cifarlib.report.assembly import (
        assemble,
        choose_chapters,
        name_records,
        name_suffix,
        render,
    )

__all__ = ["assemble", "choose_chapters", "name_records", "name_suffix", "render"]


def __getattr__(name: str) -> typing.Any:
    """Functions of ``assembly``, imported on first use: a notebook only needs ``show``."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module("cifarlib.report.assembly"), name)
