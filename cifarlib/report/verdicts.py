"""The verdicts that lie in executed notebooks: read, counted, corrected for how many there are."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cifarlib.analysis.judges import VERDICTS
from cifarlib.analysis.statistics import adjust
from cifarlib.errors import ReportError
from cifarlib.report.show import CONTENT

COLUMNS = (
    "kind", "id", "family", "text", "where", "verdict", "provisional", "paper", "ours", "interval",
    "p", "n", "reason", "runs", "chapter",
)  # fmt: skip


def read_verdicts(executed: Iterable[Path] | Path) -> pd.DataFrame:
    """Every claim and doubt that executed notebooks show, a row each, in their order.

    ``executed`` are notebooks, or a folder of them. ``kind`` is claim or doubt, ``chapter`` the
    notebook's name. Raises ``ReportError`` for a claim or doubt that is shown twice.
    """
    paths = sorted(executed.glob("*.ipynb")) if isinstance(executed, Path) else executed
    rows = []
    for path in paths:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                content = output.get("data", {}).get(CONTENT, {})
                if content.get("kind") in ("claim", "doubt"):
                    rows.append(content | {"chapter": path.name})
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    double = frame[frame.duplicated(["kind", "id"])]
    if len(double):
        first = double.iloc[0]
        raise ReportError(
            f"{first['chapter']}: the {first['kind']} {first['id']!r} is shown twice; keep one"
        )
    return frame


def correct(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Claims with their p values corrected: ``holm`` within each family, ``fdr`` over all claims.

    ``stands`` says whether a verdict that a test decided stays below 5 % by the rate of false
    discoveries; it is NA for what no test decided.
    """
    claims = verdicts[verdicts["kind"] == "claim"].copy()
    p = claims["p"].astype(float).where(claims["verdict"].isin(["held", "did not hold"]))
    tested = claims["p"].astype(float).where(claims["verdict"].isin(_JUDGED))
    claims["holm"] = tested.groupby(claims["family"]).transform(lambda q: adjust(q, "holm"))
    claims["fdr"] = adjust(tested, "fdr")
    claims["stands"] = np.where(p.isna(), None, claims["fdr"] < 0.05)
    return claims


_JUDGED = ["held", "did not hold", "not distinguishable"]


def count_verdicts(verdicts: pd.DataFrame, by: Sequence[str] = ("family",)) -> pd.DataFrame:
    """How many claims have each verdict, by family, with a row of sums; not judged ones are left
    out."""
    claims = verdicts[(verdicts["kind"] == "claim") & verdicts["verdict"].isin(VERDICTS)]
    counts = pd.crosstab([claims[name] for name in by], claims["verdict"])
    counts = counts.reindex(columns=list(VERDICTS), fill_value=0)
    counts.loc["all"] = counts.sum()
    return counts.reset_index().rename_axis(columns=None)
