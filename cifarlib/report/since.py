"""What has changed since a report was last rendered from other records, chapter by chapter.

What a page shows is kept in the build folder's state, with what it showed before: a page rendered
again from the same records says the same. Where nothing is kept, nothing is said.
"""

import json
import math
import re
import typing
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cifarlib.checking import parse_json, read_bytes
from cifarlib.formatting import say_count, signed
from cifarlib.report.difference import Build, Table, Verdict, name_rows, say_origins
from cifarlib.runs.store import write_atomically

if typing.TYPE_CHECKING:
    from nbformat import NotebookNode

FRONT = ""  # in place of a chapter: the title page
MOST = 6  # changes of a kind that are told one by one
PENDING = "pending"
ACCURACY = re.compile(r"\b(test|validation|training|ours)\b", re.IGNORECASE)
OTHER = re.compile(r"paper|diff|epoch|time|loss|±|\bp\b", re.IGNORECASE)


@dataclass
class Rendered:
    """What a page shows, and the runs and versions behind it."""

    images: int  # in the test set
    runs: dict[str, str]  # run id → stage, of every recorded run
    versions: dict[str, str]
    tables: dict[str, Table] = field(default_factory=dict)  # by number
    verdicts: dict[str, Verdict] = field(default_factory=dict)  # by id, of claims and doubts
    places: dict[str, str] = field(default_factory=dict)  # number or id → notebook


def take(build: Build) -> Rendered:
    """What a build's page shows, and the runs behind it."""
    records = build.records or {}
    stages = {run: build.runs.get(run, "others").partition("/")[0] for run in records}
    images = max((r.config.data.test_size for r in records.values()), default=10_000)
    versions = say_origins(records.values())
    versions.pop("commit", None)  # there is another one every day, which need not mean anything
    return Rendered(images, stages, versions, build.tables, build.verdicts, build.places)


def find_changes(path: Path, now: Rendered) -> dict[str, list[str]]:
    """What has changed (``compare``) since other records were rendered; nothing the first time."""
    before = next((one for one in _read(path) if one != now), None)
    return compare(before, now) if before else {}


def keep(path: Path, now: Rendered) -> None:
    """Keep what is rendered now, and what was before it from other records."""
    kept = [now, *(one for one in _read(path) if one != now)][:2]
    write_atomically(path, json.dumps([asdict(one) for one in kept]).encode())


def _read(path: Path) -> list[Rendered]:
    """What is kept, newest first; nothing where it is damaged, for it is made again."""
    try:
        return [_load(one) for one in parse_json(read_bytes(path))]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def _load(content: Mapping[str, Any]) -> Rendered:
    tables = {number: Table(**table) for number, table in content["tables"].items()}
    verdicts = {name: Verdict(**verdict) for name, verdict in content["verdicts"].items()}
    return Rendered(**{**content, "tables": tables, "verdicts": verdicts})


def compare(before: Rendered, now: Rendered) -> dict[str, list[str]]:
    """Chapter → sentences: runs, numbers that moved by more than noise, verdicts, versions."""
    found: dict[str, list[str]] = {}
    filled: Counter[str] = Counter()
    for number in (number for number in now.tables if number in before.tables):
        filled[now.places[number]] += _count_filled(before.tables[number], now.tables[number])
    moved = list(_list_moved(before, now))
    flipped = [
        (now.places[name], f"{verdict.text} {before.verdicts[name].said} → {verdict.said}")
        for name, verdict in now.verdicts.items()
        if name in before.verdicts and before.verdicts[name].said != verdict.said
    ]
    for chapter in sorted({*now.places.values()}):
        lines = [f"{say_count(filled[chapter], 'number')} no longer pending"] * bool(
            filled[chapter]
        )
        for changes, what in ((moved, "moved by more than noise"), (flipped, "")):
            own = [line for place, line in changes if place == chapter]
            told = [f"{what}: {line}" if what else line for line in own[:MOST]]
            lines += told + [f"{len(own) - MOST} more"] * (len(own) > MOST)
        if lines:
            found[chapter] = lines
    if front := _sum_up(before, now, len(moved), len(flipped), filled.total()):
        found[FRONT] = front
    return found


