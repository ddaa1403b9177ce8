"""The PDF: prose, tables and figures of executed notebooks, typeset like a paper by Typst.

Prose and HTML become Typst through pandoc; tables, figures and verdicts are set from what
``report.show`` puts beside their HTML. ``templates/typst/report.typ`` decides what all of it looks
like. Neither LaTeX, browser nor network is needed, and no font of the machine.
"""

import base64
import functools
import hashlib
import html
import json
import re
import tempfile
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cifarlib import paths
from cifarlib.errors import ReportError
from cifarlib.report.notebooks import find_matplotlib, first_line
from cifarlib.report.tables import CONTENT

if typing.TYPE_CHECKING:
    from nbformat import NotebookNode

TEMPLATE = paths.TEMPLATES / "typst"
STANDARDS: list[Any] = ["ua-1", "a-2a"]  # accessible, and fit for archives
WORD = 40  # characters after which a word of plain text may break
MOST_LINES = 1000  # of an output that is text

IMAGES = {"image/svg+xml": "svg", "image/png": "png", "image/jpeg": "jpg"}  # the best first
PICTURE = re.compile(r'(?<=#picture\(image\()"([^"]*)"')
DATA_URI = re.compile(r"data:(image/[\w+]+);base64,([^\"')]+)")


@dataclass
class Piece:
    """A paragraph, table, figure or other output, and where it comes from."""

    kind: str  # prose | table | figure | statement | html | text
    place: str  # the notebook, and its cell's first line
    chapter: str
    front: bool  # stands on the title page
    markup: str = ""  # Markdown or HTML; Typst after ``_translate``
    content: dict[str, Any] = field(default_factory=dict)


def typeset(notebook: "NotebookNode", front: dict[str, Any]) -> bytes:
    """Executed notebooks that ``notebooks.join`` made one, as a PDF.

    ``front`` has ``title``, ``timestamp`` (seconds since 1970, UTC) and ``partial`` (a link that
    leads nowhere becomes plain text); with the rest of ``front.describe_paper`` there are a title
    page and an appendix, too. The same arguments give the same bytes. Raises ``ReportError``
    where a link leads nowhere or something cannot be set.
    """
    files: dict[str, bytes] = {}
    pieces = list(_gather(notebook, files))
    for kind, format in (("prose", "ipynb"), ("html", "html")):
        chosen = [piece for piece in pieces if piece.kind == kind]
        for piece, markup in zip(chosen, translate(format, chosen), strict=True):
            keep = functools.partial(_keep_picture, piece=piece, files=files)
            piece.markup = PICTURE.sub(keep, markup)
    numbers: dict[str, str] = {}  # of the table and the figure before
    for piece in pieces:
        if piece.kind in ("table", "figure"):
            piece.content = piece.content | {"after": numbers.get(piece.kind)}
            numbers[piece.kind] = piece.content["number"]
    source, places = _compose(pieces, front)
    content = {"front": front, "pieces": [piece.content for piece in pieces]}
    return compile_pdf(source, files, content, places)


def _gather(notebook: "NotebookNode", files: dict[str, bytes]) -> Iterator[Piece]:
    """What a reader sees of a notebook, in order, and the files of its figures.

    Code, parameters, warnings and cells tagged ``screen`` are left out.
    """
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        if "screen" in tags:
            continue
        chapter = cell.metadata["notebook"]
        about = f"{chapter}, cell {first_line(cell.source)!r}", chapter, "front" in tags
        if cell.cell_type == "markdown":
            yield Piece("prose", *about, cell.source)
        for output in cell.get("outputs", []):
            if output.output_type != "stream":
                data = output.data
            elif output.name == "stdout":
                data = {"text/plain": output.text}
            else:
                continue
            piece = _read_output(data, cell.metadata.get("alt") or "An image", about)
            if piece.kind == "figure" and piece.content["drawn"]:
                found = DATA_URI.search(data.get("text/html", ""))
                if found is None:
                    number = piece.content["number"]
                    raise ReportError(f"{piece.place}: Figure {number} has no image")
                piece.content = piece.content | {"file": _keep_image(found, piece, files)}
            yield piece


def _read_output(data: dict[str, Any], alt: str, about: tuple[str, str, bool]) -> Piece:
    """The richest form of an output that can be set; ``about`` are its place, chapter, front."""
    if (content := data.get(CONTENT)) and content["kind"] != "answer":
        kind = "statement" if content["kind"] in ("claim", "doubt") else content["kind"]
        return Piece(kind, *about, content=content)
    if "text/html" in data:
        return Piece("html", *about, data["text/html"])
    if "text/markdown" in data:
        return Piece("prose", *about, data["text/markdown"])
    if kind := next((kind for kind in IMAGES if kind in data), ""):
        text = data[kind]
        source = base64.b64encode(text.encode()).decode() if kind == "image/svg+xml" else text
        image = f'<img src="data:{kind};base64,{source}" alt="{html.escape(alt)}">'
        return Piece("html", *about, image)
    return Piece("text", *about, content={"text": _plain(data.get("text/plain", ""))})


