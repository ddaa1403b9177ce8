"""One HTML page out of an executed notebook: numbered, linked, checked, and in need of nothing."""

import base64
import re
import typing
import zlib
from collections import Counter
from typing import Any

from cifarlib import paths
from cifarlib.errors import ReportError

if typing.TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag
    from nbformat import NotebookNode

TITLE = "What decides the accuracy of a small residual network on CIFAR-10?"
PLAIN = re.compile(r'<span class="(?:n|p|o|w|bp|fm|nd|ne|py)">([^<]*)</span>')  # no colour
DRAWING = re.compile(r'<img alt="([^"]*)" src="data:image/svg\+xml;base64,([^"]+)"/>')
NEEDLESS = re.compile(r"^.*?(?=<svg)|<metadata>.*?</metadata>|<style.*?</style>| xmlns\S*|\n", re.S)
LETTER = re.compile(r'<path id="(DejaVu[^"]+)"([^>]*)/>')  # as matplotlib defines it
REFERENCE = re.compile(r'(?<=["(]#)([\w.-]+)')
TONES = (  # of matplotlib's colours, and what they are on the page
    ("000000|1a1a1a|262626|333333|404040|4c4c4c|4d4d4d|595959", "text"),
    ("ffffff", "page"),
    ("cccccc", "line"),
    ("d9d9d9|e0e0e0|e5e5e5|e6e6e6", "faint"),
)


def make_page(
    notebook: "NotebookNode",
    front: dict[str, Any] | None = None,
    *,
    title: str = TITLE,
    partial: bool = False,
) -> bytes:
    """A notebook that ``report.join`` made, as one self-contained HTML file with a title page.

    ``front`` is what ``front.describe`` gives. A cell tagged ``front`` is shown on the title page.
    Where the page is ``partial``, a link to what is nowhere on it becomes plain text. Raises
    ``ReportError`` for a dangling link, an id that stands there twice, and anything that would be
    loaded from elsewhere.
    """
    from bs4 import BeautifulSoup

    page, _ = _exporter().from_notebook_node(notebook, {"front": front, "title": title})
    soup = BeautifulSoup(PLAIN.sub(r"\1", page), "html.parser")
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
    return inline_drawings(str(soup)).encode()


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
        ground = "" if chart else ' class="white"'
        tag, _, rest = drawing.partition(">")
        width = 1.15 * float(tag.partition(' width="')[2].partition("pt")[0])  # fills the column
        size = tag.partition(" viewBox=")[2].split('"')[1]
        return (
            f'<div class="scroll drawing" tabindex="0"><svg{ground} viewBox="{size}" '
            f'style="width: min(100%, {width:.0f}pt)" role="img" aria-label="{image[1]}">'
            f"{rest}</div>"
        )

    page = DRAWING.sub(draw, page)
    shapes = "".join(f'<path id="{name}"{shape}/>' for name, shape in sorted(letters.items()))
    glyphs = f'<svg class="letters" aria-hidden="true"><defs>{shapes}</defs></svg>'
    return page.replace("<main", f"{glyphs}<main", 1) if letters else page


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
            if "unnumbered" not in heading.get("class", []) and not heading.find_parent("header"):
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
    for link in soup.select(":is(figure.table, .statement) a[href^='#run-']"):
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


# ---------------------------------------------------------------------------------------------
# What a page must not have
# ---------------------------------------------------------------------------------------------


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
