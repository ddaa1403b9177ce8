"""Tables as HTML: cells as text, links to the runs behind a row, and the table as a CSV file."""

import csv
import html
import io
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import pandas as pd

from cifarlib.formatting import fixed, signed
from cifarlib.runs.frames import SETTINGS

CONTENT = "application/vnd.cifarlib.shown+json"  # what is shown, as cells and words
PENDING = "pending"
ABSENT = "–"  # neither the paper nor the study has it
LONG = 32  # characters from which a column of words is broken into lines
MANY = 12  # rows from which groups of them are ruled off
DECIMALS = {"Epoch": 0, "Time, s": 1}  # of a group of columns, whatever the table's decimals

Format = str | Callable[[Any], str]


@dataclass(frozen=True)
class Links:
    """A table's cell of links to places in the report: (text, id) pairs."""

    places: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        return ", ".join(text for text, _ in self.places)

    @property
    def html(self) -> str:
        """The links, one a line."""
        links = (f'<a href="#{html.escape(i)}">{html.escape(t)}</a>' for t, i in self.places)
        return ", <br>".join(links)


def choose_format(column: Any, formats: Mapping[Any, Format], decimals: int) -> Format:
    """How a column is written: as asked for by its name or its second-level name, or by kind."""
    group, name = name_levels(column)
    if asked := formats.get(column) or formats.get(name):
        return asked
    digits = DECIMALS.get(group, decimals)
    kind = column_kind(column)
    form = signed(digits) if kind == "difference" else fixed(digits) if kind else _plain
    return lambda value: form(value) if isinstance(value, float) else str(value)


def _plain(value: float) -> str:
    """A setting as it is, a longer number to four digits."""
    text = str(value)
    return (text if len(text) <= 6 else f"{value:.4g}").replace("-", "−")


def rows_behind(frame: pd.DataFrame) -> list[tuple[str, ...]]:
    """The ids of the runs behind each row: ``frame.attrs["runs"]``, a list, or by index label."""
    runs = frame.attrs.get("runs") or [()] * len(frame)
    if isinstance(runs, Mapping):
        return [tuple(runs.get(label, ())) for label in frame.index]
    return list(map(tuple, runs))


def name_rows(frame: pd.DataFrame) -> pd.DataFrame:
    """A frame whose index has names has them as its first columns, unless they are columns."""
    named = [name for name in frame.index.names if name is not None and name not in frame.columns]
    if not named or frame.columns.nlevels > 1:
        return frame
    shown = frame.reset_index(named).reset_index(drop=True)
    for key in ("runs", "states"):
        if isinstance(known := frame.attrs.get(key), Mapping):
            places = enumerate(frame.index)
            shown.attrs[key] = {place: known[label] for place, label in places if label in known}
    return shown


def cell_texts(
    frame: pd.DataFrame, formats: Mapping[Any, Format], decimals: int
) -> list[list[str]]:
    """What stands in each cell, row by row, as plain text.

    A missing value of ours reads pending, or what ``frame.attrs["states"]`` says of its row; a
    setting that a run does not have reads as absent.
    """
    states = frame.attrs.get("states", {})
    forms = [choose_format(column, formats, decimals) for column in frame]
    kinds = ["setting" if column in SETTINGS else column_kind(column) for column in frame]

    def text(label: Any, kind: str, form: Format, value: Any) -> str:
        if pd.isna(value):
            return states.get(label, PENDING) if kind in ("ours", "") else ABSENT
        if isinstance(value, str):
            return value
        return form.format(value) if isinstance(form, str) else form(value)

    rows = frame.itertuples(index=True, name=None)
    return [list(map(text, [label] * len(row), kinds, forms, row)) for label, *row in rows]


def best_cells(frame: pd.DataFrame, best: Iterable[Any]) -> set[tuple[int, int]]:
    """(row, column) of the largest value of each column in ``best``.

    A group's name stands for its columns of the paper and of ours.
    """
    columns = list(frame.columns)
    marked = set()
    for name in [best] if isinstance(best, str) else best:
        for column in (name, (name, "paper"), (name, "ours")):
            if column in columns:
                values = pd.to_numeric(frame[column], errors="coerce")
                largest = (values == values.max()).to_numpy().nonzero()[0]
                marked |= {(int(row), columns.index(column)) for row in largest}
    return marked


def table_html(
    frame: pd.DataFrame, texts: Sequence[Sequence[str]], marked: set[tuple[int, int]]
) -> str:
    """A frame whose cells read ``texts`` as an HTML table, the ``marked`` cells in bold."""
    missing = frame.isna().to_numpy()
    words = wordings(frame)
    behind = rows_behind(frame)
    first, shades = _first_of_groups(frame), _shades(frame, texts)
    # On a phone, sentences side by side are stacked under the names of their columns.
    stacked = "text long" in words and frame.columns.nlevels == 1
    rows = []
    for row, line in enumerate(texts):
        cells = []
        for column, text in enumerate(map(html.escape, line)):
            name = frame.columns[column]
            waits = missing[row, column] and text != ABSENT
            kind = [column_kind(name), words[column], "pending" if waits else ""]
            if (row, column) in marked:
                text = f"<strong>{text}</strong>"
            if isinstance(value := frame.iat[row, column], Links):
                text = value.html
            more = shades.get((row, column), "")
            if column == 0:  # names the row
                text = link_runs(text, behind[row])
                cells.append(f'<th scope="row"{_class(*kind)}{more}>{text}</th>')
                continue
            more += f' data-label="{html.escape(str(name))}"' if stacked else ""
            cells.append(f"<td{_class(*kind)}{more}>{text}</td>")
        rows.append(f"<tr{_class('group' if row in first else '')}>{''.join(cells)}</tr>")
    looks = _class("data", "stacked" if stacked else "")
    head = _head(frame, words)
    return f"<table{looks}><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _first_of_groups(frame: pd.DataFrame) -> set[int]:
    """Rows above which a rule is drawn: ``frame.attrs["group"]`` names a column, and it changes."""
    column = frame.attrs.get("group")
    if column not in frame.columns or len(frame) <= MANY:
        return set()
    changes = frame[column].ne(frame[column].shift()).to_numpy()
    return set(changes.nonzero()[0][1:])


