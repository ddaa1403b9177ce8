"""Run a chapter's cells in this process, without a kernel."""

import ast
import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import matplotlib.pyplot as plt
from IPython.display import DisplayObject

from cifarlib import paths

CIFAR10 = ["data={name: cifar10, train_size: 60, validation_size: 50, test_size: 200}"]
"""Overrides under which claims are judged, for records that are made up."""

Content = dict[str, Any]


@dataclass(frozen=True)
class Chapter:
    """What each cell of a notebook shows, in order.

    Computed sentences are ``{"kind": "text", "text": …}``, the rest is what the page is made from.
    """

    contents: list[Content]

    def of(self, *kinds: str, by: str) -> dict[str, Content]:
        """What is of some kinds, by number or id."""
        return {content[by]: content for content in self.contents if content["kind"] in kinds}

    @property
    def tables(self) -> dict[str, Content]:
        return self.of("table", by="number")

    @property
    def figures(self) -> dict[str, Content]:
        return self.of("figure", by="number")

    @property
    def verdicts(self) -> dict[str, Content]:
        """Claims, doubts and answers."""
        return self.of("claim", "doubt", "answer", by="id")

    @property
    def said(self) -> list[str]:
        """The computed sentences."""
        return [content["text"] for content in self.contents if content["kind"] == "text"]


def run_chapter(name: str, build: Path, scale: str = "smoke", **parameters: Any) -> Chapter:
    """Run a notebook over a build folder."""
    cells = json.loads((paths.NOTEBOOKS / name).read_text(encoding="utf-8"))["cells"]
    parameters |= {"scale": scale, "build": str(build)}
    shown: list[Content] = []

    def content_of(value: Any) -> Content:
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
    return Chapter(shown)
