"""Whether a network's probabilities can be believed: expected calibration error, reliability.

From the stored test predictions, whose probabilities are kept to 1/255. Guo and others, "On
Calibration of Modern Neural Networks", 2017: 15 bins of equal width, open below.
"""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cifarlib.beyond.seeds import by_label
from cifarlib.display import signed
from cifarlib.records import Results, RunRecord
from cifarlib.report.style import SPLIT_COLOURS, STYLE
from cifarlib.statistics import BOOTSTRAP_SEED, LEVEL, Interval, correct_images

BINS = 15
RESAMPLES = 1000
RECIPE = "recipe"  # stage of the second study
SMOOTHING = "label smoothing"  # its step that changes what the probabilities are trained to be
COLUMNS = 5  # of panels


@dataclass(frozen=True, eq=False)
class Calibration:
    """One network's test predictions: how probable it says they are, and which are right."""

    confidence: np.ndarray  # of the predicted class, 0 to 1, (images,)
    correct: np.ndarray  # bool (images,)

    @cached_property
    def bins(self) -> np.ndarray:
        """The bin of each image, 0 to 14, (images,)."""
        return np.searchsorted(np.arange(1, BINS) / BINS, self.confidence, side="left")

    @property
    def accuracy(self) -> float:
        """In %."""
        return 100 * float(self.correct.mean())

    @property
    def mean_confidence(self) -> float:
        """In %."""
        return 100 * float(self.confidence.mean())

    @property
    def error(self) -> float:
        """Expected calibration error, in percentage points."""
        return float(_error(self.bins, self.correct - self.confidence))

    @cached_property
    def interval(self) -> Interval:
        """95 % percentile bootstrap of the images for ``error``."""
        random = np.random.default_rng(BOOTSTRAP_SEED)
        gaps, images = self.correct - self.confidence, len(self.bins)
        draws = (random.integers(0, images, images) for _ in range(RESAMPLES))
        values = [_error(self.bins[rows], gaps[rows]) for rows in draws]
        tail = 50 * (1 - LEVEL)
        low, high = np.percentile(values, [tail, 100 - tail])
        return Interval(float(low), float(high))

    def reliability(self) -> pd.DataFrame:
        """Images, mean confidence and accuracy in % of each bin that is not empty."""
        frame = pd.DataFrame({"bin": self.bins, "confidence": self.confidence, "c": self.correct})
        grouped = frame.groupby("bin")
        return pd.DataFrame(
            {
                "images": grouped.size(),
                "confidence": 100 * grouped.confidence.mean(),
                "accuracy": 100 * grouped.c.mean(),
            }
        )


def _error(bins: np.ndarray, gaps: np.ndarray) -> float:
    """Bins' mean gaps without their signs, weighted by their images: sums, over all images."""
    return 100 * float(np.abs(np.bincount(bins, gaps, BINS)).sum() / len(gaps))


@dataclass(frozen=True, eq=False)
class Network:
    """A network whose probabilities are looked at; without ``calibration`` while it is pending."""

    title: str
    record: RunRecord | None
    calibration: Calibration | None


def calibrate(results: Results, beyond: Results) -> list[Network]:
    """The best run of each stage of the paper's study, and the recipe around label smoothing."""
    networks = [
        _look_at(results, title, best_run(results, name)) for name, title in results.stages.items()
    ]
    return [*networks, *smoothing_pair(beyond)]


def best_run(results: Results, stage: str) -> RunRecord | None:
    """The recorded run of a stage with the highest validation top-1; of equal ones the first."""
    recorded = [r for c in results.select(stage) if (r := results.record(c)) is not None]
    return max(recorded, key=lambda r: r.accuracy("validation") or 0.0, default=None)


def smoothing_pair(beyond: Results) -> list[Network]:
    """The recipe's step before label smoothing and with it, at the first seed that has both."""
    labels = by_label(beyond, RECIPE)
    if SMOOTHING not in labels:
        return []
    names = list(labels)
    pair = names[names.index(SMOOTHING) - 1], SMOOTHING
    records: list[RunRecord | None] = [None, None]
    for conditions in zip(*(labels[name] for name in pair), strict=False):
        found = [beyond.record(condition) for condition in conditions]
        if None not in found:
            records = found
            break
    titles = ("Recipe before label smoothing", "Recipe with label smoothing")
    return [_look_at(beyond, *two) for two in zip(titles, records, strict=True)]


def _look_at(results: Results, title: str, record: RunRecord | None) -> Network:
    correct = None if record is None else correct_images(record, results.data)
    if record is None or correct is None:
        return Network(title, record, None)
    return Network(title, record, Calibration(record.result.predictions.confidence, correct))


