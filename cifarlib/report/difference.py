"""What differs between two reports: those of any two builds, or one and the render before it.

A page holds what it shows as one block of JSON (``Shown``), so that builds of different versions of
this program can be compared.
"""

import hashlib
import math
import re
import typing
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pydantic
from pydantic import Field

from cifarlib.checking import Strict, read_bytes
from cifarlib.errors import ConfigError
from cifarlib.formatting import say_count, signed
from cifarlib.runs.provenance import name_commit
from cifarlib.runs.schema import RunRecord
from cifarlib.runs.store import RecordStore
from cifarlib.study import STUDIES, expand, kept_studies, load_scale, load_study, scale_names

if typing.TYPE_CHECKING:
    from nbformat import NotebookNode

LISTED = 12  # changes of a kind that are listed
LISTED_IN_CHAPTER = 6
FRONT = ""  # in place of a chapter: the title page
GONE = ABSENT, DAMAGED = "absent", "damaged"
PENDING = "pending"
RUNS, ORIGINS, VERDICTS, TABLES, FIGURES = KINDS = (
    "Runs", "Versions and devices", "Verdicts", "Tables", "Figures",
)  # fmt: skip
ACCURACY = re.compile(r"\b(test|validation|training|ours)\b", re.IGNORECASE)
OTHER = re.compile(r"paper|diff|epoch|time|loss|±|\bp\b", re.IGNORECASE)
BLOCK = re.compile(rb'<script type="application/json" id="shown">(.*?)</script>.*</html>', re.S)


