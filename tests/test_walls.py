"""Quiet imports, and cells that fit on a screen. Import rules are in pyproject.toml."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cifarlib import paths

PACKAGE = paths.ROOT / "cifarlib"
MODULES = {  # by what stands behind "cifarlib."; a folder by its own name
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))


# ---------------------------------------------------------------------------------------------
# Imports, as they happen
# ---------------------------------------------------------------------------------------------


def run_python(program: str, *arguments: str) -> str:
    """A program's standard output; it must succeed and say nothing on standard error."""
    command = [sys.executable, "-B", "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    said = [line for line in done.stderr.splitlines() if "Matplotlib is building" not in line]
    assert (done.returncode, said) == (0, [])
    return done.stdout


LOADED = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*{name.partition(".")[0] for name in sys.modules})
"""


@pytest.mark.integration
def test_the_command_line_starts_without_heavy_packages():
    loaded = run_python(LOADED, "cifarlib.cli", "cifarlib.report").split()
    assert "cifarlib" in loaded
    assert not {"torch", "pandas", "sklearn", "matplotlib", "nbconvert", "papermill"} & set(loaded)


@pytest.mark.integration
def test_cifarlib_itself_loads_nothing():
    program = (
        "import sys; before = set(sys.modules); import cifarlib; print(*set(sys.modules) - before)"
    )
    assert set(run_python(program).split()) <= {"cifarlib", "time"}


WRITTEN = """
import importlib, os, pathlib, sys
root, *names = sys.argv[1:]
changes = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate"}
def notice(event, arguments):
    opened = event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    if opened or event in changes:
        place = arguments[0]
        if isinstance(place, (str, bytes, os.PathLike)):
            path = pathlib.Path(os.fsdecode(place)).absolute()
            if path.is_relative_to(root):
                print(event, path)
sys.addaudithook(notice)
for name in names:
    importlib.import_module(name)
"""


@pytest.mark.integration
def test_importing_writes_nothing_and_says_nothing():
    names = [f"cifarlib.{name}" for name in MODULES]
    assert run_python(WRITTEN, str(paths.ROOT), *names) == ""


@pytest.mark.integration
def test_a_write_would_have_been_noticed(tmp_path):
    assert "open" in run_python(WRITTEN + "open(root + '/file', 'w')", str(tmp_path))


# ---------------------------------------------------------------------------------------------
# Notebooks
# ---------------------------------------------------------------------------------------------


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def cells(request) -> list[dict]:
    """The code cells of a notebook."""
    notebook = json.loads(request.param.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_notebooks_are_committed_without_outputs(cells):
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)


def test_notebooks_have_one_cell_of_parameters(cells):
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    assert len(tagged) == 1


def test_notebooks_define_no_class(cells):
    for cell in cells:
        tree = ast.parse("".join(cell["source"]))
        assert not [node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def test_cells_of_notebooks_fit_on_a_screen(cells):
    for cell in cells:
        assert len("".join(cell["source"]).splitlines()) <= SCREEN, cell["source"][0]


SCREEN = 35  # lines


# ---------------------------------------------------------------------------------------------
# Nothing of this machine
# ---------------------------------------------------------------------------------------------


def test_no_file_names_a_place_on_this_machine():
    if not shutil.which("git") or not (paths.ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "-C", str(paths.ROOT), "ls-files", "-z", "-co", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, check=True).stdout.split(b"\0")
    places = {str(paths.ROOT), str(Path.home())}
    pattern = "|".join(rf"(?<![\w./-]){re.escape(place)}(?=/|\s|$)" for place in places)
    pattern = re.compile(f"{pattern}|/(?:home|Users)/[a-z]+/", re.MULTILINE)
    for name in filter(None, names):
        path = paths.ROOT / name.decode()
        if path.is_file():
            found = pattern.search(path.read_bytes().decode("utf-8", errors="replace"))
            assert not found, f"{path.relative_to(paths.ROOT)}: {found.group()}"
