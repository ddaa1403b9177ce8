"""Notebooks: their parameters, checked before a kernel starts; executed by papermill; joined."""

import contextlib
import importlib.util
import os
import re
import tempfile
import typing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any
from unittest import mock

import cifarlib
from cifarlib.checking import read_bytes, shown
from cifarlib.errors import ConfigError, ReportError
from cifarlib.report.kernels import serve_kernels
from cifarlib.runs.parameters import TRAINING, parse_parameters
from cifarlib.runs.progress import cores
from cifarlib.runs.store import remove_leftovers, write_atomically

if typing.TYPE_CHECKING:
    from nbformat import NotebookNode


def read_parameters(notebook: Path) -> dict[str, Any]:
    """Name → default value, from the cell tagged ``parameters``.

    Raises ``ConfigError`` for a file that is no notebook or has no such cell.
    """
    name = shown(notebook)
    for cell in read_notebook(notebook, ConfigError).cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            break
    else:
        raise ConfigError(f"{name} has no code cell tagged 'parameters'; add the tag to one")
    return parse_parameters(cell.source, name)


def read_notebook(path: Path, error_class: type[ConfigError] | type[ReportError]) -> "NotebookNode":
    """A notebook from its file; an error of the given class where it is none."""
    import nbformat.reader

    try:
        return nbformat.convert(nbformat.reader.reads(read_bytes(path).decode()), 4)
    except OSError as error:
        raise error_class(f"{shown(path)} cannot be read ({error.strerror})") from error
    except Exception as error:  # nbformat raises many kinds for what is not a notebook
        raise error_class(f"{shown(path)} is not a Jupyter notebook; restore it") from error


def execute_all(
    notebooks: Sequence[Path],
    folder: Path,
    parameters: Sequence[dict[str, Any]],
    tell: Callable[[str], None] = lambda text: None,
) -> list[Path]:
    """Execute notebooks side by side into a folder, each with its parameters.

    ``tell`` is called with a line about each that has been executed. All failures become one
    ``ReportError``.
    """
    outputs = [folder / notebook.name for notebook in notebooks]
    pool = ThreadPoolExecutor(max_workers=cores())
    with serve_kernels(_find_imports(notebooks)) as kernels:
        try:
            futures = [
                pool.submit(_execute, notebook, output, given, kernels)
                for notebook, output, given in zip(notebooks, outputs, parameters, strict=True)
            ]
            names = dict(zip(futures, notebooks, strict=True))
            for number, future in enumerate(as_completed(futures), start=1):
                outcome = "failed" if future.exception() else "executed"
                tell(f"[{number}/{len(futures)}] {names[future].name}: {outcome}")
            failures = [error for future in futures if (error := future.exception())]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    for failure in failures:
        if not isinstance(failure, ReportError):
            raise failure
    if failures:
        raise ReportError("; ".join(map(str, failures)))
    return outputs


def _find_imports(notebooks: Sequence[Path]) -> list[str]:
    """The modules that notebooks import, and those that ``cl``'s names come from."""
    cells = [cell for path in notebooks for cell in read_notebook(path, ReportError).cells]
    code = "\n".join(cell.source for cell in cells if cell.cell_type == "code")
    names = set(re.findall(r"^(?:import|from) ([\w.]+)", code, re.MULTILINE))
    public = set(re.findall(r"\bcl\.(\w+)", code)) | {"show"}
    public &= set(cifarlib._PUBLIC) if "cifarlib" in names else set()
    return sorted(names | {cifarlib._PUBLIC[name].partition(":")[0] for name in public})


def _execute(notebook: Path, output: Path, parameters: dict[str, Any], kernels: type) -> None:
    """Execute a notebook with papermill, in this environment's Python and the notebook's folder.

    The executed notebook appears whole at ``output``. Where a cell failed, it is kept there with
    its traceback and an anchor, and ``ReportError`` names the file, the cell and the error.
    """
    import logging

    import nbformat
    import papermill
    from papermill.engines import NBClientEngine, papermill_engines
    from papermill.exceptions import PapermillExecutionError
    from papermill.iorw import write_ipynb

    class Engine(NBClientEngine):
        """Papermill's engine, but the notebook is written once, not twice for every cell."""

        @classmethod
        def execute_notebook(
            cls, nb: Any, kernel_name: str, output_path: str | None = None, **settings: Any
        ) -> Any:
            try:
                return super().execute_notebook(nb, kernel_name, None, **settings)
            finally:
                write_ipynb(nb, output_path)

    papermill_engines.register("cifarlib", Engine)
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    output.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output)  # of a report that was killed
    with tempfile.TemporaryDirectory(prefix="cifarlib-") as home:
        temporary = Path(home) / notebook.name
        failure = None
        try:
            papermill.execute_notebook(
                # papermill takes braces in a path for placeholders
                str(notebook.absolute()).replace("{", "{{").replace("}", "}}"),
                str(temporary).replace("{", "{{").replace("}", "}}"),
                parameters,
                engine_name="cifarlib",
                kernel_name="python3",
                language="python",
                progress_bar=False,
                kernel_manager_class=kernels,
                resources={"metadata": {"path": str(notebook.parent.absolute())}},
                start_timeout=600,  # of a kernel, which waits for others where cores are few
                shutdown_kernel="immediate",
            )
        except PapermillExecutionError as error:
            last = str(error.evalue).strip().splitlines()[-1:]
            failure = (
                f"{shown(notebook)} failed in cell [{error.exec_count}] "
                f"({first_line(error.source)}): {': '.join([error.ename, *last])}"
            )
        except Exception as error:  # a kernel that died or never started, whatever its error
            reason = str(error).strip().splitlines()
            failure = f"{shown(notebook)} failed: {reason[-1] if reason else type(error).__name__}"
        if temporary.is_file():
            content = _tidy(read_notebook(temporary, ReportError))
            write_atomically(output, (nbformat.v4.writes(content) + "\n").encode())
    if failure:
        kept = f"; see {shown(output)}" if output.is_file() else ""
        raise ReportError(failure + kept)


