"""The verdicts that lie in executed notebooks: read, and corrected for how many there are."""

import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from cifarlib.analysis.judges import JUDGED
from cifarlib.analysis.statistics import ALPHA, adjust
from cifarlib.checking import list_folder
from cifarlib.errors import ReportError
from cifarlib.paper.statements import read_statements
from cifarlib.report.tables import CONTENT

COLUMNS = (
    "kind", "id", "topic", "family", "text", "where", "verdict", "provisional", "said", "paper",
    "ours", "interval", "p", "n", "reason", "runs", "chapter",
)  # fmt: skip

SIGNS = {
    "held": "✓",
    "did not hold": "✗",
    "not distinguishable": "≈",
    "not tested": "∅",
    "pending": "…",
    "not judged": "·",
    "confirmed": "✓",
    "refuted": "✗",
    "undecidable": "≈",
}
"""Every verdict on a claim or a doubt, and its sign."""


def read_verdicts(executed: Iterable[Path] | Path | str) -> pd.DataFrame:
    """Every claim, doubt and answer that executed notebooks show, a row each, in their order.

    ``executed`` are notebooks, or a folder of them; one named by a text must be there. ``kind`` is
    claim, doubt or answer, ``chapter`` the notebook's name. Raises ``ReportError`` for one that is
    shown twice.
    """
    if isinstance(executed, str) and not Path(executed).is_dir():
        raise ReportError(f"there is no folder {executed!r} of executed chapters; name another")
    if isinstance(executed, Path | str):
        executed = list_folder(Path(executed), ".ipynb")
    rows = []
    for path in executed:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            for output in cell.get("outputs", []):
                content = output.get("data", {}).get(CONTENT, {})
                if content.get("kind") in ("claim", "doubt", "answer"):
                    rows.append(content | {"chapter": path.name})
    frame = pd.DataFrame(rows, columns=list(COLUMNS))
    double = frame[frame.duplicated(["kind", "id"])]
    if len(double):
        kind, name = double[["kind", "id"]].iloc[0]
        where = frame[(frame["kind"] == kind) & (frame["id"] == name)]["chapter"].unique()
        raise ReportError(
            f"{' and '.join(where)}: the {kind} {name!r} is shown twice; keep one, and remove "
            "executed notebooks that are no chapter any more"
        )
    return frame


def correct(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Claims with their p values corrected: ``holm`` within each family, ``fdr`` over all claims.

    Both are NaN for what no test decided.
    """
    claims = verdicts[verdicts["kind"] == "claim"].copy()
    tested = claims["p"].astype(float).where(claims["verdict"].isin(JUDGED))
    claims["holm"] = tested.groupby(claims["family"]).transform(lambda q: adjust(q, "holm"))
    claims["fdr"] = adjust(tested, "fdr")
    return claims


def put_clearest_first(claims: pd.DataFrame) -> pd.DataFrame:
    """In another order: those left after correction, those that no test decided, then the rest."""
    corrected = correct(claims)
    rank = corrected["fdr"].lt(ALPHA).map({True: 0, False: 2}).mask(corrected["fdr"].isna(), 1)
    order = pd.DataFrame({"rank": rank, "p": claims["p"].astype(float)})
    return claims.loc[order.sort_values(["rank", "p"], kind="stable").index]


def list_claims(verdicts: pd.DataFrame) -> pd.DataFrame:
    """A row for every claim of the paper, in its order, with what ``correct`` says of it.

    A claim that no executed chapter shows is pending, and its ``chapter`` empty.
    """
    statements = pd.DataFrame([vars(claim) for claim in read_statements("claims").values()])
    named = ["id", "family", "text", "where"]
    claims = statements[named].merge(correct(verdicts).drop(columns=named[1:]), "left", on="id")
    absent = {"verdict": "pending", "said": "pending", "ours": "–"}
    absent |= dict.fromkeys(["paper", "interval", "chapter"], "")
    return claims.fillna(absent)