def _shades(frame: pd.DataFrame, texts: Sequence[Sequence[str]]) -> dict[tuple[int, int], str]:
    """How strongly each difference is shaded, as a share of its column's largest; none reads 0."""
    shades = {}
    for place, column in enumerate(frame.columns):
        if column_kind(column) == "difference":
            values = pd.to_numeric(frame[column], errors="coerce")
            for row, share in enumerate(values / (values.abs().max() or 1)):
                if share == share and any(digit in texts[row][place] for digit in "123456789"):
                    tone = "more" if share > 0 else "less"
                    shades[row, place] = f' style="--by:{abs(share):.2f};--tone:var(--{tone})"'
    return shades


def _class(*names: str) -> str:
    text = " ".join(filter(None, names))
    return f' class="{text}"' if text else ""


def wordings(frame: pd.DataFrame) -> list[str]:
    """The class of each column of words."""
    return [_wording(column) for _, column in frame.items()]


def _wording(column: "pd.Series[Any]") -> str:
    """The class of a column of words: set flush left, a long one broken into lines."""
    values = column[column.ne("–")].dropna()
    if values.empty or not values.map(lambda value: isinstance(value, str | Links)).all():
        return ""
    if pd.to_numeric(values.map(str), errors="coerce").notna().any():
        return ""
    return "text long" if values.map(str).str.len().max() > LONG else "text"


def link_runs(text: str, runs: Sequence[str]) -> str:
    """HTML with a link to the run behind it; several runs are folded into a list."""
    if not runs:
        return text
    if len(runs) == 1:
        return f'<a href="#run-{html.escape(runs[0])}">{text}</a>'
    links = [f'<a href="#run-{html.escape(run)}">{html.escape(run[:8])}</a>' for run in runs]
    return f'<details class="behind"><summary>{text}</summary>{" ".join(links)}</details>'


# What begins with a sign is none where a number follows, and after it nothing or a blank.
_FORMULA = re.compile(r"\A([=@\t\r]|[+-](?![\d.]+(e[+-]?\d+)?(\s|\Z)))")


def link_csv(rows: Iterable[Sequence[str]], name: str, label: str) -> str:
    """A link that saves rows, the head first, as a CSV file; the page itself carries them.

    A text that a spreadsheet would compute, such as ``=1+1``, gets an apostrophe before it.
    """
    buffer = io.StringIO()
    csv.writer(buffer).writerows([_FORMULA.sub(r"'\g<0>", cell) for cell in row] for row in rows)
    content = urllib.parse.quote(buffer.getvalue(), safe=",;:/()=+")
    return (
        f'<a class="csv" download="{name}.csv" aria-label="{html.escape(label)} as CSV" '
        f'href="data:text/csv;charset=utf-8,%EF%BB%BF{content}">CSV</a>'  # Excel wants the mark
    )


def csv_rows(frame: pd.DataFrame) -> list[list[str]]:
    """Head and rows of a frame: numbers to ten digits, nothing where a value is missing."""

    def text(value: Any) -> str:
        if pd.isna(value):
            return ""
        return f"{value:.10g}" if isinstance(value, float) else str(value)

    head = [", ".join(filter(None, map(str, name_levels(column)))) for column in frame.columns]
    rows = frame.itertuples(index=False, name=None)
    return [head, *(list(map(text, row)) for row in rows)]


def column_kind(column: Any) -> str:
    """The class of a column's cells in the style sheet."""
    name = name_levels(column)[1]
    return {"paper": "paper", "ours": "ours", "diff.": "difference"}.get(name, "")


def name_levels(column: Any) -> tuple[Any, Any]:
    """The group of a column, “” where it has none, and its name."""
    return column if isinstance(column, tuple) else ("", column)


def _head(frame: pd.DataFrame, words: Sequence[str]) -> str:
    def cell(name: Any, kind: str, more: str = "") -> str:
        return f'<th scope="col"{more}{_class(kind)}>{html.escape(str(name))}</th>'

    if frame.columns.nlevels == 1:
        return f"<tr>{''.join(map(cell, frame.columns, words))}</tr>"
    first, second = [], []
    columns = zip(frame.columns, words, strict=True)
    for group, members in groupby(columns, key=lambda item: item[0][0]):
        named = [(name, kind) for (_, name), kind in members]
        if not group:  # a column without a group spans both rows
            first += [cell(name, kind, ' rowspan="2"') for name, kind in named]
        else:
            text, span = html.escape(str(group)), len(named)
            centred = 'style="text-align: center"'  # which JupyterLab does not do by itself
            first.append(f'<th scope="colgroup" colspan="{span}" {centred}>{text}</th>')
            second += [cell(name, kind) for name, kind in named]
    return f"<tr>{''.join(first)}</tr><tr>{''.join(second)}</tr>"