def first_line(source: str) -> str:
    """What a cell is named by: its first line that is not blank."""
    return next(filter(None, map(str.strip, source.splitlines())), "an empty cell")


def _tidy(notebook: "NotebookNode") -> "NotebookNode":
    """An executed notebook without times, temporary paths and random ids."""
    notebook.metadata.pop("papermill", None)
    notebook.metadata.kernelspec = {
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
        "name": "python3",
    }
    for number, cell in enumerate(notebook.cells):
        cell.metadata.pop("papermill", None)
        cell.metadata.pop("execution", None)
        if "outputs" in cell:  # what is said of missing runs is for whoever works in a notebook
            cell.outputs = [o for o in cell.outputs if TRAINING not in o.get("metadata", {})]
        added = {"injected-parameters", "papermill-error-cell-tag"}
        if "id" in cell and added & set(cell.metadata.get("tags", [])):
            cell.id = f"added-{number}"
    return notebook


@contextlib.contextmanager
def plain_matplotlib() -> Iterator[None]:
    """Have this process and its kernels draw with matplotlib's own defaults, into files.

    The settings and the backend of whoever renders a report must not show in it. For before
    matplotlib is imported.
    """
    plain = {
        "MATPLOTLIBRC": str(find_matplotlib() / "matplotlibrc"),
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    with mock.patch.dict(os.environ, plain):
        yield


def find_matplotlib() -> Path:
    """Matplotlib's own settings and fonts; importing it would look for a home directory."""
    package = importlib.util.find_spec("matplotlib")
    if package is None or package.origin is None:
        raise ReportError("matplotlib is not installed; install cifarlib with its dependencies")
    return Path(package.origin).with_name("mpl-data")


# A link to another chapter, as JupyterLab follows it: the notebook's name, and an id in it.
CHAPTER_LINK = re.compile(r"\]\((\w+)\.ipynb(#[^)]*)?\)")


def join(notebooks: Sequence[tuple[str, "NotebookNode"]]) -> "NotebookNode":
    """One notebook of all cells of executed ones; the source of parameters goes to the next cell.

    Links to other chapters lead to their places on the one page. Each notebook comes with its path.
    A cell's metadata name its notebook and its ``number`` there. Raises ``ReportError`` for a
    failed cell.
    """
    from nbformat import NotebookNode

    cells: list[Any] = []
    for path, notebook in notebooks:
        name = Path(path).name
        parameters = ""
        own = [c for c in notebook.cells if "injected-parameters" not in c.metadata.get("tags", [])]
        for number, cell in enumerate(own, start=1):
            if "parameters" in cell.metadata.get("tags", []):
                parameters = cell.source
                continue
            if any(output.output_type == "error" for output in cell.get("outputs", [])):
                raise ReportError(
                    f"{path}: the cell {first_line(cell.source)!r} failed; correct it"
                )
            cell.metadata["source"] = cell.source  # as the notebook can be downloaded
            outputs = [output.get("data", {}) for output in cell.get("outputs", [])]
            texts = [(cell, "source")] if cell.cell_type == "markdown" else []
            for holder, key in [*texts, *((output, "text/markdown") for output in outputs)]:
                if key in holder:
                    holder[key] = CHAPTER_LINK.sub(_to_place, holder[key])
            cell.metadata["notebook"] = name
            cell.metadata["number"] = number
            cell.metadata["parameters"], parameters = parameters, ""
            cell.metadata["first"] = not cells or cells[-1].metadata["notebook"] != name
            cell["id"] = f"cell-{len(cells)}"
            cells.append(cell)
    return NotebookNode(nbformat=4, nbformat_minor=5, metadata=NotebookNode(), cells=cells)


def _to_place(link: re.Match[str]) -> str:
    return f"]({link[2] or f'#chapter-{link[1]}'})"
