"""The report: notebooks checked, executed and assembled into one HTML file and a PDF.

Everything that they say comes from the records of one build folder; the same records give
the same bytes. No network, no data set and no kernel installed by hand is needed.
"""

import ast
import re
import shlex
import sys
import tempfile
import typing
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cifarlib import paths
from cifarlib.config import suggest
from cifarlib.errors import ConfigError, ReportError
from cifarlib.front import describe
from cifarlib.paper import describe_paper
from cifarlib.progress import cores
from cifarlib.records import Results, open_results, write_atomically
from cifarlib.typesetting import typeset

if typing.TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag
    from nbformat import NotebookNode

TITLE = "What decides the accuracy of a small residual network on CIFAR-10?"
LARGEST = 5_000_000  # bytes of the page


def render(
    scale: str,
    overrides: Sequence[str] = (),
    build: str | Path = "",
    parameters: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
) -> Path:
    """Execute the notebooks over a build folder's records; write ``report.html`` and ``.pdf``.

    ``parameters`` go to every notebook that has a parameter of that name. ``only`` names chapters
    by a part of their notebooks' names; they go to a page of their own, ``report-stage1.html``,
    in which a reference to another chapter is plain text. Works with any number of finished runs.
    Raises ``ConfigError`` for wrong parameters and unknown chapters, before anything is executed,
    and ``ReportError`` where a notebook fails or the page would be broken; an older report stays
    as it is then.
    """
    results = open_results(scale, overrides, build)
    notebooks = sorted(paths.NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not notebooks:
        raise ReportError(
            f"{_shown(paths.NOTEBOOKS)} has no notebook such as 01_data.ipynb; restore it"
        )
    shared = {
        "scale": str(Path(scale).absolute()) if scale.endswith((".yaml", ".yml")) else scale,
        "overrides": list(overrides),
        "build": str(Path(build).absolute()) if str(build) else "",
    }
    chosen = choose_chapters(notebooks, only)
    parts = [_chapter(notebook) for notebook in chosen] if only else []
    suffix = "".join(f"-{part}" for part in parts)
    given = _share_out(parameters or {}, shared, chosen)
    options = name_records(scale, overrides, build, parameters or {})
    executed = execute_all(chosen, results.store.folder / f"notebooks{suffix}", given)
    findings, examined = _judge(results)
    front = describe(results, options, findings, examined, parts)
    page = results.store.folder / f"report{suffix}.html"
    paper = describe_paper(results, front, TITLE) | {"partial": bool(parts)}
    pdf = typeset(_merge(executed), paper)
    assemble(executed, page, front, partial=bool(parts))
    write_atomically(page.with_suffix(".pdf"), pdf)
    return page


def _judge(results: Results) -> tuple[Sequence[Any], Sequence[Any]]:
    """What the ledger of claims and the audit say, for the title page."""
    from cifarlib import audit, claims  # here, for statistics take a second to import

    return claims.judge(results), audit.examine(results)


def choose_chapters(notebooks: Sequence[Path], only: Sequence[str]) -> list[Path]:
    """The notebooks whose names have one of the given parts in them; all where none is given.

    Raises ``ConfigError`` for a part that no name has.
    """
    names = [_chapter(notebook) for notebook in notebooks]
    for part in only:
        if not part or not any(part in notebook.stem for notebook in notebooks):
            raise ConfigError(f"--only {part}: there is no such chapter; {suggest(part, names)}")
    return [n for n in notebooks if not only or any(part in n.stem for part in only)]


def _chapter(notebook: Path) -> str:
    """``stage1`` of ``02_stage1.ipynb``."""
    return notebook.stem.partition("_")[2]


def _share_out(
    parameters: Mapping[str, Any], shared: dict[str, Any], notebooks: Sequence[Path]
) -> list[dict[str, Any]]:
    """Each notebook's parameters, checked: the shared ones, and those given that it has."""
    known = {notebook: _read_parameters(notebook) for notebook in notebooks}
    names = sorted(set().union(*known.values()))
    for name in parameters:
        if name in shared:
            raise ConfigError(f"the parameter {name!r} has an option of its own; see --help")
        if name not in names:
            raise ConfigError(f"no notebook has a parameter {name!r}; {suggest(name, names)}")
    given = []
    for notebook, has in known.items():
        given.append(shared | {name: value for name, value in parameters.items() if name in has})
        check_parameters(notebook, given[-1])
    return given


def name_records(
    scale: str,
    overrides: Sequence[str],
    build: str | Path,
    parameters: Mapping[str, Any] | None = None,
) -> str:
    """The command line options that name these records and parameters."""
    words = ["--scale", scale]
    for override in overrides:
        words += ["--set", override]
    if str(build):
        words += ["--out", str(build)]
    for name, value in (parameters or {}).items():
        words += ["--parameter", f"{name}={value}"]
    return shlex.join(words)


def _shown(path: Path) -> str:
    """A path as a user knows it: relative to the checkout where it lies inside."""
    path = path.absolute()
    return str(path.relative_to(paths.ROOT)) if path.is_relative_to(paths.ROOT) else str(path)


# ---------------------------------------------------------------------------------------------
# Parameters, checked before a kernel starts
# ---------------------------------------------------------------------------------------------


def check_parameters(notebook: Path, parameters: dict[str, Any]) -> None:
    """Compare parameters with the names and types in a notebook's cell tagged ``parameters``.

    Raises ``ConfigError`` for an unknown name, a value of another type than the default's, and
    for a file that is no notebook or has no such cell.
    """
    known = _read_parameters(notebook)
    for name, value in parameters.items():
        if name not in known:
            raise ConfigError(
                f"{_shown(notebook)} has no parameter {name!r}; {suggest(name, known)}"
            )
        default = known[name]
        if default is not None and not _fits(value, default):
            raise ConfigError(
                f"{_shown(notebook)}: parameter {name!r} is of type {type(value).__name__}; "
                f"give a {type(default).__name__}, such as {default!r}"
            )


def _fits(value: Any, default: Any) -> bool:
    if type(default) is float:
        return type(value) in (int, float)
    return type(value) is type(default)


def _read_parameters(notebook: Path) -> dict[str, Any]:
    """Name → default value, from the cell tagged ``parameters``."""
    name = _shown(notebook)
    for cell in _read_notebook(notebook, ConfigError).cells:
        if cell.cell_type == "code" and "parameters" in cell.metadata.get("tags", []):
            break
    else:
        raise ConfigError(f"{name} has no code cell tagged 'parameters'; add the tag to one")
    try:
        statements = ast.parse(cell.source).body
    except SyntaxError as error:
        raise ConfigError(
            f"{name}: the parameters cell is not valid Python, line {error.lineno}; correct it"
        ) from error
    known = {}
    for statement in statements:
        match statement:
            case ast.Assign(targets=[ast.Name(id=target)], value=value):
                pass
            case ast.AnnAssign(target=ast.Name(id=target), value=ast.expr() as value):
                pass
            case ast.Expr(value=ast.Constant(value=str())):  # a text that explains
                continue
            case _:
                raise ConfigError(
                    f"{name}: line {statement.lineno} of the parameters cell is no assignment; "
                    'write only lines such as scale = "smoke"'
                )
        try:
            known[target] = ast.literal_eval(value)
        except ValueError as error:
            raise ConfigError(
                f"{name}: the default of parameter {target!r} must be a plain value, "
                "such as a text, a number or a list"
            ) from error
    return known


def _read_notebook(
    path: Path, error_class: type[ConfigError] | type[ReportError]
) -> "NotebookNode":
    import nbformat

    try:
        with path.open(encoding="utf-8") as file:
            return nbformat.read(file, as_version=4)
    except OSError as error:
        raise error_class(f"{_shown(path)} cannot be read ({error.strerror})") from error
    except Exception as error:  # nbformat raises many kinds for what is not a notebook
        raise error_class(f"{_shown(path)} is not a Jupyter notebook; restore it") from error


# ---------------------------------------------------------------------------------------------
# Execution
# ---------------------------------------------------------------------------------------------


def execute_all(
    notebooks: Sequence[Path], folder: Path, parameters: Sequence[dict[str, Any]]
) -> list[Path]:
    """Execute notebooks side by side into a folder, each with its parameters.

    All failures become one ``ReportError``.
    """
    outputs = [folder / notebook.name for notebook in notebooks]
    kernels = _Kernels()
    pool = ThreadPoolExecutor(max_workers=cores())
    try:
        futures = [
            pool.submit(_execute, notebook, output, given, kernels)
            for notebook, output, given in zip(notebooks, outputs, parameters, strict=True)
        ]
        failures = [error for future in futures if (error := future.exception())]
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        kernels.kill()  # none is left, except after Ctrl-C
    for failure in failures:
        if not isinstance(failure, ReportError):
            raise failure
    if failures:
        raise ReportError("; ".join(map(str, failures)))
    return outputs


def _execute(notebook: Path, output: Path, parameters: dict[str, Any], kernels: "_Kernels") -> None:
    """Execute a notebook with papermill, in this environment's Python and the notebook's folder.

    The executed notebook appears whole at ``output``. Where a cell failed, it is kept there with
    its traceback and an anchor, and ``ReportError`` names the file, the cell and the error.
    """
    import logging

    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="cifarlib-") as home:
        temporary = Path(home) / notebook.name
        failure = None
        try:
            papermill.execute_notebook(
                # papermill takes braces in a path for placeholders
                str(notebook.absolute()).replace("{", "{{").replace("}", "}}"),
                str(temporary).replace("{", "{{").replace("}", "}}"),
                parameters,
                kernel_name="python3",
                language="python",
                progress_bar=False,
                kernel_manager_class=kernels.manager(Path(home)),
                resources={"metadata": {"path": str(notebook.parent.absolute())}},
                shutdown_kernel="immediate",
            )
        except PapermillExecutionError as error:
            failure = (
                f"{_shown(notebook)} failed in cell [{error.exec_count}] "
                f"({_first_line(error.source)}): {_last_line(error)}"
            )
        except Exception as error:  # a kernel that died or never started, whatever its error
            reason = str(error).strip().splitlines()
            failure = f"{_shown(notebook)} failed: {reason[-1] if reason else type(error).__name__}"
        if temporary.is_file():
            content = _tidy(_read_notebook(temporary, ReportError))
            write_atomically(output, (nbformat.writes(content) + "\n").encode())
    if failure:
        kept = f"; see {_shown(output)}" if output.is_file() else ""
        raise ReportError(failure + kept)