class Table(Strict):
    """A table's cells, as they read."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class Shown(Strict):
    """What a report shows, and the records behind it, as texts."""

    images: int = 10_000  # in the test set
    names: dict[str, str] = Field(default={})  # run id → condition, of each recorded run
    texts: dict[str, dict[str, str]] = Field(default={})  # kind → what (a run: its id) → its text
    tables: dict[str, Table] = Field(default={})  # by number
    chapters: dict[str, str] = Field(default={})  # number of a table, or claim → notebook

    @property
    def page(self) -> bool:
        """Whether there are more than records."""
        return VERDICTS in self.texts


def take(notebook: "NotebookNode", names: Mapping[str, str], records: Iterable[RunRecord]) -> Shown:
    """What a notebook that ``report.join`` made shows, with the records behind it.

    ``names`` are those of the runs by id.
    """
    from cifarlib.report.tables import CONTENT  # here, for builds are compared without pandas

    texts: dict[str, dict[str, str]] = {VERDICTS: {}, FIGURES: {}}
    tables, chapters = {}, {}
    for cell in notebook.cells:
        for data in (output.get("data", {}) for output in cell.get("outputs", [])):
            match data.get(CONTENT):
                case {"kind": "table", "number": what, "columns": columns, "rows": rows}:
                    named = tuple(", ".join(filter(None, levels)) for levels in columns)
                    tables[what] = Table(columns=named, rows=tuple(map(tuple, rows)))
                case {"kind": "figure", "number": number}:
                    what = f"Figure {number}"
                    drawing = data["text/html"].partition("<figcaption>")[0]
                    texts[FIGURES][what] = f"drawing {_digest(drawing)}"
                case {"kind": "claim" | "doubt", "text": text, "where": where, "said": said}:
                    what = f"{text} ({where})"
                    texts[VERDICTS][what] = said
                case _:
                    continue
            chapters[what] = cell.metadata["notebook"]
    recorded = _describe(names, records)
    return recorded.model_copy(
        update={"texts": recorded.texts | texts, "tables": tables, "chapters": chapters}
    )


def _describe(names: Mapping[str, str], records: Iterable[RunRecord]) -> Shown:
    """Outcomes and origins of records."""
    images, runs = 0, {}
    origins: dict[str, set[str]] = {}
    for record in records:
        accuracy, origin = record.accuracy("test"), record.provenance
        outcome = "diverged" if accuracy is None else f"test {accuracy:.2f} %"
        runs[record.run_id] = f"{outcome}, result {_digest(record.result.model_dump_json())}"
        images = max(images, record.config.data.test_size)
        described = dict(origin.versions) | {
            "device": origin.device,
            "threads": str(origin.threads),
            "engine": str(record.engine),
            "commit": name_commit(origin.commit, origin.dirty).removeprefix("commit "),
        }
        for key, value in described.items():
            origins.setdefault(key, set()).add(value)
    made_with = {key: ", ".join(sorted(values)) for key, values in origins.items()}
    return Shown(
        images=images or 10_000,
        names={run: names.get(run, run) for run in runs},
        texts={RUNS: runs, ORIGINS: made_with},
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def embed(page: bytes, shown: Shown) -> bytes:
    """A page with what it shows as a block of JSON at its end."""
    before, end, after = page.rpartition(b"</body>")
    content = shown.model_dump_json().replace("<", "\\u003c")
    block = f'<script type="application/json" id="shown">{content}</script>\n'
    return before + block.encode() + end + after


def read(place: Path, tell: Callable[[str], object] = lambda _: None) -> Shown:
    """What a build folder or a page shows; raises ``ConfigError`` for what is neither.

    Damaged records count as missing; ``tell`` is called with a sentence about each.
    """
    if not place.is_dir():
        return _read_page(place)
    store, page = RecordStore(place), place / "report.html"
    if not store.runs.is_dir() and not page.is_file():
        raise ConfigError(
            f"{place} is no build folder: it has neither runs/ nor report.html; name one that "
            "has, such as build/lite"
        )
    runs = store.run_ids()
    records, faults = store.read_runs(runs)
    if faults and not records:
        raise ConfigError(f"{faults[0]}; a sweep sets it aside, then compare again")
    for fault in faults:
        tell(f"{fault}; it counts as missing")
    damaged = {run: DAMAGED for run in runs if run not in records}
    shown = _read_page(page) if page.is_file() else Shown()
    recorded = _describe(_name_runs(records, shown.names, place), records.values())
    texts = shown.texts | recorded.texts | {RUNS: recorded.texts[RUNS] | damaged}
    changed = {"images": recorded.images, "names": recorded.names, "texts": texts}
    return shown.model_copy(update=changed)


def _read_page(path: Path) -> Shown:
    try:
        found = BLOCK.search(read_bytes(path))
        return Shown.model_validate_json(found[1] if found else b"")
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name two builds") from error
    except pydantic.ValidationError as error:
        raise ConfigError(
            f"{path} is damaged or no page of this version; make it again with cifarlib report"
        ) from error


def _name_runs(
    records: Mapping[str, RunRecord], known: Mapping[str, str], folder: Path
) -> dict[str, str]:
    """The conditions' names by run id; where no study has a run, its settings."""
    names = dict(known)
    for scale in sorted(scale_names(), key=lambda scale: scale != folder.resolve().name):
        for path in (STUDIES | kept_studies(folder)).values():
            if records.keys() <= names.keys():
                return names
            try:
                study = load_study(path)
                conditions = expand(study, load_scale(scale, study=study))
            except ConfigError:  # a study of one's own need not fit every scale
                continue
            for condition in conditions:
                names.setdefault(condition.run_id, condition.name)
    for run in records.keys() - names.keys():
        used = records[run].config
        names[run] = (
            f"{used.model.name}, {used.optimizer.name}, learning rate {used.learning_rate:g}, "
            f"weight decay {used.weight_decay:g}, batch size {used.batch_size}, seed {used.seed}"
        )
    return names


@dataclass(frozen=True)
class Change:
    """A text that is another one now; “absent” stands for none."""

    kind: str
    name: str
    before: str
    after: str
    chapter: str = FRONT
    column: str = ""  # of a table's cell

    def __str__(self) -> str:
        return f"{self.name}: {self.before} → {self.after}"


def compare(first: Shown, second: Shown) -> list[Change]:
    """What differs, kind by kind; where one has no page, the records alone are compared."""
    names = {run: f"{name} ({run[:8]})" for run, name in (second.names | first.names).items()}
    changes: list[Change] = []
    for kind in KINDS:
        if kind == TABLES and first.page and second.page:
            for number in dict.fromkeys([*first.tables, *second.tables]):
                old, new = first.tables.get(number), second.tables.get(number)
                chapter = second.chapters.get(number, FRONT)
                changes += _compare_tables(f"Table {number}", old, new, chapter)
        elif kind in first.texts and kind in second.texts:
            for what, before, after in _differ(first.texts[kind], second.texts[kind]):
                chapter = second.chapters.get(what, FRONT)
                changes.append(Change(kind, names.get(what, what), before, after, chapter))
    return changes


