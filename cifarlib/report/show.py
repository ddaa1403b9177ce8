"""What a notebook shows: numbered tables and figures, verdicts on claims and doubts, sentences.

Each is a MIME bundle: HTML for the page, text for a terminal, and ``CONTENT``, the same in plain
words and numbers, from which the PDF is set and the verdicts are counted (``verdicts``).
"""

import base64
import html
import io
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from cifarlib.analysis.judges import JUDGED, Judgement
from cifarlib.checking import suggest
from cifarlib.errors import ConfigError
from cifarlib.formatting import say_count, say_p
from cifarlib.paper.statements import Statement, read_statements
from cifarlib.report.tables import (
    CONTENT,
    PENDING,
    Format,
    Links,
    best_cells,
    cell_texts,
    column_kind,
    csv_rows,
    link_csv,
    link_runs,
    name_levels,
    name_rows,
    rows_behind,
    table_html,
    wordings,
)
from cifarlib.report.verdicts import SIGNS
from cifarlib.runs.results import Results

__all__ = ["Links", "Shown", "answer", "claim", "doubt", "figure", "table", "text"]
__dir__ = __all__.copy  # what a notebook completes


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


def anchor(kind: str, number: str) -> str:
    """The id of a numbered element, ``table-IV``."""
    return html.escape(f"{kind}-{number}".replace(" ", "-"))


def text(sentences: str) -> Shown:
    """Computed sentences, as a paragraph."""
    return Shown(f'<p class="computed">{html.escape(sentences)}</p>', sentences)


def answer(place: int, topic: str, sentence: str, results: Results) -> Shown:
    """A computed sentence that answers the title's question, shown where its evidence is.

    The first screen repeats them in the order of ``place``, each after its ``topic``. Images
    that are not CIFAR-10's answer nothing.
    """
    said = sentence if results.real else NO_ANSWER
    told = f"<strong>{html.escape(topic)}.</strong> {html.escape(said)}"
    line = f'<p class="computed answer" id="answer-{place}">{told}</p>'
    content = {"kind": "answer", "id": f"answer-{place}", "topic": topic, "text": sentence}
    return Shown(line, f"{topic}. {said}", content if results.real else None)


def table(
    frame: pd.DataFrame,
    number: str,
    title: str,
    *,
    note: str = "",
    formats: Mapping[Any, Format] | None = None,
    decimals: int = 1,
    best: str | Iterable[Any] = (),
) -> Shown:
    """A frame as a numbered table; missing values read “pending”.

    Columns may have two levels, (group, name); columns named “paper”, “ours” and “diff.” have
    ``decimals``. ``formats`` gives a column, or every column of a second-level name, a format
    string or function instead. ``best`` names columns, or groups of paper and ours, whose largest
    value is marked. ``frame.attrs["runs"]``, the ids of the runs behind each row (a list, or by
    index label), makes the row's first cell a link to them; ``frame.attrs["states"]`` says by
    index label what a missing value reads instead, such as “diverged”.
    """
    frame = name_rows(frame)
    texts = cell_texts(frame, formats or {}, decimals)
    marked = best_cells(frame, best)
    label = html.escape(f"Table {number}")
    foot = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return Shown(
        f'<figure class="table" id="{anchor("table", number)}">'
        f'<figcaption><span class="number">{label}</span> {html.escape(title)} '
        f"{link_csv(csv_rows(frame), anchor('table', number), f'Table {number}')}</figcaption>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"{table_html(frame, texts, marked)}</div>{foot}</figure>",
        f"Table {number}: {title}\n{frame.to_string(na_rep=PENDING, index=False)}\n{note}",
        {
            "kind": "table",
            "number": number,
            "title": title,
            "note": note,
            "columns": [list(map(str, name_levels(column))) for column in frame],
            "kinds": [column_kind(column) for column in frame.columns],
            "words": wordings(frame),
            "rows": texts,
            "best": sorted(map(list, marked)),
            "runs": list(map(list, rows_behind(frame))),
            "links": [
                [row, column, list(map(list, value.places))]
                for row, values in enumerate(frame.itertuples(index=False, name=None))
                for column, value in enumerate(values)
                if isinstance(value, Links)
            ],
        },
    )


def figure(drawn: Any, number: str, title: str, *, alt: str, note: str = "") -> Shown:
    """A matplotlib figure, or seaborn's grid of panels, as a numbered vector image.

    None, for want of records, reads “pending”. The figure is closed. ``alt`` says in words what
    the image shows.
    """
    if drawn is None:
        body = f'<p class="pending">{PENDING}</p>'
    else:
        source = base64.b64encode(draw_svg(getattr(drawn, "figure", drawn)).encode()).decode()
        body = f'<img src="data:image/svg+xml;base64,{source}" alt="{html.escape(alt)}">'
    foot = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return Shown(
        f'<figure class="plot" id="{anchor("figure", number)}">{body}'
        f'<figcaption><span class="number">Figure {html.escape(number)}</span> '
        f"{html.escape(title)}</figcaption>{foot}</figure>",
        f"Figure {number}: {title}\n{alt if drawn is not None else PENDING}\n{note}",
        {
            "kind": "figure",
            "number": number,
            "title": title,
            "note": note,
            "alt": alt,
            "drawn": drawn is not None,
        },
    )


