"""Numbered tables and figures, as notebooks and the report show them."""

import base64
import csv
import html
import io
import re
import urllib.parse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from cifarlib.config import DATASETS
from cifarlib.mixture import find_mixtures
from cifarlib.published import TITLES
from cifarlib.records import Results
from cifarlib.study import Condition

PENDING = "pending"
ABSENT = "–"  # neither the paper nor the study has it
LONG = 32  # characters from which a column of words is broken into lines
WIDE = 12  # columns from which a table is set closer
WORDY = 3  # columns of long words from which they are set narrower

CONTENT = "application/vnd.cifarlib.shown+json"  # MIME type of what the PDF is set from

Format = str | Callable[[Any], str]


@dataclass(frozen=True)
class Shown:
    """Something that a notebook displays: HTML in a browser, text elsewhere.

    ``content`` is the same in plain words and cells, from which the PDF is set.
    """

    html: str
    text: str
    content: dict[str, Any] | None = None

    def _repr_mimebundle_(self, **_: Any) -> dict[str, Any]:
        bundle = {"text/html": self.html, "text/plain": self.text}
        return bundle if self.content is None else bundle | {CONTENT: self.content}


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


# ---------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------


def show_table(
    frame: pd.DataFrame,
    number: str,
    title: str,
    *,
    note: str = "",
    formats: Mapping[Any, Format] | None = None,
    best: Iterable[Any] = (),
) -> Shown:
    """A frame as a numbered table; missing values read “pending”.

    Columns may have two levels, (group, name). ``formats`` gives a column, or every column of a
    second-level name, a format string or function. ``best`` names columns whose largest value
    is marked. ``frame.attrs["runs"]``, a tuple of run ids for each row, makes the row's first
    cell a link to those runs.
    """
    formats = {column: _format_of(column, formats or {}) for column in frame.columns}
    texts, marked = _cell_texts(frame, formats), _best_cells(frame, best)
    label = html.escape(f"Table {number}")
    foot = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return Shown(
        f'<figure class="table" id="{anchor("table", number)}">'
        f'<figcaption><span class="number">{label}</span> {html.escape(title)} '
        f"{link_csv(_csv_rows(frame), anchor('table', number), f'Table {number}')}</figcaption>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"{_table_html(frame, texts, marked)}</div>{foot}</figure>",
        f"Table {number}: {title}\n{frame.to_string(na_rep=PENDING, index=False)}\n{note}",
        {
            "kind": "table",
            "number": number,
            "title": title,
            "note": note,
            "columns": [["", str(c)] if isinstance(c, str) else list(map(str, c)) for c in frame],
            "kinds": [_kind(column) for column in frame.columns],
            "rows": texts,
            "best": sorted(map(list, marked)),
            "runs": [list(runs) for runs in frame.attrs.get("runs", [])],
            "links": [
                [row, column, list(map(list, value.places))]
                for row, values in enumerate(frame.itertuples(index=False, name=None))
                for column, value in enumerate(values)
                if isinstance(value, Links)
            ],
        },
    )


def anchor(kind: str, number: str) -> str:
    """The id of a numbered element, ``table-IV``."""
    return html.escape(f"{kind}-{number}".replace(" ", "-"))


def _format_of(column: Any, formats: Mapping[Any, Format]) -> Format:
    if column in formats:
        return formats[column]
    return formats.get(column[-1], str) if isinstance(column, tuple) else str


def _cell_texts(frame: pd.DataFrame, formats: Mapping[Any, Format]) -> list[list[str]]:
    """What stands in each cell, row by row, as plain text."""

    def text(column: Any, value: Any) -> str:
        if pd.isna(value):
            return PENDING if _kind(column) in ("ours", "") else ABSENT
        if isinstance(value, str):
            return value
        form = formats[column]
        return form.format(value) if isinstance(form, str) else form(value)

    rows = frame.itertuples(index=False, name=None)
    return [[text(c, v) for c, v in zip(frame.columns, row, strict=True)] for row in rows]


def _best_cells(frame: pd.DataFrame, best: Iterable[Any]) -> set[tuple[int, int]]:
    """(row, column) of the largest value of each column in ``best``."""
    marked = set()
    for name in best:
        values = pd.to_numeric(frame[name], errors="coerce")
        column = list(frame.columns).index(name)
        marked |= {(row, column) for row in range(len(frame)) if values.iloc[row] == values.max()}
    return marked