def _first_line(source: str) -> str:
    lines = [line for line in source.splitlines() if line.strip()]
    return lines[0].strip() if lines else "an empty cell"


def _last_line(error: Any) -> str:
    lines = str(error.evalue).strip().splitlines()
    return f"{error.ename}: {lines[-1]}" if lines else str(error.ename)


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
        added = {"injected-parameters", "papermill-error-cell-tag"}
        if "id" in cell and added & set(cell.metadata.get("tags", [])):
            cell.id = f"added-{number}"
    return notebook


class _Kernels:
    """Kernels in this environment's Python, whatever kernels are installed for the user."""

    def __init__(self) -> None:
        self.managers: list[Any] = []

    def manager(self, home: Path) -> type:
        """A kernel manager class whose kernel keeps its files in a folder of its own."""
        from jupyter_client import AsyncKernelManager
        from jupyter_client.kernelspec import KernelSpec

        started = self.managers

        class Manager(AsyncKernelManager):
            def __init__(self, **settings: Any) -> None:
                super().__init__(
                    **settings,
                    connection_file=str(home / "kernel.json"),
                    transport="ipc",  # sockets in that folder; no port that another may take
                )
                started.append(self)

            @property
            def kernel_spec(self) -> KernelSpec:
                return KernelSpec(
                    argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                    env={"IPYTHONDIR": str(home / "ipython")},
                    display_name="Python 3 (ipykernel)",
                    language="python",
                )

        return Manager

    def kill(self) -> None:
        """End the kernels that still run."""
        for manager in self.managers:
            process = getattr(manager.provisioner, "process", None)
            if process is not None and process.poll() is None:
                process.kill()


