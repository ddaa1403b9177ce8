"""The report: notebooks checked, executed and assembled into one HTML file and a PDF.

Everything that they say comes from the records of one build folder; the same records give
the same bytes. No network, no data set and no kernel installed by hand is needed.
"""

import ast
import contextlib
import hashlib
import math
import re
import shlex
import time
import typing
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cifarlib
from cifarlib import paths
from cifarlib.checking import shown, suggest
from cifarlib.errors import ConfigError, ReportError
from cifarlib.formatting import say_count
from cifarlib.report import difference, since
from cifarlib.report.front import describe, describe_paper
from cifarlib.report.notebooks import (
    execute_all,
    join,
    plain_matplotlib,
    read_notebook,
    read_parameters,
)
from cifarlib.report.page import TITLE, make_exporter, make_page
from cifarlib.report.typesetting import typeset
from cifarlib.report.verdicts import read_verdicts
from cifarlib.runs import grids, mixed_provenance, other_studies, provenance
from cifarlib.runs.locks import lock
from cifarlib.runs.parameters import check_values
from cifarlib.runs.progress import parse_budget
from cifarlib.runs.results import Results, open_results
from cifarlib.runs.store import remove_leftovers, write_atomically

if typing.TYPE_CHECKING:
    from nbformat import NotebookNode


