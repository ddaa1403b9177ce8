"""Whether what was learnt holds on other images: test accuracy on CIFAR-10 and on CIFAR-10.1.

CIFAR-10.1's images were gathered anew by CIFAR-10's own recipe; Recht and others, "Do ImageNet
Classifiers Generalize to ImageNet?", 2019, found every network that they tried worse on them. Both
accuracies are of the same weights, those of a record's predictions. Accuracies are in %, drops in
percentage points.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from cifarlib.beyond.calibration import Calibration
from cifarlib.config import DATASETS
from cifarlib.display import Shown, fixed, show_table
from cifarlib.records import Results, RunRecord
from cifarlib.shift import ShiftRecord, read_shifts
from cifarlib.statistics import LEVEL, Interval, wilson_interval


@dataclass(frozen=True)
class Pair:
    """One run on both sets."""

    title: str
    record: RunRecord
    shift: ShiftRecord

    @property
    def confusion(self) -> np.ndarray:
        """On CIFAR-10's test images, (10, 10)."""
        return np.array(self.record.result.predictions.confusion["test"])

    @property
    def before(self) -> tuple[int, int]:
        """Right images and all, of CIFAR-10's."""
        return int(self.confusion.trace()), int(self.confusion.sum())

    @property
    def after(self) -> tuple[int, int]:
        """Right images and all, of CIFAR-10.1's."""
        return self.shift.correct, self.shift.images

    @property
    def drop(self) -> float:
        """Accuracy on CIFAR-10 less that on CIFAR-10.1."""
        (right, images), (right_there, images_there) = self.before, self.after
        return 100 * right / images - 100 * right_there / images_there

    @property
    def interval(self) -> Interval:
        """95 % interval of ``drop``: Newcombe's, for two independent proportions."""
        from statsmodels.stats.proportion import confint_proportions_2indep

        low, high = confint_proportions_2indep(
            *self.before, *self.after, method="newcomb", compare="diff", alpha=1 - LEVEL
        )
        return Interval(100 * float(low), 100 * float(high))

    @property
    def calibration(self) -> Calibration:
        """How far its probabilities can be believed on CIFAR-10.1."""
        return Calibration(self.shift.confidences, self.shift.correct_images)


def pair(*studies: Results) -> list[Pair]:
    """Of each stage the run that is best on the validation images, of those with both accuracies.

    A run that two stages share stands at the first.
    """
    found: dict[str, Pair] = {}
    for results in studies:
        shifts = read_shifts(results)
        for name, title in results.stages.items():
            known = [r for c in results.select(name) if (r := results.record(c)) is not None]
            known = [r for r in known if r.run_id in shifts]
            best = max(known, key=lambda r: r.accuracy("validation") or 0.0, default=None)
            if best is not None:
                found.setdefault(best.run_id, Pair(title, best, shifts[best.run_id]))
    return list(found.values())


# ---------------------------------------------------------------------------------------------
# Shown
# ---------------------------------------------------------------------------------------------


def say_generalisation(pairs: Sequence[Pair], results: Results) -> str:
    """What the runs lose on the new images; where nothing is recorded, how it would be."""
    if not DATASETS[results.scale.data.name].real:
        return (
            "Accuracy on CIFAR-10.1 is pending: these runs are of a generated stand-in set, whose "
            "classes are others."
        )
    if not pairs:
        return (
            "Accuracy on CIFAR-10.1 is pending: CIFAR-10.1 is not among the data here; "
            "cifarlib generalise adds what kept weights make of it."
        )
    drops = [one.drop for one in pairs]
    sure = sum(one.interval.low > 0 for one in pairs)
    return (
        f"Of {len(pairs)} runs, {sure} are worse on CIFAR-10.1 by more than the noise of the "
        f"images; the drop is {fixed(1)(min(drops))} to {fixed(1)(max(drops))} points, "
        f"{fixed(1)(float(np.mean(drops)))} on average."
    )


def show_generalisation(pairs: Sequence[Pair], number: str) -> Shown | None:
    """The numbered table; nothing where there is nothing to show."""
    if not pairs:
        return None
    prints = ", ".join(dict.fromkeys(one.shift.data_fingerprint[:12] for one in pairs))
    devices = ", ".join(dict.fromkeys(one.shift.provenance.device for one in pairs))
    images, there = _images(p.before for p in pairs), _images(p.after for p in pairs)
    return show_table(
        tabulate_generalisation(pairs),
        number,
        "The best run of each stage on CIFAR-10 and on CIFAR-10.1: top-1 in %, drop and "
        "calibration error in points",
        note="Best on the validation images, of the runs whose weights were kept. "
        f"{images} images of CIFAR-10, {there} of CIFAR-10.1. Intervals "
        "are of the images alone, Wilson's and, of the drop, Newcombe's; another seed would differ "
        f"besides. Files of CIFAR-10.1: SHA-256 {prints}; evaluated on {devices}.",
        formats=FORMATS,
    )


def _images(counts: Iterable[tuple[int, int]]) -> str:
    return " or ".join(f"{n:,}" for n in sorted({n for _, n in counts}))


def tabulate_generalisation(pairs: Sequence[Pair]) -> pd.DataFrame:
    """A row for each run: both accuracies, the drop, and the calibration error there."""
    rows = []
    for one in pairs:
        rows.append(
            {
                ("", "Stage"): one.title,
                ("CIFAR-10", "Top-1"): 100 * one.before[0] / one.before[1],
                ("CIFAR-10", "95 %"): _say(wilson_interval(*one.before)),
                ("CIFAR-10.1", "Top-1"): one.shift.accuracy,
                ("CIFAR-10.1", "95 %"): _say(wilson_interval(*one.after)),
                ("CIFAR-10.1", "Calibration"): one.calibration.error,
                ("Drop", "Points"): one.drop,
                ("Drop", "95 %"): _say(one.interval),
            }
        )
    frame = pd.DataFrame(rows)
    frame.columns = pd.MultiIndex.from_tuples(frame.columns)
    frame.attrs["runs"] = [(one.record.run_id,) for one in pairs]
    return frame


def _say(interval: Interval) -> str:
    return f"{fixed(1)(interval.low)} to {fixed(1)(interval.high)}"


FORMATS = {
    "Top-1": "{:.2f}",
    "Calibration": "{:.2f}",
    "Points": fixed(2),
}