# ---------------------------------------------------------------------------------------------
# Assembly
# ---------------------------------------------------------------------------------------------


def assemble(
    executed: Sequence[Path],
    output: Path,
    front: dict[str, Any] | None = None,
    *,
    partial: bool = False,
) -> Path:
    """Merge executed notebooks into one self-contained HTML file, with a title page.

    ``front`` is what ``describe`` gives. A cell tagged ``front`` is shown on the title page.
    Where the page is ``partial``, a link to what is nowhere on it becomes plain text. Raises
    ``ReportError`` for a failed cell, a dangling link, an id that stands there twice, anything
    that would be loaded from elsewhere, and a page of more than 5 MB.
    """
    write_atomically(output, make_page(_merge(executed), front, partial=partial))
    return output


def make_page(
    notebook: "NotebookNode",
    front: dict[str, Any] | None = None,
    *,
    title: str = TITLE,
    partial: bool = False,
) -> bytes:
    """A notebook that ``join`` made as one HTML file; arguments and errors as of ``assemble``."""
    from bs4 import BeautifulSoup

    page, _ = _exporter().from_notebook_node(notebook, {"front": front, "title": title})
    soup = BeautifulSoup(page, "html.parser")
    _separate_drawings(soup)
    _box_tables(soup)
    _label_words(soup)
    if place := soup.select_one("#highlights"):
        for cell in soup.select(".cells .tag-front"):
            place.append(cell.extract())
    _number_sections(soup)
    _name_runs(soup, front)
    _drop_links(soup if partial else soup.select_one("header.front"))
    _check_page(soup)
    content = str(soup).encode()
    if len(content) > LARGEST:
        sizes = {str(cell["data-notebook"]): 0 for cell in soup.select("[data-notebook]")}
        for cell in soup.select("[data-notebook]"):
            sizes[str(cell["data-notebook"])] += len(str(cell))
        raise ReportError(
            f"the report would have {len(content) / 1e6:.1f} MB, more than {LARGEST / 1e6:.0f}; "
            f"draw less in {max(sizes, key=lambda name: sizes[name])}, the largest part"
        )
    return content