def _sum_up(before: Rendered, now: Rendered, moved: int, flipped: int, filled: int) -> list[str]:
    """What has changed in all."""
    lines = []
    new = {run: stage for run, stage in now.runs.items() if run not in before.runs}
    if new:
        stages = Counter(new.values())
        parts = ", ".join(f"{stage} {n}" for stage, n in sorted(stages.items()))
        lines.append(f"{say_count(len(new), 'run')} added ({parts})")
    if gone := len(before.runs.keys() - now.runs.keys()):
        lines.append(f"{say_count(gone, 'run')} no longer recorded")
    if filled:
        lines.append(f"{say_count(filled, 'number')} no longer pending")
    if moved:
        lines.append(f"{say_count(moved, 'number')} moved by more than noise")
    if flipped:
        lines.append(f"{say_count(flipped, 'verdict')} changed")
    for key in dict.fromkeys([*before.versions, *now.versions]):
        old, new_ = before.versions.get(key, "absent"), now.versions.get(key, "absent")
        if old != new_ and before.runs:
            lines.append(f"{key}: {old} → {new_}")
    return lines


def _count_filled(before: Table, now: Table) -> int:
    pairs = (pair for _, _, pair in _pair_cells(before, now))
    return sum(old == PENDING and new != PENDING for old, new in pairs)


def _list_moved(before: Rendered, now: Rendered) -> Iterator[tuple[str, str]]:
    """Chapter and sentence of each accuracy that moved by more than test images can explain."""
    for number in (number for number in now.tables if number in before.tables):
        for row, column, (old, new) in _pair_cells(before.tables[number], now.tables[number]):
            if not ACCURACY.search(column) or OTHER.search(column):
                continue
            try:
                first, second = (float(text.replace("−", "-")) for text in (old, new))
            except ValueError:
                continue
            if abs(second - first) > _noise(first, before.images):
                change = signed(1)(second - first)
                line = f"Table {number}, row {row}, {column}: {old} → {new} ({change})"
                yield now.places[number], line


def _noise(accuracy: float, images: int) -> float:
    """By how much two accuracies in % on other images differ at most, in 95 % of cases."""
    share = min(max(accuracy / 100, 0.0), 1.0)
    return 196 * math.sqrt(2 * share * (1 - share) / images)


def _pair_cells(before: Table, now: Table) -> Iterator[tuple[str, str, tuple[str, str]]]:
    """Row, column and the two texts of each cell that both have; of unambiguous rows only."""
    rows = name_rows(before), name_rows(now)
    if any(len({row[0] for row in table.rows}) < len(table.rows) for table in (before, now)):
        return
    for row, cells in rows[0].items():
        for column, old in cells.items():
            if column in rows[1].get(row, {}):
                yield row, column, (old, rows[1][row][column])


# ---------------------------------------------------------------------------------------------
# In the report
# ---------------------------------------------------------------------------------------------


def insert(notebook: "NotebookNode", changes: Mapping[str, Sequence[str]]) -> "NotebookNode":
    """End chapters of a joined notebook, and its title page, with what has changed."""
    from nbformat import v4

    cells = []
    for number, cell in enumerate(notebook.cells):
        cells.append(cell)
        name = cell.metadata["notebook"]
        following = notebook.cells[number + 1 : number + 2]
        last = not following or following[0].metadata["notebook"] != name
        for chapter, tags, due in ((FRONT, ["front"], number == 0), (name, [], last)):
            if due and chapter in changes:
                metadata = {"notebook": name, "first": False, "tags": tags}
                source = _to_markdown(changes[chapter], "**" if tags else "## ")
                cells.append(v4.new_markdown_cell(source, metadata=metadata))
                cells[-1]["id"] = f"since-{number}-{len(tags)}"
    notebook.cells = cells
    return notebook


def _to_markdown(lines: Sequence[str], mark: str) -> str:
    escaped = (re.sub(r"([\\`*_{}\[\]<>#|$~])", r"\\\1", line) for line in lines)
    head = f"{mark}Since the last render{mark.strip(' #')}"
    return "\n".join([head, "", *(f"- {line}" for line in escaped)])
