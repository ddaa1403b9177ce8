"""cifarlib: what decides the accuracy of a small residual network on CIFAR-10?

A reproducible report around one study. For a notebook::

    import cifarlib as cl

    results = cl.open_results("lite")
    results.runs, results.curves, results.predictions(run_id)   # tidy frames, arrays
    daa1 = results.runs.query("stage == 'stage1-daa1'")         # Table VII's conditions
    cl.compare(cl.paper.table("VII"), daa1, on=["batch_size", "learning_rate", "weight_decay"])
    cl.stats, cl.judge                                          # statistics, judges of claims
    cl.show.table(...), cl.show.figure(...)                     # numbered, linked to their runs
    cl.claim(...), cl.doubt(...), cl.answer(...)                # verdicts, and what follows
    cl.train("stage1-daa1/13", results, learning_rate=0.002)    # one's own run
    cl.grid("stage1-daa1/13", results, dropout=[0, 0.3])        # one's own grid, kept as a study
    cl.explore                                                  # linked charts, pairs, mistakes

All of it is imported on first use; ``import cifarlib`` loads nothing.
"""

import time

TYPE_CHECKING = False  # typing's, which takes longer to import than all of this
if TYPE_CHECKING:
    from typing import Any

    from cifarlib import explore, paper
    from cifarlib.analysis import judges as judge
    from cifarlib.analysis import statistics as stats
    from cifarlib.analysis.compare import compare
    from cifarlib.explore.training import grid, train
    from cifarlib.report import plots, show, style
    from cifarlib.report.show import answer, claim, doubt
    from cifarlib.report.verdicts import read_verdicts
    from cifarlib.runs.results import open_results

STARTED = time.monotonic()
"""When this process began to load cifarlib: a sweep's budget counts from there."""

__version__ = "0.1.0"

_PUBLIC = {  # name: where it is; a module where no name follows the colon
    "answer": "cifarlib.report.show:answer",
    "claim": "cifarlib.report.show:claim",
    "compare": "cifarlib.analysis.compare:compare",
    "doubt": "cifarlib.report.show:doubt",
    "explore": "cifarlib.explore:",
    "grid": "cifarlib.explore.training:grid",
    "judge": "cifarlib.analysis.judges:",
    "open_results": "cifarlib.runs.results:open_results",
    "paper": "cifarlib.paper:",
    "plots": "cifarlib.report.plots:",
    "read_verdicts": "cifarlib.report.verdicts:read_verdicts",
    "show": "cifarlib.report.show:",
    "stats": "cifarlib.analysis.statistics:",
    "style": "cifarlib.report.style:",
    "train": "cifarlib.explore.training:train",
}

__all__ = [
    "answer", "claim", "compare", "doubt", "explore", "grid", "judge", "open_results", "paper",
    "plots", "read_verdicts", "show", "stats", "style", "train",
]  # fmt: skip


def __getattr__(name: str) -> "Any":
    """A public name, imported on first use."""
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    module, _, attribute = _PUBLIC[name].partition(":")
    found = importlib.import_module(module)
    return getattr(found, attribute) if attribute else found


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])
