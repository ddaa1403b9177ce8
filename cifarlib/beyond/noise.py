"""The noise floor: what differs between two runs of which only the seed differs.

Accuracies and deviations are in % and percentage points of test top-1.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from cifarlib import published
from cifarlib.beyond.protocol import CORRECTED, TITLES
from cifarlib.beyond.seeds import by_label, tested, values
from cifarlib.records import Results
from cifarlib.statistics import LEVEL, Interval

STAGE = "noise-floor"
TABLES = ("IV", "V", "VI", "VII", "VIII")  # searches of one seed each


@dataclass(frozen=True)
class Floor:
    """The noise of one setting."""

    run: int  # of the stage
    values: tuple[float, ...]  # one for each seed
    images: int  # of the test set
    runs: tuple[str, ...]

    @property
    def seeds(self) -> float | None:
        """Standard deviation between seeds, on the same test images."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    @property
    def interval(self) -> Interval | None:
        """95 % interval of ``seeds``, by the χ² distribution."""
        if self.seeds is None:
            return None
        from scipy import stats

        free = len(self.values) - 1
        low, high = (
            self.seeds * (free / stats.chi2.ppf((1 + sign * LEVEL) / 2, free)) ** 0.5
            for sign in (1, -1)
        )
        return Interval(float(low), float(high))

    @property
    def test_set(self) -> float | None:
        """Standard deviation that drawing other test images would add (binomial)."""
        if not self.values or not self.images:
            return None
        share = float(np.mean(self.values)) / 100
        return 100 * (share * (1 - share) / self.images) ** 0.5


def floors(results: Results) -> list[Floor]:
    """The noise of every setting of the stage; seeds of the protocol's ablation count, too."""
    found = []
    for run in dict.fromkeys(c.run for c in results.select(STAGE)):
        conditions = [c for c in results.select(STAGE) if c.run == run]
        conditions += by_label(results, "protocol-ablation", run).get(CORRECTED, [])
        known = values(results, conditions, tested)
        records = [r for c in conditions if (r := results.record(c)) is not None]
        images = records[0].result.history.test.images if records else 0
        ids = tuple(dict.fromkeys(r.run_id for r in records))
        found.append(Floor(run, tuple(known.values()), images, ids))
    return found


def tabulate_noise(results: Results) -> pd.DataFrame:
    """Standard deviations of test top-1 in points, a row for each setting."""
    rows, behind = [], []
    for floor in floors(results):
        interval = floor.interval
        rows.append(
            {
                "Setting": TITLES.get(floor.run, str(floor.run)),
                "Seeds": len(floor.values),
                "Mean test top-1": float(np.mean(floor.values)) if floor.values else None,
                "Lowest": min(floor.values, default=None),
                "Highest": max(floor.values, default=None),
                "σ between seeds": floor.seeds,
                "95 %": None if interval is None else f"{interval.low:.2f} to {interval.high:.2f}",
                "σ of the test images": floor.test_set,
                "Least difference told apart": least_difference(floor),
            }
        )
        behind.append(floor.runs)
    frame = pd.DataFrame(rows)
    frame.attrs["runs"] = behind
    numeric = ["Mean test top-1", "Lowest", "Highest", "σ between seeds", "σ of the test images"]
    return frame.astype(dict.fromkeys([*numeric, "Least difference told apart"], float))


def least_difference(floor: Floor) -> float | None:
    """The difference of two single runs that seeds alone exceed in 5 of 100 cases, in points."""
    if floor.seeds is None:
        return None
    from scipy import stats

    return float(stats.t.ppf((1 + LEVEL) / 2, len(floor.values) - 1)) * 2**0.5 * floor.seeds


def ruling_floor(results: Results) -> Floor | None:
    """The setting with the most seeds; of those with as many, that of the larger noise.

    Two seeds tell next to nothing of their spread. None where no setting has even two.
    """
    known = [floor for floor in floors(results) if floor.seeds is not None]
    return max(known, key=lambda f: (len(f.values), least_difference(f)), default=None)


def tabulate_survivors(results: Results) -> pd.DataFrame:
    """How many rows of each printed search are not told apart from its highest test accuracy.

    By the least difference of ``ruling_floor``, and by a test set of 10,000 alone.
    """
    floor = ruling_floor(results)
    limit = least_difference(floor) if floor else None
    rows = []
    for number in TABLES:
        accuracy = published.read_table(number).test_top1
        behind = accuracy.max() - accuracy
        others = len(accuracy) - 1
        share = accuracy.max() / 100
        images = 1.96 * 100 * (2 * share * (1 - share) / 10_000) ** 0.5
        rows.append(
            {
                "Table": f"Table {number}",
                "Best test top-1": float(accuracy.max()),
                "Other rows": others,
                "Within seeds' noise": (
                    None if limit is None else f"{int((behind <= limit).sum()) - 1} of {others}"
                ),
                "Within the test images' noise": f"{int((behind <= images).sum()) - 1} of {others}",
            }
        )
    return pd.DataFrame(rows)


def say_noise(results: Results) -> str:
    """The limit that the count uses, and where it comes from."""
    floor = ruling_floor(results)
    if floor is None:
        return "The noise between seeds is pending: it takes at least two seeds of one setting."
    return (
        f"Two single runs of the same setting differ by more than {least_difference(floor):.2f} "
        f"points in 5 of 100 cases ({TITLES.get(floor.run, floor.run)}, {len(floor.values)} "
        f"seeds, σ = {floor.seeds:.2f})."
    )


FORMATS = {
    "Mean test top-1": "{:.2f}",
    "Lowest": "{:.2f}",
    "Highest": "{:.2f}",
    "σ between seeds": "{:.2f}",
    "σ of the test images": "{:.2f}",
    "Least difference told apart": "{:.2f}",
    "Best test top-1": "{:.1f}",
}
