"""The report's two forms for any executed notebook: ``jupyter nbconvert --to cifarlib-pdf``.

``cifarlib-html`` and ``cifarlib-pdf`` are registered as nbconvert's exporters when the project is
installed. They show what a reader of the report sees: prose and outputs; code is folded in HTML
and left out of the PDF.
"""

from typing import Any

from nbconvert.exporters import Exporter
from nbformat import NotebookNode

from cifarlib.report import notebooks, page, typesetting


class _ReportExporter(Exporter):
    """An exporter that makes one file of a notebook; ``ReportError`` where it cannot be made."""

    def _join(self, nb: NotebookNode, resources: dict[str, Any] | None) -> tuple[Any, ...]:
        """The notebook as ``notebooks.join`` leaves it, nbconvert's resources, a title."""
        nb, resources = super().from_notebook_node(nb, resources)
        name = resources.get("metadata", {}).get("name") or "notebook"
        return notebooks.join([(f"{name}.ipynb", nb)]), resources, name


class PageExporter(_ReportExporter):
    """One HTML file that loads nothing from elsewhere."""

    file_extension = ".html"
    output_mimetype = "text/html"
    export_from_notebook = "HTML (cifarlib)"

    def from_notebook_node(
        self, nb: NotebookNode, resources: dict[str, Any] | None = None, **_: Any
    ) -> tuple[str, dict[str, Any]]:
        joined, resources, name = self._join(nb, resources)
        return page.make_page(joined, title=name, partial=True).decode(), resources


class PDFExporter(_ReportExporter):
    """A PDF typeset by Typst."""

    file_extension = ".pdf"
    output_mimetype = "application/pdf"
    export_from_notebook = "PDF (cifarlib)"

    def from_notebook_node(
        self, nb: NotebookNode, resources: dict[str, Any] | None = None, **_: Any
    ) -> tuple[bytes, dict[str, Any]]:
        joined, resources, name = self._join(nb, resources)
        front = {"title": name, "timestamp": 0, "partial": True}
        return typesetting.typeset(joined, front), resources
