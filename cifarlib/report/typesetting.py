"""The PDF: prose, tables and figures of executed notebooks, typeset like a paper by Typst.

Prose goes from Markdown to Typst through pandoc; tables, figures and verdicts are set from what
``report.show`` puts beside their HTML; other outputs go through pandoc's HTML reader or stand as
plain text. ``templates/typst/report.typ`` decides what all of it looks like. Neither LaTeX, browser
nor network is needed, and no font of the machine: Typst's wheel and matplotlib bring theirs.
"""

import base64
import binascii
import json
import re
import subprocess
import tempfile
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cifarlib import paths
from cifarlib.errors import ReportError
from cifarlib.report.show import CONTENT, anchor
from cifarlib.report.tables import ABSENT, LONG, PENDING

if typing.TYPE_CHECKING:
    from nbformat import NotebookNode

TEMPLATE = paths.TEMPLATES / "typst"
STANDARDS = ["ua-1", "a-2a"]  # accessible, and fit for archives
LINE = 40  # characters that a column of sentences holds in a line, about
NARROW = 12  # characters that it holds at least
MOST_LINES = 1000  # of an output that is text
ROOM = 118  # characters side by side on a page, about

NUMBER = re.compile(r"[+−-]?[\d,]*\.?\d+(e[+−-]?\d+)?( ?%)?")
IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}
PICTURE = re.compile(r'#picture\("([^"]*)", ("(?:[^"\\]|\\.)*")\)')
DATA_URI = re.compile(r"data:(image/[\w+]+);base64,([^\"')]+)")


@dataclass
class Piece:
    """A paragraph, table, figure or other output, and where it comes from."""

    kind: str  # prose | table | figure | statement | html | image | text
    place: str  # the notebook, and its cell's first line
    chapter: str
    front: bool = False  # stands on the title page
    markup: str = ""  # Markdown or HTML; Typst after ``_translate``
    content: dict[str, Any] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)


def typeset(notebook: "NotebookNode", front: dict[str, Any]) -> bytes:
    """An executed notebook, or several that ``report.join`` made one, as a PDF.

    ``front`` has ``title``, ``timestamp`` (seconds since 1970, UTC) and ``partial`` (a link that
    leads nowhere becomes plain text); with the rest of ``paper.describe_paper`` there are a title
    page and an appendix, too. The same arguments give the same bytes. Raises ``ReportError``
    where a link leads nowhere or something cannot be set.
    """
    pieces = list(_gather(notebook))
    _translate(pieces)
    _check_links(pieces, front)
    source, places = _compose(pieces, front)
    files = {name: content for piece in pieces for name, content in piece.files.items()}
    content = {"front": front, "pieces": [piece.content for piece in pieces]}
    return compile_pdf(source, files, content, places)


# ---------------------------------------------------------------------------------------------
# What a notebook holds
# ---------------------------------------------------------------------------------------------


def _gather(notebook: "NotebookNode") -> Iterator[Piece]:
    """What a reader sees of a notebook, in order; code, parameters and warnings are left out.

    So are cells tagged ``screen``.
    """
    for cell in notebook.cells:
        if "screen" in cell.metadata.get("tags", []):
            continue
        chapter = cell.metadata.get("notebook", "the notebook")
        first = next((line.strip() for line in cell.source.splitlines() if line.strip()), "")
        about = {
            "place": f"{chapter}, cell {first!r}",
            "chapter": chapter,
            "front": "front" in cell.metadata.get("tags", []),
        }
        if cell.cell_type == "markdown":
            yield Piece("prose", markup=cell.source, **about)
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                raise ReportError(f"{about['place']} failed; correct it and execute it again")
            if output.output_type == "stream":
                if output.name == "stdout":
                    yield Piece("text", content={"text": _plain(output.text)}, **about)
                continue
            alt = cell.metadata.get("alt", "")
            yield _read_output(output.data, alt, about)


def _read_output(data: dict[str, Any], alt: str, about: dict[str, Any]) -> Piece:
    """The richest form of an output that can be set."""
    if (content := data.get(CONTENT)) and content["kind"] != "answer":
        if content["kind"] == "table":
            return Piece("table", content=content | _lay_out(content), **about)
        if content["kind"] in ("claim", "doubt"):
            named = {"id": anchor(content["kind"], content["id"])}
            return Piece("statement", content=content | named, **about)
        if not content["drawn"]:
            return Piece("figure", content=content, **about)
        found = DATA_URI.search(data.get("text/html", ""))
        if found is None:
            raise ReportError(f"{about['place']}: Figure {content['number']} has no image")
        return _image(found[1], found[2], content, about)
    if "text/html" in data:
        return Piece("html", markup=data["text/html"], **about)
    if "text/markdown" in data:
        return Piece("prose", markup=data["text/markdown"], **about)
    for kind in IMAGES:
        if kind in data:
            text = data[kind]
            source = base64.b64encode(text.encode()).decode() if kind == "image/svg+xml" else text
            return _image(kind, source, {"kind": "image", "alt": alt or "An image"}, about)
    return Piece("text", content={"text": _plain(data.get("text/plain", ""))}, **about)


