"""Run a chapter's cells in this process, without a kernel."""

import ast
import json
from typing import Any

import matplotlib.pyplot as plt

from cifarlib import paths


def run_chapter(name: str, **parameters: Any) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """What each cell of a notebook shows, in order, and the names that it leaves behind.

    Computed sentences are ``{"kind": "text", "text": …}``, the rest is what the page is made from.
    """
    cells = json.loads((paths.NOTEBOOKS / name).read_text(encoding="utf-8"))["cells"]
    names: dict[str, Any] = {}
    shown = []
    with plt.rc_context({"backend": "agg"}):
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
                shown.append(value.content or {"kind": "text", "text": value.text})
    return shown, names