def _table_html(
    frame: pd.DataFrame, texts: Sequence[Sequence[str]], marked: set[tuple[int, int]]
) -> str:
    missing = frame.isna().to_numpy()
    words = [_wording(frame.iloc[:, column]) for column in range(frame.shape[1])]
    behind = frame.attrs.get("runs") or [()] * len(frame)
    folded = _folded(frame)
    for column in folded:
        words[column] = f"{words[column]} folds".strip()
    rows = []
    for row, line in enumerate(texts):
        cells = []
        for column, text in enumerate(map(html.escape, line)):
            kind = [_kind(frame.columns[column]), words[column]]
            if missing[row, column]:
                kind.append("pending")
            if (row, column) in marked:
                text = f"<strong>{text}</strong>"
            if isinstance(value := frame.iat[row, column], Links):
                text = value.html
            if column == 0:
                text = link_runs(text, behind[row])
            beside = _settings([line[c] for c in folded]) if column == 0 else ""
            cells.append(f"<td{_class(*kind)}{beside}>{text}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    head = _head(frame, words, _settings([frame.columns[c][-1] for c in folded]))
    wide = "wide" if frame.shape[1] > WIDE else ""
    wordy = "wordy" if sum("long" in kind for kind in words) > WORDY else ""
    kind = _class("data", wide, wordy)
    return f"<table{kind}><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table>"


def _folded(frame: pd.DataFrame) -> list[int]:
    """Columns of a wide table that on a phone stand under the first: settings, of no group."""
    if frame.columns.nlevels == 1 or frame.shape[1] <= WIDE:
        return []
    return [number for number, (group, _) in enumerate(frame.columns) if number and not group]


def _settings(texts: Sequence[str]) -> str:
    """An attribute for what the style sheet writes under a first cell on a phone."""
    return f' data-settings="{html.escape(" · ".join(texts))}"' if texts else ""


def _class(*names: str) -> str:
    text = " ".join(filter(None, names))
    return f' class="{text}"' if text else ""


def _wording(column: "pd.Series[Any]") -> str:
    """The class of a column of words: set flush left, a long one broken into lines."""
    values = column.dropna()
    if values.empty or not values.map(lambda value: isinstance(value, str | Links)).all():
        return ""
    if pd.to_numeric(values.map(str), errors="coerce").notna().any():
        return ""
    return "text long" if values.map(str).str.len().max() > LONG else "text"


def link_runs(text: str, runs: Sequence[str]) -> str:
    """HTML with a link to the run behind it; several runs are folded into a list."""
    links = [f'<a href="#run-{html.escape(run)}">{html.escape(run[:8])}</a>' for run in runs]
    if len(runs) == 1:
        return f'<a href="#run-{html.escape(runs[0])}">{text}</a>'
    if not runs:
        return text
    return f'<details class="behind"><summary>{text}</summary>{" ".join(links)}</details>'


# What begins with a sign is none where a number follows, and after it nothing or a blank.
_FORMULA = re.compile(r"\A([=@\t\r]|[+-](?![\d.]+(\s|\Z)))")


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


def _csv_rows(frame: pd.DataFrame) -> list[list[str]]:
    """Head and rows of a frame: numbers to ten digits, nothing where a value is missing."""

    def text(value: Any) -> str:
        if pd.isna(value):
            return ""
        return f"{value:.10g}" if isinstance(value, float) else str(value)

    columns = [c if isinstance(c, tuple) else (c,) for c in frame.columns]
    head = [", ".join(str(part) for part in column if part) for column in columns]
    rows = frame.itertuples(index=False, name=None)
    return [head, *(list(map(text, row)) for row in rows)]


def _kind(column: Any) -> str:
    """The class of a column's cells in the style sheet."""
    last = column[-1] if isinstance(column, tuple) else column
    return {"diff.": "difference"}.get(last, last) if last in ("paper", "ours", "diff.") else ""


def _head(frame: pd.DataFrame, words: Sequence[str], settings: str = "") -> str:
    def cell(name: Any, kind: str, more: str = "") -> str:
        return f'<th scope="col"{more}{_class(kind)}>{html.escape(str(name))}</th>'

    if frame.columns.nlevels == 1:
        return f"<tr>{''.join(map(cell, frame.columns, words))}</tr>"
    first, second = [], []
    columns = zip(frame.columns, words, strict=True)
    for group, members in groupby(columns, key=lambda item: item[0][0]):
        named = [(name, kind) for (_, name), kind in members]
        if not group:  # a column without a group spans both rows
            for name, kind in named:
                first.append(cell(name, kind, f' rowspan="2"{"" if first else settings}'))
        else:
            text = html.escape(str(group))
            first.append(
                f'<th scope="colgroup" colspan="{len(named)}" style="text-align:center">{text}</th>'
            )
            second += [cell(name, kind) for name, kind in named]
    return f"<tr>{''.join(first)}</tr><tr>{''.join(second)}</tr>"


def show_comparison(
    frame: pd.DataFrame,
    number: str,
    results: Results,
    conditions: Iterable[Condition],
    *,
    decimals: int = 1,
) -> Shown:
    """A table of the paper beside ours, with its title, the runs behind it, and the best marked."""
    formats: dict[Any, Format] = {
        "paper": fixed(decimals),
        "ours": fixed(decimals),
        "diff.": signed(decimals),
        ("", "LR"): "{:g}",
        ("", "L2"): "{:g}",
    }
    for name in ("paper", "ours"):
        formats |= {("Epoch", name): "{:.0f}", ("Time, s", name): "{:.1f}"}
    return show_table(
        frame,
        number,
        TITLES[number],
        note=describe_runs(results, conditions),
        formats=formats,
        best=[c for c in frame.columns if c in (("Test", "paper"), ("Test", "ours"))],
    )


def fixed(decimals: int) -> Callable[[float], str]:
    """Formats a number with a true minus: 12.3, −0.4."""

    def form(value: float) -> str:
        text = f"{value:.{decimals}f}"
        return text.lstrip("-") if float(text) == 0 else text.replace("-", "−")

    return form


def signed(decimals: int) -> Callable[[float], str]:
    """Formats a difference: +1.2, −0.4, 0.0."""

    def form(value: float) -> str:
        text = f"{value:+.{decimals}f}".replace("-", "−")
        return text[1:] if float(f"{value:.{decimals}f}") == 0 else text

    return form


# ---------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------


def draw_svg(figure: Figure) -> str:
    """A figure as SVG, the same bytes every time, at about half of matplotlib's size; closes it.

    Blanks and comments go, and coordinates from 10 on keep a hundredth of a point.
    """
    with plt.rc_context({"svg.hashsalt": "cifarlib"}):
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)
    text = re.sub(r"<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    text = re.sub(r">\s+<", "><", text)
    text = re.sub(r"\s*\n\s*(?=[MLQCZz])", "", text)
    return re.sub(r"(\d{2}\.\d{2})\d+", r"\1", text)


def show_figure(
    figure: Figure | None, number: str, title: str, *, alt: str, note: str = ""
) -> Shown:
    """A matplotlib figure as a numbered vector image; None, for want of records, reads “pending”.

    The figure is closed. ``alt`` says in words what the image shows.
    """
    if figure is None:
        body = f'<p class="pending">{PENDING}</p>'
    else:
        source = base64.b64encode(draw_svg(figure).encode()).decode()
        body = f'<img src="data:image/svg+xml;base64,{source}" alt="{html.escape(alt)}">'
    foot = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return Shown(
        f'<figure class="plot" id="{anchor("figure", number)}">{body}'
        f'<figcaption><span class="number">Figure {html.escape(number)}</span> '
        f"{html.escape(title)}</figcaption>{foot}</figure>",
        f"Figure {number}: {title}\n{alt if figure else PENDING}\n{note}",
        {
            "kind": "figure",
            "number": number,
            "title": title,
            "note": note,
            "alt": alt,
            "drawn": figure is not None,
        },
    )


# ---------------------------------------------------------------------------------------------
# Captions and sentences
# ---------------------------------------------------------------------------------------------


def show_text(text: str) -> Shown:
    """Computed sentences, as a paragraph."""
    return Shown(f'<p class="computed">{html.escape(text)}</p>', text)


def describe_data(results: Results) -> str:
    """Which data set a table or figure of the data stage shows."""
    info = DATASETS[results.scale.data.name]
    name = info.title if info.real else f"{info.title}, not CIFAR-10"
    name = f"{name[0].upper()}{name[1:]}"
    return f"{name} ({info.train_images:,} training images); fingerprint {info.fingerprint}."


def describe_runs(results: Results, conditions: Iterable[Condition]) -> str:
    """What stands behind a table or figure: runs, seeds, data, epochs, device, selection.

    Where the records behind it differ in what all should have in common, that is said, too.
    """
    conditions = list(conditions)
    records = [results.records[c.run_id] for c in conditions if c.run_id in results.records]
    total = len({c.run_id for c in conditions})
    done = len({r.run_id for r in records})
    data = results.scale.data
    info = DATASETS[data.name]
    name = info.title if info.real else f"{info.title}, not CIFAR-10"
    sizes = [f"{n:,}" for n in sorted({c.config.data.train_size for c in conditions})]
    recorded = [c for c in conditions if c.run_id in results.records]
    seeds = sorted({c.config.seed for c in recorded or conditions})
    parts = [
        f"{done} of {total} runs" if total != 1 else f"{done} of 1 run",
        f"one seed ({seeds[0]})" if len(seeds) == 1 else f"means over {len(seeds)} seeds",
        f"{name}: {' or '.join(sizes)} training and {data.test_size:,} test images",
    ]
    epochs = sorted({c.config.epochs for c in conditions})
    parts.append(f"{' or '.join(map(str, epochs))} epochs")
    if records:
        devices = sorted({r.provenance.device for r in records})
        parts.append(f"{results.scale.precision} on {', '.join(devices)}")
    chosen = {c.config.protocol.selection for c in conditions} or {results.scale.protocol.selection}
    parts.append(f"accuracies at the epoch chosen on the {' or '.join(sorted(chosen))} set")
    mixed = find_mixtures(results, {record.run_id for record in records})
    return " ".join(["; ".join(parts) + ".", *(f"Mixed: {found.sentence}" for found in mixed)])
