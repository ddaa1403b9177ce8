"""The difference of two builds: runs, versions, cells of tables, figures and verdicts that changed.

A build folder is compared by its records and by its page, ``report.html``; two pages may be
compared alone. What a page shows is taken from the page, so that builds of different versions of
this program can be held against each other.
"""

import hashlib
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cifarlib.checking import read_bytes
from cifarlib.errors import ConfigError
from cifarlib.runs.provenance import name_commit
from cifarlib.runs.schema import RunRecord
from cifarlib.runs.store import RecordStore

if typing.TYPE_CHECKING:
    from bs4 import BeautifulSoup, Tag

SHOWN = 12  # changes of a kind that are told one by one
LEDGER = "C2"  # the table of claims and verdicts


@dataclass
class Table:
    """What a table of a page says: its columns, and its rows of cells."""

    columns: list[str]
    rows: list[list[str]]


@dataclass
class Verdict:
    """A claim or a doubt, and what is said of it."""

    text: str
    said: str


@dataclass
class Build:
    """What is compared of a build folder or a page."""

    name: str
    records: dict[str, RunRecord] | None = None  # by run id; None: only a page was given
    page: bool = False
    runs: dict[str, str] = field(default_factory=dict)  # run id → title, of every run of a page
    tables: dict[str, Table] = field(default_factory=dict)  # by number
    figures: dict[str, str] = field(default_factory=dict)  # number → digest of what is drawn
    verdicts: dict[str, Verdict] = field(default_factory=dict)  # by id, of claims and doubts
    places: dict[str, str] = field(default_factory=dict)  # number or id → notebook
    origin: dict[str, str] = field(default_factory=dict)  # the section on provenance


@dataclass(frozen=True)
class Section:
    """Changes of one kind, a line each."""

    title: str
    changes: list[str]


# ---------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------


def read(place: Path) -> Build:
    """A build folder, or a page; raises ``ConfigError`` for what is neither."""
    if place.is_dir():
        store = RecordStore(place)
        page = place / "report.html"
        if not store.runs.is_dir() and not page.is_file():
            raise ConfigError(
                f"{place} is no build folder: it has neither runs/ nor report.html; name one that "
                "has, such as build/lite"
            )
        records, faults = store.read_runs(store.run_ids())
        if faults:
            raise ConfigError(f"{faults[0]}; a sweep sets it aside, then compare again")
        build = Build(str(place), records)
        return _read_page(page, build) if page.is_file() else build
    if not place.is_file():
        raise ConfigError(f"{place} is not there; name two build folders or two pages")
    return _read_page(place, Build(str(place)))


def _read_page(path: Path, build: Build) -> Build:
    try:
        text = read_bytes(path).decode()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is no page of this program; name a report.html") from error
    return read_page(text, build, path)


def read_page(text: str, build: Build, path: Path) -> Build:
    """What a page shows, added to a build; ``ConfigError``, which names its path, for no page."""
    from bs4 import BeautifulSoup

    soup = BeautifulSoup(text, "html.parser")
    if soup.select_one("header.front") is None:
        raise ConfigError(f"{path} is no page of this program; name a report.html")
    try:
        if "</html>" not in text:
            raise ValueError("the page is cut off")
        _take_page(soup, build)
    except (ValueError, TypeError, KeyError, AttributeError, StopIteration) as error:
        raise ConfigError(f"{path} is damaged; make it again with cifarlib report") from error
    return build


def _take_page(soup: "BeautifulSoup", build: Build) -> None:
    """What is compared of a page; raises any of many errors where tags are broken."""
    build.page = True
    for figure in soup.select("figure.table[id]"):
        build.tables[_number(figure)] = _read_table(figure)
        build.places[_number(figure)] = _place(figure)
    for box in soup.select(".statement[id]"):
        sign = box.select_one(".sign").extract()
        said = _text(sign).partition(" ")[2]
        build.verdicts[str(box["id"])] = Verdict(_text(box.select_one(".stated")), said)
        build.places[str(box["id"])] = _place(box)
    for figure in soup.select("figure.plot[id]"):
        drawn = str(figure.svg or "pending")
        build.figures[_number(figure)] = hashlib.sha256(drawn.encode()).hexdigest()
    for row in soup.select("table.runs tbody tr"):
        build.runs[row.code.get_text()] = _text(row.th)
    for term in soup.select("section.provenance > dl > div"):
        values = term.select("li") or [term.dd]
        build.origin[_text(term.dt)] = "; ".join(map(_text, values))


