"""Run a chapter's cells in this process, without a kernel."""

import ast
import json
from types import SimpleNamespace
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
from IPython.display import DisplayObject

from cifarlib import paths


def run_chapter(name: str, **parameters: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What each cell of a notebook shows, in order, and the names that it leaves behind.

    Computed sentences are ``{"kind": "text", "text": …}``, the rest is what the page is made from.
    """
    cells = json.loads((paths.NOTEBOOKS / name).read_text(encoding="utf-8"))["cells"]
    shown: list[dict[str, Any]] = []

    def content_of(value: Any) -> dict[str, Any]:
        if isinstance(value, DisplayObject):  # Markdown or HTML
            return {"kind": "text", "text": value.data}
        return value.content or {"kind": "text", "text": value.text}

    def display(value: Any, display_id: bool = False) -> SimpleNamespace:
        place = len(shown)
        shown.append(content_of(value))

        def update(value: Any) -> None:
            shown[place] = content_of(value)

        return SimpleNamespace(update=update)

    names: dict[str, Any] = {}
    with plt.rc_context({"backend": "agg"}), mock.patch("IPython.display.display", display):
        for number, cell in enumerate(cells):
            if cell["cell_type"] != "code":
                continue
            *body, last = ast.parse("".join(cell["source"])).body
            value = None
            if isinstance(last, ast.Expr):
                exec(compile(ast.Module(body, []), f"{name}[{number}]", "exec"), names)
                expression = ast.Expression(last.value)
                value = eval(compile(expression, f"{name}[{number}]", "eval"), names)
            else:
                exec(compile(ast.Module([*body, last], []), f"{name}[{number}]", "exec"), names)
            if "parameters" in cell["metadata"].get("tags", []):
                names |= parameters
            if value is not None:
                display(value)
    return shown, names