def _merge(executed: Sequence[Path]) -> "NotebookNode":
    return join([(_shown(path), _read_notebook(path, ReportError)) for path in executed])


def join(notebooks: Sequence[tuple[str, "NotebookNode"]]) -> "NotebookNode":
    """One notebook of all cells of executed ones, parameters left out.

    Each comes with its path. Raises ``ReportError`` for a failed cell.
    """
    import nbformat

    cells = []
    for path, notebook in notebooks:
        name = Path(path).name
        for cell in notebook.cells:
            if {"parameters", "injected-parameters"} & set(cell.metadata.get("tags", [])):
                continue
            if any(output.output_type == "error" for output in cell.get("outputs", [])):
                raise ReportError(
                    f"{path}: the cell {_first_line(cell.source)!r} failed; correct it"
                )
            cell.metadata["notebook"] = name
            cell.metadata["first"] = not cells or cells[-1].metadata["notebook"] != name
            cell["id"] = f"cell-{len(cells)}"
            cells.append(cell)
    return nbformat.v4.new_notebook(
        cells=cells, metadata={"language_info": {"name": "python", "pygments_lexer": "ipython3"}}
    )


def _exporter() -> Any:
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    class Exporter(HTMLExporter):
        def _create_environment(self) -> Any:
            environment = super()._create_environment()
            environment.autoescape = True
            return environment

    config = Config()
    config.NbConvertBase.display_data_priority = [
        "text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain",
    ]  # fmt: skip
    return Exporter(
        config=config,
        extra_template_basedirs=[str(paths.TEMPLATES)],
        template_name="report",
        exclude_anchor_links=True,
    )


def _separate_drawings(soup: "BeautifulSoup") -> None:
    """Make the ids inside each inline SVG its own: matplotlib gives every drawing the same."""
    for number, drawing in enumerate(soup.find_all("svg"), start=1):
        if drawing.find_parent("svg"):
            continue
        tags = [drawing, *drawing.find_all(True)]
        names = {tag["id"] for tag in tags if tag.has_attr("id")}

        def rename(match: re.Match[str], prefix: str = f"svg{number}-", names: set = names) -> str:
            return f"{match[1]}{prefix}{match[2]}" if match[2] in names else match[0]

        for tag in tags:
            for key, value in tag.attrs.items():
                if key == "id":
                    tag[key] = f"svg{number}-{value}"
                elif key in ("aria-labelledby", "aria-describedby"):
                    tag[key] = re.sub(r"()(\S+)", rename, value)
                elif isinstance(value, str) and "#" in value:
                    tag[key] = re.sub(r"(^#|url\(['\"]?#)([^'\")\s]+)", rename, value)


def _box_tables(soup: "BeautifulSoup") -> None:
    """Put tables that have no box of their own into one that scrolls."""
    for table in soup.find_all("table"):
        if not table.find_parent(class_="scroll"):
            attributes = {
                "class": "scroll",
                "tabindex": "0",
                "role": "region",
                "aria-label": "Table",
            }
            table.wrap(soup.new_tag("div", attrs=attributes))


def _label_words(soup: "BeautifulSoup") -> None:
    """Put the column's name on each cell of tables with sentences: a phone stacks the cells."""
    for table in soup.select("table.data:has(td.long)"):
        heads = table.thead.find_all("tr")
        if len(heads) > 1:
            continue
        names = [cell.get_text(" ", strip=True) for cell in heads[0].find_all("th")]
        table["class"] = [*table.get("class", []), "stacked"]
        for row in table.tbody.find_all("tr"):
            for name, cell in zip(names, row.find_all("td", recursive=False), strict=False):
                cell["data-label"] = name


