"""One HTML page out of an executed notebook: numbered, linked, checked, and in need of nothing."""

import base64
import html
import re
import sys
import typing
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cifarlib import paths
from cifarlib.checking import shown
from cifarlib.errors import ReportError

if typing.TYPE_CHECKING:
    from nbformat import NotebookNode

TITLE = "What decides the accuracy of a small residual network on CIFAR-10?"
PLAIN = re.compile(r'<span class="(?:n|p|o|w|bp|fm|nd|ne|py)">([^<]*)</span>')  # no colour
DRAWING = re.compile(r'<img alt="([^"]*)" src="data:image/svg\+xml;base64,([^"]+)"/>')
NEEDLESS = re.compile(r"^.*?(?=<svg)|<metadata>.*?</metadata>|<style.*?</style>| xmlns\S*|\n", re.S)
LETTER = re.compile(r'<path id="(DejaVu[^"]+)"([^>]*)/>')  # as matplotlib defines it
REFERENCE = re.compile(r'(?<=["(]#)([\w.-]+)')
WHITE = ' class="white"'
TONES = (  # of matplotlib's colours, and what they are on the page
    ("000000|1a1a1a|262626|333333|404040|4c4c4c|4d4d4d|595959", "text"),
    ("ffffff", "page"),
    ("cccccc", "line"),
    ("d9d9d9|e0e0e0|e5e5e5|e6e6e6", "faint"),
    ("999999|bbbbbb", "bar"),  # below lines in the colour of text
    ("882255", "berry"),
)


def make_page(
    notebook: "NotebookNode",
    front: dict[str, Any],
    *,
    title: str = TITLE,
    partial: bool = False,
) -> bytes:
    """A notebook that ``notebooks.join`` made, as one self-contained HTML file with a title page.

    ``front`` is what ``front.describe`` gives. A cell tagged ``front`` is shown on the title page,
    a figure above the text. Where the page is ``partial``, a link to what is nowhere on it becomes
    plain text. Raises ``ReportError`` for a dangling link, an id that stands there twice, and
    anything that would be loaded from elsewhere.
    """
    from bs4 import BeautifulSoup
    from nbconvert import TemplateExporter

    exporter, resources = make_exporter(), {"front": front, "title": title}
    # Not HTMLExporter's own method, which would parse the page and write it once more.
    page, _ = TemplateExporter.from_notebook_node(exporter, notebook, resources)
    soup = BeautifulSoup(PLAIN.sub(r"\1", page), "html.parser")
    for table in soup.find_all("table"):
        if not table.find_parent(class_="scroll"):
            table.wrap(soup.new_tag("div", attrs={"class": "scroll", "tabindex": "0"}))
    for cell in soup.select(".cells .tag-front"):
        drawn = cell.find("figure", class_="plot")  # above the text
        place: Any = soup.find(id="drawings" if drawn else "highlights")
        place.append(cell.extract())
    _number_sections(soup)
    runs = {run["run_id"]: run["title"] for run in front["runs"]}
    _name_runs(soup, runs)
    known = _check_page(soup, {f"run-{run}" for run in runs})
    for link in soup.find_all("a", href=re.compile("^#.")):
        if link["href"][1:] not in known:
            if not partial and not link.find_parent("header"):
                raise ReportError(
                    f"{_place(link)}: the link {link.get_text()!r} leads to {link['href']}, "
                    "which is nowhere in the report; correct the link or number the table or figure"
                )
            link.unwrap()
    # As it is, for no link, table or number of it has to be changed.
    every_run = exporter.environment.get_template("runs.html.j2").render(resources=resources)
    return inline_drawings(str(soup).replace("<!--every run-->", every_run)).encode()


def make_exporter() -> Any:
    """What turns a notebook into the page; ``ReportError`` where nbconvert's templates lack."""
    from jinja2 import TemplateNotFound
    from nbconvert import HTMLExporter
    from nbconvert.filters import Highlight2HTML
    from traitlets.config import Config

    config = Config()
    config.NbConvertBase.display_data_priority = [
        "text/html", "text/markdown", "image/svg+xml", "image/png", "image/jpeg", "text/plain",
    ]  # fmt: skip
    try:
        exporter = HTMLExporter(
            config=config,
            extra_template_basedirs=[str(paths.TEMPLATES)],
            template_name="report",
            exclude_anchor_links=True,
        )
        exporter.register_filter("highlight_code", Highlight2HTML(pygments_lexer="ipython3"))
        exporter.environment.autoescape = True
        exporter.environment.get_template("base/display_priority.j2")
    except (ValueError, TemplateNotFound) as error:
        raise ReportError(
            "nbconvert's templates are not in share/jupyter of this environment "
            f"({shown(Path(sys.prefix))}); install nbconvert into it, or name their folder in "
            "JUPYTER_PATH"
        ) from error
    return exporter


