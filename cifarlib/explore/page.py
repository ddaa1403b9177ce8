"""Charts as HTML that needs no network: with Vega inside, for a notebook and for the page."""

import json
from functools import cache
from typing import Any

import altair as alt
from IPython.display import HTML

from cifarlib import paths
from cifarlib.errors import ConfigError
from cifarlib.explore.charts import linked
from cifarlib.runs.results import Results


def render(results: Results) -> HTML:
    """The linked charts of the studies' recorded runs as a part of the report's page."""
    try:
        return HTML(embed(linked(results, own=False).to_dict()))
    except ConfigError:
        return HTML('<p class="pending">No run is recorded yet.</p>')


def embed(spec: dict[str, Any]) -> str:
    """A chart's specification as HTML that loads nothing, its menus above it."""
    content = json.dumps(spec, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    page = (paths.TEMPLATES / "explore.html").read_text(encoding="utf-8")
    return page.replace("/*spec*/", content).replace("/*bundle*/", bundle())


@cache
def bundle() -> str:
    """Vega, Vega-Lite and their embedding as one script, which sets ``vegaEmbed``."""
    import vl_convert

    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")


def use_offline_charts() -> None:
    """Show every altair chart of a notebook by ``embed``, without a network."""
    alt.renderers.register("cifarlib", lambda spec, **_: {"text/html": embed(spec)})
    alt.renderers.enable("cifarlib")
    alt.data_transformers.disable_max_rows()