def _differ(old: Mapping[Any, str], new: Mapping[Any, str]) -> Iterator[tuple[Any, str, str]]:
    for key in dict.fromkeys([*old, *new]):
        before, after = old.get(key, ABSENT), new.get(key, ABSENT)
        if before != after:
            yield key, before, after


def _compare_tables(
    name: str, old: Table | None, new: Table | None, chapter: str
) -> Iterator[Change]:
    """Cell by cell; of a table that only one has, nothing more."""
    if old is None or new is None:
        before, after = (ABSENT if table is None else "shown" for table in (old, new))
        yield Change(TABLES, name, before, after, chapter)
        return
    depth = 1  # cells by which a row is known: as many as tell all rows apart
    while depth < len(old.columns) and any(
        len({row[:depth] for row in table.rows}) < len(table.rows) for table in (old, new)
    ):
        depth += 1
    cells = (
        {
            (", ".join(row[:depth]), column): text
            for row in table.rows
            for column, text in zip(table.columns, row, strict=False)
        }
        for table in (old, new)
    )
    for (row, column), before, after in _differ(*cells):
        yield Change(TABLES, f"{name}, row {row}, {column}", before, after, chapter, column)


def tell(changes: Sequence[Change], listed: int = LISTED) -> list[str]:
    """The changes in lines of text; of each kind the first ``listed``, all where it is 0."""
    lines = []
    for kind in KINDS:
        own = [f"  {change}" for change in changes if change.kind == kind]
        lines += [f"{kind}: {len(own)}"] * bool(own) + own[: listed or None]
        if listed and len(own) > listed:
            lines.append(f"  … and {len(own) - listed} more (--all)")
    return lines or ["no difference"]


def sum_up(before: Shown, now: Shown) -> dict[str, list[str]]:
    """Chapter → sentences: runs, accuracies that moved by more than noise, verdicts, versions."""
    changes = compare(before, now)
    both = [c for c in changes if c.chapter and ABSENT not in (c.before, c.after)]
    filled = [c for c in both if c.kind == TABLES and c.before == PENDING]
    flipped = [c for c in both if c.kind == VERDICTS]
    moved = [
        (c, f"moved by more than noise: {c} ({signed(1)(points)})")
        for c in both
        if (points := _moved(c, before.images))
    ]
    found = {}
    for chapter in sorted({c.chapter for c in both}):
        number = sum(c.chapter == chapter for c in filled)
        lines = [f"{say_count(number, 'number')} no longer pending"] * bool(number)
        for told in (moved, [(c, str(c)) for c in flipped]):
            own = [line for c, line in told if c.chapter == chapter]
            lines += own[:LISTED_IN_CHAPTER]
            if len(own) > LISTED_IN_CHAPTER:
                lines.append(f"{len(own) - LISTED_IN_CHAPTER} more")
        if lines:
            found[chapter] = lines
    runs = [c for c in changes if c.kind == RUNS]
    added, lost = ([c for c in runs if getattr(c, at) in GONE] for at in ("before", "after"))
    new = (c.name.rpartition("/")[0].partition("/")[0] for c in added if c not in lost)
    stages = Counter(stage or "others" for stage in new)
    by_stage = ", ".join(f"{stage} {number}" for stage, number in sorted(stages.items()))
    counts = [
        (stages.total(), "run", f"added ({by_stage})"),
        (sum(c not in added for c in lost), "run", "no longer recorded"),
        (len(filled), "number", "no longer pending"),
        (len(moved), "number", "moved by more than noise"),
        (len(flipped), "verdict", "changed"),
    ]
    front = [f"{say_count(number, noun)} {what}" for number, noun, what in counts if number]
    # There is another commit every day, which need not mean anything.
    origins = (c for c in changes if c.kind == ORIGINS and c.name != "commit" and before.names)
    front += map(str, origins)
    return found | ({FRONT: front} if front else {})


def _moved(change: Change, images: int) -> float:
    """By how many points an accuracy moved, 0 where test images explain it in 95 of 100 cases."""
    if not ACCURACY.search(change.column) or OTHER.search(change.column):
        return 0.0
    try:
        old, new = (float(text.replace("−", "-")) for text in (change.before, change.after))
    except ValueError:
        return 0.0
    share = min(max(old / 100, 0.0), 1.0)
    noise = 196 * math.sqrt(2 * share * (1 - share) / images)
    return new - old if abs(new - old) > noise else 0.0
