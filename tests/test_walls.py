"""Who may know whom: the walls between modules, quiet imports, and cells that fit on a screen."""

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

# Every module on the way from records to the page; some may not be there.
WITHOUT_TORCH = [
    name
    for name in (
        *("config", "checking", "study", "paths", "errors", "provenance", "records"),
        *("progress", "card_share", "published"),
        *("statistics", "contrasts", "effects", "claims", "ledger"),
        *(f"ledger.{name}" for name in ("accuracy", "behaviour", "settings")),
        *("tables", "figures", "curves", "diagram", "display", "costs"),
        *("formatting", "runs", "runs.captions", "runs.frames", "runs.views"),
        *(
            "analysis",
            "analysis.calibration",
            "analysis.compare",
            "analysis.judges",
            "analysis.statistics",
        ),
        *("paper", "paper.facts", "paper.statements", "paper.tables"),
        *(
            f"report.{name}"
            for name in ("assembly", "plots", "show", "style", "tables", "verdicts")
        ),
        *("mixture", "further", "difference", "archive", "energy", "shift", "report"),
        *(f"beyond.{name}" for name in ("dropout", "noise", "protocol", "recipe", "schedules")),
        *(f"beyond.{name}" for name in ("calibration", "generalisation", "replay", "search")),
        *(f"explore.{name}" for name in ("collection", "forms", "panels", "sketches")),
        *(f"pages.{name}" for name in ("exporters", "front", "page", "paper")),
        *("pages.run_folds", "pages.seal", "pages.typesetting"),
    )
    if name in MODULES
]


# ---------------------------------------------------------------------------------------------
# Imports, as they are written
# ---------------------------------------------------------------------------------------------


def written_imports(path: Path) -> set[str]:
    """What a file imports when it is run: ``cifarlib.<module>``, and other packages' names.

    Imports inside functions count, those for type checkers do not.
    """
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner.removeprefix("cifarlib.") in MODULES else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text(encoding="utf-8")))
    return {n if n.startswith("cifarlib.") else n.partition(".")[0] for n in found} - {"cifarlib"}


def reach(start: str) -> set[str]:
    """Everything that a module of ours imports, directly or through our other modules."""
    seen: set[str] = set()
    waiting = [f"cifarlib.{start}"]
    while waiting:
        name = waiting.pop()
        if name.startswith("cifarlib."):
            module = name.removeprefix("cifarlib.")
            new = written_imports(MODULES[module]) - seen
            seen |= new
            waiting += new
    return seen


def test_the_walker_sees_what_is_there():
    assert {"cifarlib.data", "cifarlib.config", "torch", "numpy"} <= reach("training")
    assert "torch" in reach("sweep")


@pytest.mark.parametrize(("one", "other"), [("data", "models"), ("models", "data")])
def test_data_and_models_do_not_know_each_other(one, other):
    assert f"cifarlib.{other}" not in reach(one)


@pytest.mark.parametrize("module", WITHOUT_TORCH)
def test_what_shows_records_never_imports_torch(module):
    assert not reach(module) & {"torch", "torchvision"}


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_itself_in_a_circle(module):
    assert f"cifarlib.{module}" not in reach(module)


# ---------------------------------------------------------------------------------------------
# Imports, as they happen
# ---------------------------------------------------------------------------------------------


def run_python(program: str, *arguments: str) -> str:
    """A program's standard output; it must succeed and say nothing on standard error."""
    done = subprocess.run(
        [sys.executable, "-B", "-c", program, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = [line for line in done.stderr.splitlines() if "Matplotlib is building" not in line]
    assert (done.returncode, said) == (0, [])
    return done.stdout


LOADED = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
print(*{name.partition(".")[0] for name in sys.modules})
"""


def test_torch_stays_out_when_the_report_is_made():
    loaded = run_python(LOADED, *(f"cifarlib.{name}" for name in WITHOUT_TORCH)).split()
    assert "cifarlib" in loaded
    assert not {"torch", "torchvision"} & set(loaded)


def test_the_command_line_starts_without_heavy_packages():
    loaded = run_python(LOADED, "cifarlib", "cifarlib.cli").split()
    assert "cifarlib" in loaded
    assert not {"torch", "pandas", "sklearn", "matplotlib", "nbconvert"} & set(loaded)


def test_cifarlib_itself_loads_nothing():
    program = (
        "import sys; before = set(sys.modules); import cifarlib; print(*set(sys.modules) - before)"
    )
    assert set(run_python(program).split()) <= {"cifarlib", "time"}


def test_python_m_cifarlib_is_the_command():
    done = subprocess.run(
        [sys.executable, "-m", "cifarlib", "--help"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0
    assert "cifarlib sweep" in done.stdout


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


def test_importing_writes_nothing_and_says_nothing():
    names = [f"cifarlib.{name}" for name in MODULES]
    assert run_python(WRITTEN, str(paths.ROOT), *names) == ""


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