def _place(tag: "Tag") -> str:
    """The notebook that shows something."""
    cell = tag.find_parent(attrs={"data-notebook": True})
    return str(cell["data-notebook"]) if cell else ""


def _number(figure: "Tag") -> str:
    return str(figure["id"]).partition("-")[2]


def _text(tag: Any) -> str:
    return " ".join(tag.get_text(" ").split()) if tag else ""


def _read_table(figure: "Tag") -> Table:
    for links in figure.select("details.behind"):  # runs behind a row
        links.replace_with(links.summary.get_text())
    rows = [[_text(cell) for cell in row.find_all("td")] for row in figure.select("tbody tr")]
    above, *below = figure.select("thead tr")
    under = iter(below[0].find_all("th") if below else [])
    columns = []
    for cell in above.find_all("th"):
        if span := cell.get("colspan"):  # a group of columns, which are named below it
            columns += [f"{_text(cell)}, {_text(next(under))}" for _ in range(int(str(span)))]
        else:
            columns.append(_text(cell))
    if not all(rows):
        raise ValueError("a row without cells")
    return Table(columns, rows)


# ---------------------------------------------------------------------------------------------
# Comparing
# ---------------------------------------------------------------------------------------------


def compare(first: Build, second: Build) -> list[Section]:
    """What differs, in the order of how much it means; sections without a change are left out.

    Raises ``ConfigError`` where one has records alone and the other a page alone.
    """
    sections = []
    if None in (first.records, second.records) and not (first.page and second.page):
        lacking = second if first.page else first
        raise ConfigError(
            f"{first.name} and {second.name} have nothing in common to compare: {lacking.name} has "
            "no report.html; make it with cifarlib report, or name two build folders"
        )
    if first.records is not None and second.records is not None:
        names = second.runs | first.runs
        sections += [
            Section("Runs", _compare_runs(first.records, second.records, names)),
            Section("Versions and devices", _compare_origins(first.records, second.records)),
        ]
    if first.page and second.page:
        verdicts = [_verdicts(build.tables.get(LEDGER)) for build in (first, second)]
        sections += [
            Section("Conditions", _compare_conditions(first.runs, second.runs)),
            Section("Verdicts", _compare_texts(*verdicts)),
            Section("Tables", _compare_tables(first.tables, second.tables)),
            Section("Figures", _compare_figures(first.figures, second.figures)),
            Section("Provenance", _compare_texts(first.origin, second.origin)),
        ]
    return [section for section in sections if section.changes]


def missing_pages(first: Build, second: Build) -> list[str]:
    """A sentence about each build that has no page though the other has."""
    if first.page == second.page:
        return []
    lacking = second if first.page else first
    return [f"{lacking.name} has no report.html: tables, figures and verdicts are not compared"]


def _compare_runs(
    first: Mapping[str, RunRecord], second: Mapping[str, RunRecord], names: Mapping[str, str]
) -> list[str]:
    def name(run: str) -> str:
        return f"{names[run]} ({run[:8]})" if run in names else run

    lines = [f"only in the first: {name(run)}" for run in sorted(first.keys() - second.keys())]
    lines += [f"only in the second: {name(run)}" for run in sorted(second.keys() - first.keys())]
    for run in sorted(first.keys() & second.keys()):
        if first[run].result != second[run].result:
            before, after = (_outcome(build[run]) for build in (first, second))
            lines.append(f"{name(run)}: test {before} → {after}")
    return lines


def _outcome(record: RunRecord) -> str:
    accuracy = record.accuracy("test")
    return "diverged" if accuracy is None else f"{accuracy:.2f} %"


def _compare_origins(first: Mapping[str, RunRecord], second: Mapping[str, RunRecord]) -> list[str]:
    return _compare_texts(say_origins(first.values()), say_origins(second.values()))


