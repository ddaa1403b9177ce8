"""What the panels of ``explore`` have in common: a look, pictures, tables and sentences."""

import base64
import html
import io
from collections.abc import Callable, Mapping
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

CSS = """
<style>
.cifarlib, .cifarlib .widget-html-content { color: var(--jp-content-font-color1, #111);
  font-size: 13px; line-height: 1.4; }
.cifarlib img.plot { max-width: 100%; background: #fff; border-radius: 3px; }
.cifarlib .runs select { font-family: var(--jp-code-font-family, monospace); font-size: 12px; }
.cifarlib .runs .widget-label { position: absolute; width: 1px; height: 1px; overflow: hidden;
  clip-path: inset(50%); }
.cifarlib pre.head { margin: 0 0 0 5px; font-family: var(--jp-code-font-family, monospace);
  font-size: 12px; line-height: 1.3; color: var(--jp-content-font-color2, #444); }
.cifarlib table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.cifarlib th { text-align: left; font-weight: 600;
  border-bottom: 1px solid var(--jp-border-color1, #999); }
.cifarlib th, .cifarlib td { padding: 1px 12px 1px 0; }
.cifarlib td.number, .cifarlib th.number { text-align: right; }
.cifarlib .error { color: #b00020; background: #fff; font-weight: 600; padding: 2px 6px;
  border-radius: 3px; }
.cifarlib .mistakes { display: flex; flex-wrap: wrap; gap: 10px 8px; }
.cifarlib .mistakes figure { margin: 0; width: 104px; font-size: 11px; line-height: 1.25; }
.cifarlib .mistakes img { width: 72px; height: 72px; image-rendering: pixelated; display: block; }
.cifarlib .card { border-top: 2px solid var(--jp-border-color1, #999); margin: 0 14px 8px 0; }
</style>
"""


def panel(*children: widgets.Widget) -> widgets.VBox:
    """Widgets one below the other, in the look of the explorer."""
    box = widgets.VBox([widgets.HTML(CSS, layout={"display": "none"}), *children])
    box.add_class("cifarlib")
    return box


def picture(figure: Figure | None, alt: str, width: str = "100%") -> str:
    """A figure as HTML, and closed; empty where there is none. ``alt`` says what it shows."""
    if figure is None:
        return ""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=160)
    plt.close(figure)
    source = base64.b64encode(buffer.getvalue()).decode()
    return (
        f'<img class="plot" style="width:{width}" alt="{html.escape(alt)}" '
        f'src="data:image/png;base64,{source}">'
    )


def table(frame: pd.DataFrame, formats: Mapping[str, Callable[[Any], str]] | None = None) -> str:
    """A frame as an HTML table; numbers stand to the right."""
    formats = formats or {}
    kinds = {c: ' class="number"' if frame[c].dtype.kind in "if" else "" for c in frame.columns}
    head = "".join(f'<th scope="col"{kinds[c]}>{html.escape(str(c))}</th>' for c in frame.columns)
    rows = []
    for _, row in frame.iterrows():
        cells = [
            f"<td{kinds[c]}>{html.escape(formats.get(c, _plain)(row[c]))}</td>"
            for c in frame.columns
        ]
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def sentence(text: str, *, error: bool = False) -> str:
    """A line of text as HTML."""
    kind = ' class="error" role="alert"' if error else ""
    return f"<div{kind}>{html.escape(text)}</div>" if text else ""