def inline_drawings(page: str) -> str:
    """A page in which each figure of matplotlib's is drawn in the page's own ink and ground.

    So charts are legible on dark ground. They are also small, for letters are defined once, at the
    page's head. What has no axes, or cells of colour, keeps its white ground.
    """
    letters: dict[str, str] = {}

    def draw(image: re.Match[str]) -> str:
        source = base64.b64decode(image[2]).decode()
        if "Matplotlib" not in source:
            return image[0]
        drawing = NEEDLESS.sub("", source)
        letters.update(LETTER.findall(drawing))
        drawing = LETTER.sub("", drawing).replace("xlink:href", "href")
        drawing = re.sub(r' transform="translate\((\S+) 0\)"/>', r' x="\1"/>', drawing)
        chart = "matplotlib.axis" in drawing and not re.search("QuadMesh|<image", drawing)
        for colour, tone in TONES if chart else ():
            drawing = re.sub(rf"#(?:{colour})\b", f"var(--{tone})", drawing)
        own, used = f"d{zlib.crc32(image[2].encode()):x}-", set(REFERENCE.findall(drawing))
        drawing = REFERENCE.sub(lambda m: m[0] if m[1] in letters else own + m[1], drawing)
        drawing = re.sub(
            r' id="([^"]*)"', lambda m: f' id="{own}{m[1]}"' if m[1] in used else "", drawing
        )
        tag, _, rest = drawing.partition(">")
        size = tag.partition(' viewBox="')[2].partition('"')[0]
        width = 1.15 * float(size.split()[2])  # fills the column
        return (
            f'<div class="scroll drawing" role="group" aria-label="drawing" tabindex="0">'
            f"<svg{'' if chart else WHITE} "
            f'viewBox="{size}" style="width: min(100%, {width:.0f}pt)" '
            f'role="img" aria-label="{image[1]}">{rest}</div>'
        )

    page = DRAWING.sub(draw, page)
    shapes = "".join(f'<path id="{name}"{shape}/>' for name, shape in sorted(letters.items()))
    glyphs = f'<svg class="letters" aria-hidden="true"><defs>{shapes}</defs></svg>'
    return page.replace("<main", f"{glyphs}<main", 1) if letters else page


def _number_sections(soup: Any) -> None:
    """Notebook titles become numbered h2, and so on down; the table of contents names them."""
    from bs4 import BeautifulSoup

    for heading in soup.find(class_="cells").find_all(["h1", "h2", "h3", "h4", "h5"]):
        heading.name = f"h{int(heading.name[1]) + 1}"
    taken = {tag["id"] for tag in soup.find_all(id=True)}
    entries: list[list[str]] = []  # a chapter, then its sections
    chapter = number = ""
    chapters = 0
    for heading in soup.main.find_all(["h2", "h3"]):
        classes = heading.get("class", [])
        if "unlisted" in classes:
            continue
        if heading.name == "h3" and not heading.find_parent(class_="cells"):
            continue  # a part of the title page
        text = heading.get_text(" ", strip=True)
        if not heading.get("id"):
            name = re.sub(r"\W+", "-", text.lower()).strip("-") or "section"
            names = [name, f"{chapter}-{name}", *(f"{name}-{n}" for n in range(2, len(taken) + 3))]
            heading["id"] = next(candidate for candidate in names if candidate not in taken)
            taken.add(heading["id"])
        if heading.name == "h2":
            chapter, number = heading["id"], ""
            apart = heading.find_parent("header") or heading.find_parent(class_="tag-screen")
            if "unnumbered" not in classes and not apart:  # nor what the PDF leaves out
                chapters += 1
                number = str(chapters)
            entries.append([])
        else:
            number = f"{chapters}.{len(entries[-1])}"
        label = f'<span class="section-number">{number}</span> ' if number else ""
        heading.insert(0, BeautifulSoup(label, "html.parser"))
        entries[-1].append(f'<a href="#{heading["id"]}">{label}{html.escape(text)}</a>')
    contents = ""
    for chapter, *sections in entries:
        listed = "".join(f"<li>{section}</li>" for section in sections)
        contents += f"<li>{chapter}{f'<ol>{listed}</ol>' if sections else ''}</li>"
    soup.select_one("nav.contents ol").append(BeautifulSoup(contents, "html.parser"))


def _name_runs(soup: Any, titles: Mapping[str, str]) -> None:
    """Say the name of a run where a link has but its id, else as the link's tooltip."""
    for link in soup.find_all("a", href=re.compile("^#run-")):
        if title := titles.get(link["href"].removeprefix("#run-")):
            if link.find_parent("details", class_="behind"):
                link.string = title
            elif link.find_parent(class_=["table", "statement"]):
                link["title"] = title


def _check_page(soup: Any, runs: Iterable[str]) -> set[str]:
    """The ids of a page; refuses one that stands there twice, and what comes from elsewhere."""
    known = set(runs)
    for tag in soup.find_all(True):
        if name := tag.get("id"):
            if name in known:
                places = dict.fromkeys(map(_place, soup.find_all(id=name)))
                raise ReportError(
                    f"the id {name!r} stands twice in the report ({', '.join(places)}); rename one"
                )
            known.add(name)
        for source in _sources(tag):
            if not source.startswith(("data:", "#")):
                raise ReportError(
                    f"{_place(tag)}: a {tag.name} would be loaded from {source[:80]!r}; "
                    "put it into the page as a data: URI"
                )
    return known


def _sources(tag: Any) -> list[str]:
    """Whatever a browser would load for an element."""
    keys = ["src", "srcset", "poster", "data", "background"]
    if tag.name in ("link", "image", "use", "feimage", "base"):
        keys += ["href", "xlink:href"]
    style = tag.get_text() if tag.name == "style" else tag.get("style", "")
    return [str(tag[key]).strip() for key in keys if tag.has_attr(key)] + [
        source
        for pattern in (r"url\(\s*['\"]?([^'\")]*)", r"@import\s+['\"]([^'\"]*)")
        for source in re.findall(pattern, style, flags=re.IGNORECASE)
    ]


def _place(tag: Any) -> str:
    cell = tag if tag.has_attr("data-notebook") else tag.find_parent(attrs={"data-notebook": True})
    return str(cell["data-notebook"]) if cell else "the report"
