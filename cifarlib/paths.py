"""Where things stand in a checkout: constants, without side effects.

Of an installed package without its checkout, the working directory is taken for one.
"""

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent if (PACKAGE.parent / "params").is_dir() else Path.cwd()
PARAMS = ROOT / "params"
PUBLISHED = PARAMS / "published"
NOTEBOOKS = ROOT / "notebooks"
OWN = NOTEBOOKS / "09_own.ipynb"
"""The chapter of any study of one's own."""

BUILD = ROOT / "build"
BENCH = BUILD / "bench"
DATA = ROOT / "data"
TEMPLATES = PACKAGE / "templates"

STUDY = PARAMS / "study.yaml"
BEYOND = PARAMS / "beyond.yaml"
