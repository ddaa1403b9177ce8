"""Numbered tables and figures, as notebooks and the report show them."""

import base64
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from cifarlib.config import DATASETS, Condition
from cifarlib.published import TITLES
from cifarlib.records import Results

PENDING = "pending"
ABSENT = "–"  # neither the paper nor the study has it

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
    is marked.
    """
    formats = {column: _format_of(column, formats or {}) for column in frame.columns}
    texts, marked = _cell_texts(frame, formats), _best_cells(frame, best)
    label = html.escape(f"Table {number}")
    foot = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return Shown(
        f'<figure class="table" id="{anchor("table", number)}">'
        f'<figcaption><span class="number">{label}</span> {html.escape(title)}</figcaption>'
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
    rows = []
    for row, line in enumerate(texts):
        cells = []
        for column, text in enumerate(map(html.escape, line)):
            kind = _kind(frame.columns[column])
            if missing[row, column]:
                kind = f"{kind} pending".strip()
            if (row, column) in marked:
                text = f"<strong>{text}</strong>"
            cells.append(f'<td class="{kind}">{text}</td>' if kind else f"<td>{text}</td>")
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<table class="data"><thead>{_head(frame)}</thead><tbody>{"".join(rows)}</tbody></table>'
    )


def _kind(column: Any) -> str:
    """The class of a column's cells in the style sheet."""
    last = column[-1] if isinstance(column, tuple) else column
    return {"diff.": "difference"}.get(last, last) if last in ("paper", "ours", "diff.") else ""


def _head(frame: pd.DataFrame) -> str:
    if frame.columns.nlevels == 1:
        cells = (f'<th scope="col">{html.escape(str(c))}</th>' for c in frame.columns)
        return f"<tr>{''.join(cells)}</tr>"
    first, second = [], []
    for group, members in groupby(frame.columns, key=lambda column: column[0]):
        names = [name for _, name in members]
        if not group:  # a column without a group spans both rows
            first += [f'<th scope="col" rowspan="2">{html.escape(str(n))}</th>' for n in names]
        else:
            text = html.escape(str(group))
            first.append(
                f'<th scope="colgroup" colspan="{len(names)}" style="text-align:center">{text}</th>'
            )
            second += [f'<th scope="col">{html.escape(str(n))}</th>' for n in names]
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
    return lambda value: f"{value:.{decimals}f}".replace("-", "−")


def signed(decimals: int) -> Callable[[float], str]:
    """Formats a difference: +1.2, −0.4, 0.0."""

    def form(value: float) -> str:
        text = f"{value:+.{decimals}f}".replace("-", "−")
        return text[1:] if float(f"{value:.{decimals}f}") == 0 else text

    return form


# ---------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------


def show_figure(
    figure: Figure | None, number: str, title: str, *, alt: str, note: str = ""
) -> Shown:
    """A matplotlib figure as a numbered vector image; None, for want of records, reads “pending”.

    The figure is closed. ``alt`` says in words what the image shows.
    """
    if figure is None:
        body = f'<p class="pending">{PENDING}</p>'
    else:
        with plt.rc_context({"svg.hashsalt": "cifarlib"}):  # the same bytes every time
            buffer = io.BytesIO()
            figure.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
        plt.close(figure)
        source = base64.b64encode(buffer.getvalue()).decode()
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
# Captions
# ---------------------------------------------------------------------------------------------


def describe_data(results: Results) -> str:
    """Which data set a table or figure of the data stage shows."""
    info = DATASETS[results.scale.data.name]
    name = info.title if info.real else f"{info.title}, not CIFAR-10"
    name = f"{name[0].upper()}{name[1:]}"
    return f"{name} ({info.train_images:,} training images); fingerprint {info.fingerprint}."


def describe_runs(results: Results, conditions: Iterable[Condition]) -> str:
    """What stands behind a table or figure: runs, seeds, data, epochs, device, selection."""
    conditions = list(conditions)
    records = [results.records[c.run_id] for c in conditions if c.run_id in results.records]
    total = len({c.run_id for c in conditions})
    done = len({r.run_id for r in records})
    data = results.scale.data
    info = DATASETS[data.name]
    name = info.title if info.real else f"{info.title}, not CIFAR-10"
    seeds = sorted({c.config.seed for c in conditions})
    parts = [
        f"{done} of {total} runs" if total != 1 else f"{done} of 1 run",
        f"one seed ({seeds[0]})" if len(seeds) == 1 else f"means over {len(seeds)} seeds",
        f"{name}: {data.train_size:,} training and {data.test_size:,} test images",
    ]
    epochs = sorted({c.config.epochs for c in conditions})
    parts.append(f"{' or '.join(map(str, epochs))} epochs")
    if records:
        devices = sorted({r.provenance.device for r in records})
        parts.append(f"{results.scale.precision} on {', '.join(devices)}")
    parts.append(f"accuracies at the epoch chosen on the {results.scale.protocol.selection} set")
    return "; ".join(parts) + "."
