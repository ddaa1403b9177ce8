"""What has changed since a report was last rendered from other records, chapter by chapter.

What a page shows is kept in the build folder's state, with what it showed before: a page rendered
again from the same records says the same. Where nothing is kept, nothing is said.
"""

import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path

from cifarlib.checking import read_bytes
from cifarlib.report.difference import FRONT, Shown, sum_up
from cifarlib.runs.store import write_atomically

if typing.TYPE_CHECKING:
    from nbformat import NotebookNode


def find_changes(path: Path, now: Shown) -> dict[str, list[str]]:
    """What has changed (``sum_up``) since other records were rendered; nothing the first time."""
    before = next((one for one in _read(path) if one != now), None)
    return sum_up(before, now) if before else {}


def keep(path: Path, now: Shown) -> None:
    """Keep what is rendered now, and what was before it from other records."""
    kept = [now, *(one for one in _read(path) if one != now)][:2]
    write_atomically(path, "\n".join(one.model_dump_json() for one in kept).encode())


def _read(path: Path) -> list[Shown]:
    """What is kept, newest first; nothing where it is damaged, for it is made again."""
    try:
        return [Shown.model_validate_json(line) for line in read_bytes(path).splitlines()]
    except (OSError, ValueError):
        return []


def insert(notebook: "NotebookNode", changes: Mapping[str, Sequence[str]]) -> "NotebookNode":
    """End chapters of a joined notebook, and its title page, with what has changed."""
    from nbformat import v4

    cells = []
    names = [cell.metadata["notebook"] for cell in notebook.cells]
    for number, (cell, name) in enumerate(zip(notebook.cells, names, strict=True)):
        cells.append(cell)
        last = number + 1 == len(names) or names[number + 1] != name
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