def say_origins(records: Iterable[RunRecord]) -> dict[str, str]:
    """What all records of a build were made with, all its values in one text."""
    found: dict[str, set[str]] = {}
    for record in records:
        origin = record.provenance
        described = dict(origin.versions) | {
            "device": origin.device,
            "threads": str(origin.threads),
            "engine": str(record.engine),
            "commit": name_commit(origin.commit, origin.dirty).removeprefix("commit "),
        }
        for key, value in described.items():
            found.setdefault(key, set()).add(value)
    return {key: ", ".join(sorted(values)) for key, values in found.items()}


def _compare_texts(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    keys = dict.fromkeys([*first, *second])
    return [
        f"{key}: {first.get(key, 'absent')} → {second.get(key, 'absent')}"
        for key in keys
        if first.get(key) != second.get(key)
    ]


def _compare_conditions(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    """Runs of one study that the other has not, recorded or pending."""
    gone = [f"only in the first: {first[run]} ({run[:8]})" for run in first if run not in second]
    new = [f"only in the second: {second[run]} ({run[:8]})" for run in second if run not in first]
    return gone + new


def _verdicts(ledger: Table | None) -> dict[str, str]:
    """Claim → verdict and our value; nothing where there is no such ledger."""
    if ledger is None or not {"Claim", "Verdict", "Ours"} <= set(ledger.columns):
        return {}
    claim, verdict, ours = map(ledger.columns.index, ("Claim", "Verdict", "Ours"))
    return {row[claim]: f"{row[verdict]} ({row[ours]})" for row in ledger.rows}


def _compare_tables(first: Mapping[str, Table], second: Mapping[str, Table]) -> list[str]:
    lines = []
    for number in dict.fromkeys([*first, *second]):
        if number == LEDGER:
            continue
        if number not in first or number not in second:
            lines.append(f"Table {number}: only in the {'first' if number in first else 'second'}")
            continue
        found = _compare_table(first[number], second[number])
        lines += [f"Table {number}, {line}" for line in found]
    return lines


def _compare_table(first: Table, second: Table) -> list[str]:
    """Cell by cell, rows known by their first cell and columns by their names."""
    lines = _compare_names("column", first.columns, second.columns)
    rows = name_rows(first), name_rows(second)
    lines += _compare_names("row", list(rows[0]), list(rows[1]))
    for name in (name for name in rows[0] if name in rows[1]):
        for column, before in rows[0][name].items():
            after = rows[1][name].get(column, before)
            if before != after:
                lines.append(f"row {name}, {column}: {before} → {after}")
    return lines


def _compare_names(what: str, first: Sequence[str], second: Sequence[str]) -> list[str]:
    gone = [f"{what} {name}: only in the first" for name in first if name not in second]
    return gone + [f"{what} {name}: only in the second" for name in second if name not in first]


def name_rows(table: Table) -> dict[str, dict[str, str]]:
    """First cell → column → cell; equal first cells are counted."""
    rows: dict[str, dict[str, str]] = {}
    for row in table.rows:
        name, times = row[0], 1
        while name in rows:
            times += 1
            name = f"{row[0]} ({times})"
        rows[name] = dict(zip(table.columns, row, strict=False))
    return rows


def _compare_figures(first: Mapping[str, str], second: Mapping[str, str]) -> list[str]:
    lines = []
    for number in dict.fromkeys([*first, *second]):
        before, after = first.get(number), second.get(number)
        if before is None or after is None:
            lines.append(f"Figure {number}: only in the {'second' if before is None else 'first'}")
        elif before != after:
            lines.append(f"Figure {number} is drawn differently")
    return lines


# ---------------------------------------------------------------------------------------------
# Telling
# ---------------------------------------------------------------------------------------------


def tell(sections: Sequence[Section], shown: int = SHOWN) -> list[str]:
    """The differences in lines of text; of each kind the first ``shown``, all where it is 0."""
    lines = []
    for section in sections:
        lines.append(f"{section.title}: {len(section.changes)}")
        told = section.changes[: shown or None]
        lines += [f"  {change}" for change in told]
        if left := len(section.changes) - len(told):
            lines.append(f"  … and {left} more (--all)")
    return lines or ["no difference"]