def _image(mime: str, source: str, content: dict[str, Any], about: dict[str, Any]) -> Piece:
    try:
        image = base64.b64decode(source)
    except binascii.Error as error:
        raise ReportError(f"{about['place']}: its image is damaged; execute it again") from error
    name = _name_file(image, IMAGES.get(mime, "png"))
    content = content | {"file": name}
    return Piece(content["kind"], content=content, files={name: image}, **about)


def _name_file(content: bytes, suffix: str) -> str:
    import hashlib

    return f"{hashlib.sha256(content).hexdigest()[:16]}.{suffix}"


def _plain(text: str) -> str:
    """Text without the terminal's colours, its first lines only; a long word may break."""
    lines = re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip().splitlines()
    if (more := len(lines) - MOST_LINES) > 0:
        lines[MOST_LINES:] = [f"… {more:,} more lines, in the HTML report"]
    return re.sub(rf"(\S{{{LINE}}})(?=\S)", "\\1\u200b", "\n".join(lines))


def _lay_out(content: dict[str, Any]) -> dict[str, Any]:
    """How a table's columns stand: numbers flush right, words left, sentences broken into lines."""
    columns = list(zip(*content["rows"], strict=True)) or [()] * len(content["columns"])
    heads = [name for _, name in content["columns"]]
    return {
        "id": anchor("table", content["number"]),
        "numeric": [_is_numeric(column) for column in columns],
        "widths": _share_width(heads, columns),
    }


def _share_width(heads: Sequence[str], columns: Sequence[Sequence[str]]) -> list[float]:
    """Each column's share of the page's width; 0 for one that is as wide as its content.

    A column that is broken into lines has at least room for its longest word.
    """
    longest = [max(map(len, column), default=0) for column in columns]
    words = [
        max((len(word) for text in (head, *column) for word in text.split()), default=0)
        for head, column in zip(heads, columns, strict=True)
    ]
    broken = [number for number, length in enumerate(longest) if length > LONG]
    room = ROOM - sum(
        max(length, len(head)) + 2
        for number, (length, head) in enumerate(zip(longest, heads, strict=True))
        if number not in broken
    )
    # Between one share for each column and one for each character.
    weights = [sum(len(text) ** 2 for text in column) ** 0.35 for column in columns]
    total = sum(weights[number] for number in broken)
    return [
        max(room * weight / total, word + 2, NARROW) if number in broken else 0
        for number, (weight, word) in enumerate(zip(weights, words, strict=True))
    ]


def _is_numeric(texts: Iterable[str]) -> bool:
    return all(NUMBER.fullmatch(text) for text in texts if text not in (PENDING, ABSENT, ""))


# ---------------------------------------------------------------------------------------------
# Markdown and HTML become Typst
# ---------------------------------------------------------------------------------------------


def _translate(pieces: Sequence[Piece]) -> None:
    """Fill in the Typst markup of prose, in one call of pandoc, and of HTML."""
    prose = [piece for piece in pieces if piece.kind == "prose"]
    for piece, markup in zip(prose, translate_prose(p.markup for p in prose), strict=True):
        piece.markup = markup
    for piece in pieces:
        if piece.kind == "html":
            piece.markup = translate_html(piece.markup)
        _take_pictures(piece)


