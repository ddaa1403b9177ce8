"""Packages that only some commands need, and the sentence where one of them is not installed."""

import importlib.util

from cifarlib.errors import MissingPackageError

EXTRAS = {"torch": "train", "torchvision": "train", "ray": "ray"}
"""Package → the extra of pyproject.toml that installs it."""


def require(*packages: str) -> None:
    """Raise ``MissingPackageError`` for the first package that is not installed; imports none."""
    for package in packages:
        try:
            found = importlib.util.find_spec(package)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise missing(package)


def missing(package: str) -> MissingPackageError:
    """The error for a package that is not installed."""
    extra = EXTRAS[package]
    return MissingPackageError(
        f"this needs {package}, which is not installed: pip install 'cifarlib[{extra}]', or in a "
        "checkout `make .venv/.installed`"
    )


def explain(error: ModuleNotFoundError) -> MissingPackageError | None:
    """A failed import as an error that a user can act on; None if the package is in no extra."""
    package = (error.name or "").partition(".")[0]
    return missing(package) if package in EXTRAS else None