def draw_svg(drawn: Figure) -> str:
    """A figure as SVG, the same bytes every time, at about half of matplotlib's size; closes it.

    Blanks and comments go, and coordinates from 10 on keep a hundredth of a point.
    """
    with plt.rc_context({"svg.hashsalt": "cifarlib"}):
        buffer = io.StringIO()
        drawn.savefig(buffer, format="svg", bbox_inches="tight", metadata={"Date": None})
    plt.close(drawn)
    source = re.sub(r"<!--.*?-->", "", buffer.getvalue(), flags=re.DOTALL)
    source = re.sub(r">\s+<", "><", source)
    source = re.sub(r"\s*\n\s*(?=[MLQCZz])", "", source)
    return re.sub(r"(\d{2}\.\d{2})\d+", r"\1", source)


NEEDS_IMAGES = "The images are not CIFAR-10's: no claim is judged on them."
NO_ANSWER = "The images are not CIFAR-10's: they do not answer the title's question."
NEEDS_BUDGET = "Absolute numbers are judged only at the paper's budget."


def claim(
    id: str,
    judgement: Judgement,
    results: Results,
    *,
    paper: str = "",
    runs: Iterable[str] = (),
) -> Shown:
    """A claim of the paper (``paper.claims``) with the verdict on it; ``paper`` is its evidence.

    ``runs`` are the ids of what a judge saw that was given numbers alone.
    On images that are not CIFAR-10's the claim is not judged. Below the paper's budget a claim
    about an absolute number is pending, and every other verdict is provisional.
    """
    statement = _find("claims", id)
    if not isinstance(judgement, Judgement):
        kind = type(judgement).__name__
        raise ConfigError(
            f"claim {id!r}: a {kind} is no judgement; give what a judge says, such as "
            "judge.positive(pairs)"
        )
    verdict, reason = str(judgement.verdict), judgement.reason
    if not results.real:
        verdict, reason = "not judged", NEEDS_IMAGES
    elif statement.budget and results.reduced and verdict != "not tested":
        reason = f"{NEEDS_BUDGET} {reason}".strip() if verdict == "pending" else NEEDS_BUDGET
        verdict = "pending"
    judged = verdict in JUDGED
    behind = list(dict.fromkeys(runs)) or list(judgement.runs)
    at = ", at the paper's own budget" if judged and results.is_own_budget else ""
    p = judgement.p if judged and judgement.p is not None else math.nan
    content = {
        "verdict": verdict,
        "provisional": judged and results.reduced and bool(judgement.n or behind),
        "paper": paper,
        "ours": judgement.ours + at,
        "interval": judgement.interval,
        "p": None if math.isnan(p) else p,
        "n": judgement.n,
        "reason": reason,
        "runs": behind,
    }
    return _show_statement("claim", statement, content)


def doubt(id: str, confirmed: bool | None, evidence: str = "") -> Shown:
    """A doubt about the paper (``paper.doubts``) with what code found.

    ``confirmed`` is None where what the paper prints does not decide; without ``evidence`` the
    doubt is pending, for want of a record.
    """
    verdict = {True: "confirmed", False: "refuted", None: "undecidable"}.get(confirmed)
    if verdict is None:
        raise ConfigError(f"doubt {id!r}: confirmed is {confirmed!r}; it is True, False or None")
    content = {"verdict": verdict if evidence else "pending", "reason": evidence}
    return _show_statement("doubt", _find("doubts", id), content)


def _find(name: Literal["claims", "doubts"], id: str) -> Statement:
    statements = read_statements(name)
    if id not in statements:
        raise ConfigError(f"{name}.yaml has no id {id!r}; {suggest(id, statements)}")
    return statements[id]


def _show_statement(kind: str, statement: Statement, found: dict[str, Any]) -> Shown:
    """The statement, its verdict, and a line of values where there are any."""
    verdict = found["verdict"]
    said = f"{verdict}, provisionally" if found.get("provisional") else verdict
    values = _say_values(found)
    runs = found.get("runs")
    behind = link_runs(say_count(len(runs), "run"), runs) if runs else ""
    lines = [
        f'<p class="stated"><strong class="sign">{SIGNS[verdict]} {html.escape(said)}</strong> '
        f"{html.escape(statement.text)} "
        f'<span class="where">({html.escape(statement.where)})</span></p>',
        f'<p class="values">{html.escape(values)}</p>' if values else "",
        f'<div class="note">{html.escape(found["reason"])} {behind}</div>',
    ]
    kept = {"kind": kind, "id": statement.id, "text": statement.text, "where": statement.where}
    return Shown(
        f'<div class="statement {verdict.replace(" ", "-")}" id="{kind}-{statement.id}">'
        f"{''.join(lines)}</div>",
        f"{SIGNS[verdict]} {said}: {statement.text} ({statement.where})\n"
        + "\n".join(filter(None, [values, found["reason"]])),
        kept | {"family": statement.family, "said": said, "values": values} | found,
    )


def _say_values(found: dict[str, Any]) -> str:
    """“Paper: up to 12 points; ours: +9.3 points (8.1 to 10.5); p < 0.001; n = 16”."""
    if "ours" not in found:
        return ""
    interval = f" ({found['interval']})" if found["interval"] else ""
    parts = [f"paper: {found['paper']}"] if found["paper"] else []
    parts.append(f"ours: {found['ours']}{interval}")
    if found["p"] is not None:
        parts.append(say_p(found["p"]))
    return "; ".join(parts + ([f"n = {found['n']}"] if found["n"] else []))