def translate_prose(texts: Iterable[str]) -> list[str]:
    """Notebook Markdown as Typst markup, each text on its own."""
    cells = [
        {"cell_type": "markdown", "id": f"c{number}", "metadata": {}, "source": text}
        for number, text in enumerate(texts)
    ]
    notebook = {"cells": cells, "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    markup = _pandoc("ipynb", json.dumps(notebook))
    return [part.strip() for part in markup.split("//end of cell")][: len(cells)]


def translate_html(html: str) -> str:
    """HTML as Typst markup, without scripts; a drawing in it becomes an image."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(html, "html.parser")
    for tag in soup(["script", "style", "button"]):
        tag.decompose()
    for drawing in soup("svg"):
        source = base64.b64encode(str(drawing).encode()).decode()
        said = drawing.get("aria-label") or "A drawing"
        tag = soup.new_tag("img", src=f"data:image/svg+xml;base64,{source}", alt=said)
        drawing.replace_with(tag)
    return _pandoc("html", str(soup)).strip()


def _take_pictures(piece: Piece) -> None:
    """Put the images that a piece's markup carries into files; refuse one from elsewhere."""

    def take(picture: re.Match[str]) -> str:
        found = DATA_URI.fullmatch(picture[1])
        if found is None:
            raise ReportError(
                f"{piece.place}: an image would be loaded from {picture[1][:80]!r}; "
                "put it into the notebook"
            )
        content = base64.b64decode(found[2])
        name = _name_file(content, IMAGES.get(found[1], "png"))
        piece.files[name] = content
        return f'#picture("{name}", {picture[2]})'

    piece.markup = PICTURE.sub(take, piece.markup)


def _pandoc(format: str, text: str) -> str:
    import pypandoc

    command = [pypandoc.get_pandoc_path(), "--sandbox", "--from", format, "--to", "typst"]
    command += ["--wrap", "none", "--lua-filter", str(TEMPLATE / "prose.lua")]
    done = subprocess.run(command, input=text.encode(), capture_output=True)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise ReportError(f"pandoc cannot read the prose: {reason[-1] if reason else 'no reason'}")
    return done.stdout.decode()


# ---------------------------------------------------------------------------------------------
# Links
# ---------------------------------------------------------------------------------------------

LINK = re.compile(r"#link\((?:<([^>]+)>|label\(\"([^\"]+)\"\))\)\[((?:[^\[\]]|\[[^\]]*\])*)\]")
LABEL = re.compile(r"(?:^|[\s\]])<([\w.:-]+)>|#label\(\"([^\"]+)\"\)")


def _check_links(pieces: Sequence[Piece], front: dict[str, Any]) -> None:
    """Refuse a link in the prose that leads nowhere, keep a row's links to runs that are listed.

    Where the report is ``partial``, such a link becomes plain text.
    """
    runs = {run["id"] for run in front.get("runs", [])}
    known = {f"run-{run}" for run in runs} | {name_chapter(piece.chapter) for piece in pieces}
    if "label" in front:
        known |= {"provenance", "what-was-run", "all-runs"}
    for piece in pieces:
        if piece.kind in ("table", "figure"):
            piece.content["id"] = anchor(piece.kind, piece.content["number"])
            known.add(piece.content["id"])
            behind = piece.content.get("runs") or []
            piece.content["runs"] = [[run for run in row if run in runs] for row in behind]
        if piece.kind == "statement":
            known.add(piece.content["id"])
        known |= {one or other for one, other in LABEL.findall(piece.markup)}
    for piece in pieces:
        if piece.kind == "table":
            piece.content["targets"] = [
                [row, column, places[0][1]]
                for row, column, places in piece.content["links"]
                if len(places) == 1 and places[0][1] in known
            ]

        def check(link: re.Match[str], place: str = piece.place) -> str:
            target = link[1] or link[2]
            if target in known:
                return link[0]
            if front["partial"]:
                return f"#[{link[3]}]"
            raise ReportError(
                f"{place}: the link {link[3]!r} leads to #{target}, which is nowhere in the "
                "report; correct the link or number the table or figure"
            )

        piece.markup = LINK.sub(check, piece.markup)


def name_chapter(notebook: str) -> str:
    """The id at which a notebook's chapter begins, as on the page."""
    return f"chapter-{notebook.removesuffix('.ipynb')}"


# ---------------------------------------------------------------------------------------------
# The document
# ---------------------------------------------------------------------------------------------


def _compose(pieces: Sequence[Piece], front: dict[str, Any]) -> tuple[str, list[tuple[int, str]]]:
    """The document's Typst source, and the line at which each piece begins with its place."""
    lines = ['#import "report.typ": *', '#let content = json("content.json")']
    lines += ["#show: report.with(content.front)"]
    places: list[tuple[int, str]] = []

    def add(number: int) -> None:
        piece, content = pieces[number], pieces[number].content
        places.append((len(lines) + 1, piece.place))
        if piece.kind in ("prose", "html"):
            lines.extend(piece.markup.splitlines())
            lines.append("")
        else:
            item = f"content.pieces.at({number})"
            image = f', image("{name}", alt: {item}.alt)' if (name := content.get("file")) else ""
            lines.append(f"#show-{piece.kind}({item}{image})")

    if "label" in front:
        lines.append("#title-page(content.front)[")
        for number, piece in enumerate(pieces):
            if piece.front:
                add(number)
        lines += ["]", "#pagebreak()", "#what-was-run(content.front)"]
    chapter = None
    for number, piece in enumerate(pieces):
        if piece.front and "label" in front:
            continue
        if piece.chapter != chapter:
            chapter = piece.chapter
            lines.append(f'#[#metadata(none)#label("{name_chapter(chapter)}")]')
        add(number)
    lines.append("#place.flush()")
    if "label" in front:
        lines += ["#appendix(content.front)"]
    return "\n".join(lines), places


def compile_pdf(
    source: str,
    files: dict[str, bytes],
    content: dict[str, Any],
    places: Sequence[tuple[int, str]],
) -> bytes:
    """Compile a document with the template, its images and its content (as ``content.json``)."""
    import matplotlib
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
                font_paths=[str(Path(matplotlib.get_data_path()) / "fonts" / "ttf")],
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
    return f"{place} cannot be typeset: {fault.splitlines()[0]}"