def _number_sections(soup: "BeautifulSoup") -> None:
    """Notebook titles become numbered h2, and so on down; the table of contents names them."""
    for heading in soup.select(".cells :is(h1, h2, h3, h4, h5)"):
        heading.name = f"h{int(heading.name[1]) + 1}"
    taken = {str(tag["id"]) for tag in soup.find_all(id=True)}
    contents = soup.select_one("nav.contents ol")
    chapters = sections = 0
    chapter, part = "", None
    for heading in soup.select("main :is(h2, h3)"):
        if "unlisted" in heading.get("class", []):
            continue
        text = heading.get_text(" ", strip=True)
        if not heading.get("id"):
            name = re.sub(r"\W+", "-", text.lower()).strip("-") or "section"
            names = [name, f"{chapter}-{name}", *(f"{name}-{n}" for n in range(2, len(taken) + 3))]
            heading["id"] = next(candidate for candidate in names if candidate not in taken)
            taken.add(heading["id"])
        number = ""
        if heading.name == "h2":
            chapter, sections = str(heading["id"]), 0
            if "unnumbered" not in heading.get("class", []):
                chapters += 1
                number = str(chapters)
        elif heading.find_parent(class_="cells"):
            sections += 1
            number = f"{chapters}.{sections}"
        else:
            continue  # parts of the title page and of the provenance
        entry = soup.new_tag("li")
        link = soup.new_tag("a", href=f"#{heading['id']}")
        entry.append(link)
        if number:
            for place in (heading, link):
                label = soup.new_tag("span", attrs={"class": "section-number"})
                label.string = number
                place.insert(0, " ")
                place.insert(0, label)
        link.append(text)
        if contents is None:
            continue
        if heading.name == "h2" or part is None:
            contents.append(entry)
            part = entry
        else:
            if part.ol is None:
                part.append(soup.new_tag("ol"))
            part.ol.append(entry)


def _name_runs(soup: "BeautifulSoup", front: dict[str, Any] | None) -> None:
    """Say the name of a run where a link has but its id, else as the link's tooltip."""
    titles = {f"#run-{run['run_id']}": run["title"] for run in front["runs"]} if front else {}
    for link in soup.select("figure.table a[href^='#run-']"):
        if title := titles.get(str(link["href"])):
            if link.find_parent("details", class_="behind"):
                link.string = title
            else:
                link["title"] = title


def _drop_links(part: "Tag | BeautifulSoup | None") -> None:
    """Make plain text of links to chapters that the page has not."""
    if part is None:
        return
    page = part.find_parent("html") or part
    known = {str(tag["id"]) for tag in page.find_all(id=True)}
    for link in part.find_all("a", href=re.compile("^#.")):
        if link["href"][1:] not in known:
            link.unwrap()


def _check_page(soup: "BeautifulSoup") -> None:
    """Refuse a page with dangling links, ids that stand there twice, or parts from elsewhere."""
    count = Counter(str(tag["id"]) for tag in soup.find_all(id=True))
    for name, times in count.items():
        if times > 1:
            places = [_place(tag) for tag in soup.find_all(id=name)]
            where = ", ".join(dict.fromkeys(places))
            raise ReportError(
                f"the id {name!r} stands {times} times in the report ({where}); rename one"
            )
    for link in soup.find_all("a", href=re.compile("^#.")):
        if link["href"][1:] not in count:
            raise ReportError(
                f"{_place(link)}: the link {link.get_text()!r} leads to {link['href']}, "
                "which is nowhere in the report; correct the link or number the table or figure"
            )
    for tag in soup.find_all(True):
        for source in _sources(tag):
            if not source.startswith(("data:", "#")):
                raise ReportError(
                    f"{_place(tag)}: a {tag.name} would be loaded from {source[:80]!r}; "
                    "put it into the page as a data: URI"
                )


def _sources(tag: "Tag") -> list[str]:
    """Whatever a browser would load for an element."""
    keys = ["src", "srcset", "poster", "data", "background"]
    if tag.name in ("link", "image", "use", "feimage", "base"):
        keys += ["href", "xlink:href"]
    found = [str(tag[key]).strip() for key in keys if tag.has_attr(key)]
    styles = [str(tag.get("style", ""))]
    if tag.name == "style":
        styles.append(tag.get_text())
    for style in styles:
        found += re.findall(r"url\(\s*['\"]?([^'\")]*)", style, flags=re.IGNORECASE)
        found += re.findall(r"@import\s+['\"]([^'\"]*)", style, flags=re.IGNORECASE)
    return found


def _place(tag: "Tag") -> str:
    cell = tag if tag.has_attr("data-notebook") else tag.find_parent(attrs={"data-notebook": True})
    return str(cell["data-notebook"]) if cell else "the report"
