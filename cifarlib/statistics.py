"""Intervals, for the chapter past the paper; the formulas are scipy's and statsmodels'."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cifarlib.records import DataRecord, RunRecord

LEVEL = 0.95  # of confidence
BOOTSTRAP_SEED = 42


@dataclass(frozen=True)
class Interval:
    """A confidence interval, both ends included."""

    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


# ---------------------------------------------------------------------------------------------
# One accuracy
# ---------------------------------------------------------------------------------------------


def wilson_interval(correct: float, images: int, level: float = LEVEL) -> Interval:
    """Wilson's interval of an accuracy in %, from the number of correct images."""
    from statsmodels.stats.proportion import proportion_confint

    low, high = proportion_confint(correct, images, alpha=1 - level, method="wilson")
    return Interval(100 * float(low), 100 * float(high))


def mean_interval(values: Sequence[float], level: float = LEVEL) -> tuple[float, Interval | None]:
    """Mean and Student's t interval of some values, one for each seed; no interval for one."""
    from scipy import stats

    mean = float(np.mean(values))
    if len(values) < 2:
        return mean, None
    error = float(stats.sem(values))
    if error == 0:
        return mean, Interval(mean, mean)
    low, high = stats.t.interval(level, len(values) - 1, loc=mean, scale=error)
    return mean, Interval(float(low), float(high))


# ---------------------------------------------------------------------------------------------
# The images of a run
# ---------------------------------------------------------------------------------------------


def correct_images(record: RunRecord, data: DataRecord | None) -> np.ndarray | None:
    """Which test images a run has right, bool (n,), with the weights its predictions come from.

    None where the data set's labels are not on record, or are not those of the run's images:
    they must give the confusion matrix that the run counted for itself.
    """
    from cifarlib.data import stratified_subset

    if data is None or data.data_fingerprint != record.data_fingerprint:
        return None
    labels = data.labels[stratified_subset(data.labels, record.config.data.test_size)]
    predictions = record.result.predictions
    matrix = np.zeros((10, 10), dtype=int)
    np.add.at(matrix, (labels, predictions.classes), 1)
    if matrix.tolist() != [list(row) for row in predictions.confusion["test"]]:
        return None
    return predictions.classes == labels