# ---------------------------------------------------------------------------------------------
# Shown
# ---------------------------------------------------------------------------------------------


def tabulate_calibration(networks: Sequence[Network]) -> pd.DataFrame:
    """A row for each network: accuracy, mean confidence, and the error with its interval."""
    rows, behind = [], []
    for network in networks:
        row: dict[str, object] = {"Network": network.title}
        if (found := network.calibration) is not None:
            row |= {
                "Test images": len(found.correct),
                "Test top-1": found.accuracy,
                "Mean confidence": found.mean_confidence,
                "Confidence less accuracy": found.mean_confidence - found.accuracy,
                "Calibration error": found.error,
                "95 %": f"{found.interval.low:.2f} to {found.interval.high:.2f}",
            }
        rows.append(row)
        behind.append(() if network.record is None else (network.record.run_id,))
    columns = ["Network", "Test images", *FORMATS, "95 %"]
    frame = pd.DataFrame(rows, columns=columns)
    frame.attrs["runs"] = behind
    return frame.astype({"Test images": "Int64"} | dict.fromkeys(FORMATS, float))


FORMATS = {
    "Test top-1": "{:.2f}",
    "Mean confidence": "{:.2f}",
    "Confidence less accuracy": signed(2),
    "Calibration error": "{:.2f}",
}


def plot_calibration(networks: Sequence[Network]) -> Figure | None:
    """Reliability diagrams, a panel each: accuracy against confidence, dots by share of images."""
    found = [(n.title, n.calibration) for n in networks if n.calibration is not None]
    if not found:
        return None
    rows = -(-len(found) // COLUMNS)
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(
            rows,
            COLUMNS,
            figsize=(9, 2.3 * rows + 0.2),
            layout="constrained",
            sharex=True,
            sharey=True,
            squeeze=False,
        )
        for axis in axes.flat[len(found) :]:
            axis.remove()
        for axis, (title, calibration) in zip(axes.flat, found, strict=False):
            _draw_reliability(axis, title, calibration)
        figure.supxlabel("probability of the predicted class, %", fontsize=9)
        figure.supylabel("accuracy, %", fontsize=9)
    return figure


def _draw_reliability(axis: plt.Axes, title: str, calibration: Calibration) -> None:
    bins = calibration.reliability()
    axis.plot([0, 100], [0, 100], color="#999999", linewidth=0.8)
    axis.plot(bins.confidence, bins.accuracy, color=SPLIT_COLOURS["test"], linewidth=0.8)
    sizes = 4 + 120 * bins.images / bins.images.sum()
    dots = {"color": SPLIT_COLOURS["test"], "zorder": 3, "clip_on": False}
    axis.scatter(bins.confidence, bins.accuracy, sizes, **dots)
    axis.set(xlim=(0, 103), ylim=(0, 103), aspect="equal")
    axis.set_title(textwrap.fill(title, 22), fontsize=8)
    axis.text(4, 96, f"error {calibration.error:.1f}", va="top", fontsize=8)


def describe_calibration(networks: Sequence[Network]) -> str:
    """The figure in words."""
    told = [
        f"{n.title}: "
        + (
            "pending"
            if n.calibration is None
            else f"confidence {n.calibration.mean_confidence:.1f} %, "
            f"accuracy {n.calibration.accuracy:.1f} %, error {n.calibration.error:.1f} points"
        )
        for n in networks
    ]
    return (
        "A panel for each network: accuracy of the images in 15 bins of the predicted class's "
        f"probability; on the diagonal both are the same. {'; '.join(told)}."
    )


def say_calibration(networks: Sequence[Network]) -> str:
    """How many networks are surer than right, and what label smoothing did, in sentences."""
    found = [n.calibration for n in networks if n.calibration is not None]
    if not found:
        return "Calibration is pending."
    surer = sum(c.mean_confidence > c.accuracy for c in found)
    told = f"Surer than right: {surer} of {len(found)} networks."
    pair = [n.calibration for n in networks if n.title.startswith("Recipe")]
    if len(pair) < 2 or pair[0] is None or pair[1] is None:
        return f"{told} What label smoothing does to it is pending."
    before, after = pair
    return (
        f"{told} With label smoothing, the recipe's calibration error is {after.error:.2f} points "
        f"where it was {before.error:.2f}, and its confidence less its accuracy "
        f"{signed(2)(after.mean_confidence - after.accuracy)} where it was "
        f"{signed(2)(before.mean_confidence - before.accuracy)}."
    )