def _plain(text: str) -> str:
    """Text without the terminal's colours, its first lines only; a long word may break."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip().splitlines()
    if (more := len(lines) - MOST_LINES) > 0:
        lines[MOST_LINES:] = [f"… {more:,} more lines, in the HTML report"]
    return re.sub(rf"(\S{{{WORD}}})(?=\S)", "\\1\u200b", "\n".join(lines))


def translate(format: str, pieces: Iterable[Piece]) -> list[str]:
    """Each piece as Typst markup; ``format`` is ipynb for Markdown, or html."""
    import pypandoc
    from nbformat import v4

    texts = [piece.markup for piece in pieces]
    if format == "ipynb":
        cells = [v4.new_markdown_cell(text, id=f"c{n}") for n, text in enumerate(texts)]
        source = v4.writes(v4.new_notebook(cells=cells))
    else:
        source = "".join(f'<div class="cell">{_clean(text)}</div>' for text in texts)
    options = ["--sandbox", "--quiet", "--wrap=none", f"--lua-filter={TEMPLATE / 'prose.lua'}"]
    try:
        done = pypandoc.convert_text(source, "typst", format, options, verify_format=False)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ReportError(f"pandoc cannot read the prose: {reason}") from error
    return [part.strip() for part in done.split("//end of cell")[: len(texts)]]


def _clean(text: str) -> str:
    """HTML without scripts; a drawing in it becomes an image."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(text, "html.parser")
    for tag in soup(["script", "style", "button"]):
        tag.decompose()
    for drawing in soup("svg"):
        source = base64.b64encode(str(drawing).encode()).decode()
        said = str(drawing.get("aria-label") or "A drawing")
        tag = soup.new_tag("img", src=f"data:image/svg+xml;base64,{source}", alt=said)
        drawing.replace_with(tag)
    return str(soup)


def _keep_picture(picture: re.Match[str], piece: Piece, files: dict[str, bytes]) -> str:
    """The file of a picture, quoted; refuses one that does not lie in the notebook."""
    found = DATA_URI.fullmatch(picture[1])
    if found is None:
        raise ReportError(
            f"{piece.place}: an image would be loaded from {picture[1][:80]!r}; "
            "put it into the notebook"
        )
    return f'"{_keep_image(found, piece, files)}"'


def _keep_image(found: re.Match[str], piece: Piece, files: dict[str, bytes]) -> str:
    """Put the image of a data URI into a file named for its content."""
    try:
        image = base64.b64decode(found[2])
    except ValueError as error:
        raise ReportError(f"{piece.place}: its image is damaged; execute it again") from error
    name = f"{hashlib.sha256(image).hexdigest()[:16]}.{IMAGES.get(found[1], 'png')}"
    files[name] = image
    return name


def _compose(pieces: Sequence[Piece], front: dict[str, Any]) -> tuple[str, list[tuple[int, str]]]:
    """The document's Typst source, and the line at which each piece begins with its place."""
    lines = ['#import "report.typ": *', '#let content = json("content.json")']
    lines += ["#show: report.with(content.front)"]
    places: list[tuple[int, str]] = []

    def add(number: int) -> None:
        piece = pieces[number]
        places.append((len(lines) + 1, piece.place))
        if piece.kind in ("prose", "html"):
            lines.extend([*piece.markup.splitlines(), ""])
        else:
            item = f"content.pieces.at({number})"
            name = piece.content.get("file")
            image = f', image("{name}", alt: {item}.alt)' if name else ""
            stays = ", float: false" if piece.kind == "figure" and piece.front else ""
            lines.append(f"#show-{piece.kind}({item}{image}{stays})")

    whole = "label" in front
    if whole:
        lines.append("#title-page(content.front)[")
        for drawn in (True, False):  # drawings stand above the text
            for number, piece in enumerate(pieces):
                if piece.front and drawn is (piece.kind == "figure"):
                    add(number)
            lines.append("][" if drawn else "]")
        lines += ["#pagebreak()", "#what-was-run(content.front)"]
    chapter = None
    for number, piece in enumerate(pieces):
        if piece.front and whole:
            continue
        if piece.chapter != chapter:
            chapter = piece.chapter
            lines.append(f'#chapter("chapter-{chapter.removesuffix(".ipynb")}")')
        add(number)
    if whole:
        lines.append("#appendix(content.front)")
    return "\n".join(lines), places


def compile_pdf(
    source: str,
    files: dict[str, bytes],
    content: dict[str, Any],
    places: Sequence[tuple[int, str]],
) -> bytes:
    """Compile a document with the template, its images and its content (as ``content.json``)."""
    import typst

    inputs = files | {
        "main.typ": source.encode(),
        "report.typ": (TEMPLATE / "report.typ").read_bytes(),
        "content.json": json.dumps(content).encode(),
    }
    with tempfile.TemporaryDirectory(prefix="cifarlib-") as home:
        for name, part in inputs.items():
            (Path(home) / name).write_bytes(part)
        try:
            return typst.compile(
                str(Path(home) / "main.typ"),
                format="pdf",
                root=home,
                font_paths=[str(find_matplotlib() / "fonts" / "ttf")],
                ignore_system_fonts=True,
                pdf_standards=STANDARDS,
                timestamp=content["front"]["timestamp"],
            )
        except typst.TypstError as error:
            raise ReportError(_explain(error, places)) from error


def _explain(error: Any, places: Sequence[tuple[int, str]]) -> str:
    """One sentence about what Typst could not set, and where it came from."""
    faults = re.split(r"^error: ", error.diagnostic, flags=re.MULTILINE)[1:]
    # A fault in a table also takes its label away, which then is reported, too.
    faults.sort(key=lambda fault: fault.startswith("label"))
    fault = faults[0] if faults else error.message
    lines = [int(line) for line in re.findall(r"main\.typ:(\d+)", fault)]
    place = "the report"
    for start, name in places:
        if lines and start <= lines[-1]:
            place = name
    if missing := re.match(r"label `<(.*)>` does not exist", fault):
        return (
            f"{place}: a link leads to #{missing[1]}, which is nowhere in the report; correct the "
            "link or number the table or figure"
        )
    return f"{place} cannot be typeset: {fault.splitlines()[0]}"