def render(
    scale: str,
    overrides: Sequence[str] = (),
    build: str | Path = "",
    parameters: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    tell: Callable[[str], None] = lambda text: None,
    *,
    train: bool = False,
    budget: str = "",
    study: str = "",
    appendix: str = "",
) -> Path:
    """Execute the notebooks over a build folder's records; write ``report.html`` and ``.pdf``.

    Chapters get those of the ``parameters`` that they have. ``only``, parts of notebooks' names,
    makes a page of those chapters alone, ``report-stage1.html``; a ``study`` of one's own has a
    page, too, and ``appendix`` ends the report with one. Changed by ``overrides``, the page is
    named for them. With ``train``, missing runs are trained first, for no longer than ``budget``.
    ``tell`` is called with a line about each step. Raises ``ConfigError`` before anything is
    executed, ``ReportError`` for mixed records that the scale does not declare (see
    ``mixed_provenance``), a failed notebook and a broken page; an older report then stays as it is.
    """
    if study and (only or appendix):
        raise ConfigError("--study renders one study alone; leave out --only and --appendix")
    results = open_results(scale, overrides, build, study or None)
    results = results.alone() if study else results
    own = grids.keep(study or appendix, results) if study or appendix else ""
    others = {}
    if not study:
        others = other_studies.open_others(scale, overrides, build, [own] if own else [])
    mixed_provenance.refuse_undeclared(other_studies.join(results, others))
    notebooks = sorted(set(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb")) - {paths.OWN})
    if not notebooks:
        raise ReportError(
            f"{shown(paths.NOTEBOOKS)} has no notebook such as 01_data.ipynb; restore it"
        )
    shared = {
        "scale": str(Path(scale).absolute()) if scale.endswith((".yaml", ".yml")) else scale,
        "overrides": list(overrides),
        "build": str(Path(build).absolute()) if str(build) else "",
    }
    chosen = [] if study else choose_chapters(notebooks, only)
    parts = [own] if study else [_chapter(notebook) for notebook in chosen] if only else []
    chosen += [paths.OWN] if own else []
    folder = results.store.folder
    changed = [f"{name}={value}" for name, value in (parameters or {}).items()]
    suffix = name_suffix(results, parts, changed)
    alone = all(_is_last(read_parameters(notebook)) for notebook in chosen)  # reads older chapters
    others_at = "" if alone else str((folder / f"notebooks{suffix}").absolute())
    given = _share_out(parameters or {}, shared, chosen, {"executed": others_at, "study": own})
    if train:
        deadline = parse_budget(budget, "--budget") + time.monotonic() if budget else None
        train_chapters(chosen, given, deadline, tell)
        results = results.reread()
        others = {name: other.reread() for name, other in others.items()}
        mixed_provenance.refuse_undeclared(other_studies.join(results, others))
    options = results.options + (f" --study {own}" if study else "")
    given_too = shlex.join(word for text in changed for word in ("--parameter", text))
    stages = [*results.study.stages]  # of a grid: where it starts, and the grid
    title = (own if len(stages) > 2 else results.title(stages[-1])) if study else TITLE
    page = folder / f"report{suffix}.html"
    make_exporter()  # says what is missing before anything is executed
    if not (train or folder.is_dir()):
        raise ConfigError(f"there is no build folder {shown(folder)}; records are made by a sweep")
    unlike = only or name_suffix(results, [], changed)  # a page that replaces none of the scale's
    if not (unlike or train or other_studies.join(results, others).every_record):
        _refuse_other_scale(results)
    with _alone(results.store.state / "report.lock", tell), plain_matplotlib():
        for path in (page, page.with_suffix(".pdf")):
            remove_leftovers(path)
        tell(
            f"executing {say_count(len(chosen), 'notebook')} over "
            f"{say_count(len(results.records), 'recorded run')}"
        )
        executed = _execute(chosen, folder / f"notebooks{suffix}", given, tell)
        tell("setting the page and the PDF")
        others = other_studies.narrow(others, results, find_shown_runs(executed))
        front = describe(results, options, read_verdicts(executed), parts, others)
        front["command"] += f" --appendix {own}" if appendix else ""
        front["command"] += f" {given_too}" if given_too else ""
        front |= {"lead": LEAD} if study else {}
        paper = describe_paper(other_studies.join(results, others), front, title)
        merged = merge(executed)
        names = {run["run_id"]: run["title"] for run in front["runs"]}
        records = other_studies.join(results, others).every_record.values()
        shown_now = difference.take(merged, names, records)
        command = zlib.crc32(front["command"].encode())  # another shows other things
        kept = results.store.state / f"rendered{suffix}-{command:08x}.json"
        changes = since.find_changes(kept, shown_now)
        for line in changes.get(difference.FRONT, ()):
            tell(f"since the last render: {line}")
        if not provenance.is_tracked(page):  # what is published comes of its records alone
            merged = since.insert(merged, changes)
        html = make_page(merged, front, title=title, partial=bool(parts))
        html = difference.embed(html, shown_now)
        pdf = typeset(merged, paper | {"partial": bool(parts)})
        write_atomically(page.with_suffix(".pdf"), pdf)
        write_atomically(page, html)
        since.keep(kept, shown_now)
    return page


LEAD = "Conditions of one's own, trained and measured like those of the study of the 2023 paper."
"""The first sentence on the page of a study of one's own."""


def train_chapters(
    notebooks: Sequence[Path],
    parameters: Sequence[Mapping[str, Any]],
    deadline: float | None,
    tell: Callable[[str], None],
) -> None:
    """Train the missing runs of chapters: a set-up cell is run up to where it makes ``results``.

    Of that part only the assignments are run, with ``cl`` and the notebook's parameters as names.
    ``deadline`` is of the monotonic clock.
    """
    for notebook, given in zip(notebooks, parameters, strict=True):
        if deadline is not None and time.monotonic() >= deadline:
            return
        left = "" if deadline is None else f"{math.ceil(deadline - time.monotonic())}s"
        names = {"cl": cifarlib, **given, "train": True, "budget": left}
        for cell in read_notebook(notebook, ConfigError).cells:
            if "setup" in cell.metadata.get("tags", []):
                tell(f"{notebook.name}:")
                body = ast.parse(cell.source).body
                made: list[ast.stmt] = [line for line in body if isinstance(line, ast.Assign)]
                while made and ast.unparse(made[-1]).partition(" = ")[0] != "results":
                    made.pop()
                exec(compile(ast.Module(made, []), shown(notebook), "exec"), names)


def name_suffix(results: Results, parts: Sequence[str] = (), parameters: Sequence[str] = ()) -> str:
    """What a report's files have in their names: nothing where it is of a scale as it stands.

    So neither single chapters or changed parameters (“name=value”) nor, in the scale's own folder,
    a changed scale replace that.
    """
    own = results.store.folder == paths.BUILD / results.scale_name
    changes = [*(results.overrides if own else ()), *parameters]
    words = [*parts, *(re.sub(r"[^A-Za-z0-9_.=]+", "-", text).strip("-") for text in changes)]
    suffix = "".join(f"-{word}" for word in words)
    if len(suffix) > MOST_LETTERS:
        digest = hashlib.sha256(" ".join([*parts, *changes]).encode()).hexdigest()
        suffix = f"{suffix[: MOST_LETTERS - 9]}-{digest[:8]}"
    return suffix


MOST_LETTERS = 120  # of a suffix; file names end at 255 bytes


@contextlib.contextmanager
def _alone(path: Path, tell: Callable[[str], None]) -> Iterator[None]:
    """Write a folder's report alone: a second command waits for the first, and says so."""
    with lock(path) as held:
        if held:
            yield
            return
    tell("another report of this folder is being made; waiting for its end")
    with lock(path, patient=True):
        yield


def _execute(
    notebooks: Sequence[Path],
    folder: Path,
    given: Sequence[dict[str, Any]],
    tell: Callable[[str], None],
) -> list[Path]:
    """Execute notebooks; those that read what others show, by a parameter ``executed``, last."""
    for last in (False, True):
        members = [n for n, parameters in enumerate(given) if last is _is_last(parameters)]
        if members:
            for n in members if last else []:  # what it showed before is no chapter's word now
                (folder / notebooks[n].name).unlink(missing_ok=True)
            values = [given[n] for n in members]
            execute_all([notebooks[n] for n in members], folder, values, tell)
    return [folder / path.name for path in notebooks]


def _is_last(parameters: Mapping[str, Any]) -> bool:
    return "executed" in parameters


def find_shown_runs(executed: Sequence[Path]) -> set[str]:
    """The ids of all runs to which executed notebooks have links."""
    return {run for path in executed for run in re.findall(r"#run-(\w+)", path.read_text("utf-8"))}


def choose_chapters(notebooks: Sequence[Path], only: Sequence[str]) -> list[Path]:
    """The notebooks whose names have one of the given parts in them; all where none is given.

    A notebook's file is a part, too. Raises ``ConfigError`` for a part that no name has.
    """
    names = [_chapter(notebook) for notebook in notebooks]
    parts = {part: Path(part).name.removesuffix(".ipynb") for part in only}
    for part, name in parts.items():
        if not name or not any(name in notebook.stem for notebook in notebooks):
            raise ConfigError(f"--only {part}: there is no such chapter; {suggest(part, names)}")
    return [n for n in notebooks if not only or any(part in n.stem for part in parts.values())]


def _chapter(notebook: Path) -> str:
    """``stage1`` of ``02_stage1.ipynb``."""
    return notebook.stem.partition("_")[2]


def _refuse_other_scale(results: Results) -> None:
    """``ConfigError`` where all that a build folder holds are runs of another data set or size."""
    records, _ = results.store.read_runs(results.store.run_ids())
    data = results.scale.data
    known = [record.config.data for record in records.values()]
    if known and (data.name, data.train_size) not in [(d.name, d.train_size) for d in known]:
        raise ConfigError(
            f"{shown(results.store.folder)} holds {say_count(len(records), 'run')}, none of them "
            f"of scale {' with '.join([results.scale_name, *results.overrides])}; name theirs with "
            "--scale and --set, or another folder with --out"
        )


def _share_out(
    parameters: Mapping[str, Any],
    shared: dict[str, Any],
    notebooks: Sequence[Path],
    offered: Mapping[str, Any],
) -> list[dict[str, Any]]:
    """Each notebook's parameters, checked: the shared ones, and those of the others that it has."""
    known = {notebook: read_parameters(notebook) for notebook in notebooks}
    names = sorted(set().union(*known.values()))
    for name in parameters:
        if name in (*shared, "train", "budget", "study"):
            raise ConfigError(f"the parameter {name!r} has an option of its own; see --help")
        if name not in names:
            raise ConfigError(
                f"none of the chapters chosen has a parameter {name!r}; {suggest(name, names)}"
            )
    given = []
    for notebook, has in known.items():
        others = {k: v for k, v in {**offered, **parameters}.items() if k in has}
        given.append(shared | others)
        check_values(given[-1], has, shown(notebook))
    return given


def merge(executed: Sequence[Path]) -> "NotebookNode":
    return join([(shown(path), read_notebook(path, ReportError)) for path in executed])
