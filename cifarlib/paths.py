"""Where things stand in a checkout: constants, without side effects."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARAMS = ROOT / "params"
PUBLISHED = PARAMS / "published"
NOTEBOOKS = ROOT / "notebooks"
BUILD = ROOT / "build"
BENCH = BUILD / "bench"
DATA = ROOT / "data"
TEMPLATES = ROOT / "cifarlib" / "templates"

STUDY = PARAMS / "study.yaml"
BEYOND = PARAMS / "beyond.yaml"
