"""Whether a network's probabilities match its accuracy: expected calibration error, reliability.

Guo and others, "On Calibration of Modern Neural Networks", 2017: 15 bins of equal width, open
below. ``confidence`` is the probability of the predicted class, 0 to 1, (images,); ``correct``
which images are right, bool (images,).
"""

import numpy as np
import pandas as pd

from cifarlib.analysis.statistics import BOOTSTRAP_SEED, LEVEL, Interval

BINS = 15
RESAMPLES = 1000


def calibration_error(confidence: np.ndarray, correct: np.ndarray) -> float:
    """Expected calibration error in points: the bins' gaps without sign, weighted by images."""
    return _error(_bins(confidence), correct - confidence)


def bootstrap_error(confidence: np.ndarray, correct: np.ndarray) -> Interval:
    """95 % basic bootstrap of the images for ``calibration_error``, never below 0. Seeded.

    The error of resampled images is as far above that of the images as theirs is above the truth.
    """
    random = np.random.default_rng(BOOTSTRAP_SEED)
    bins, gaps, images = _bins(confidence), correct - confidence, len(confidence)
    draws = (random.integers(0, images, images) for _ in range(RESAMPLES))
    values = [_error(bins[rows], gaps[rows]) for rows in draws]
    low, high = np.percentile(values, [50 * (1 - LEVEL), 50 * (1 + LEVEL)])
    twice = 2 * _error(bins, gaps)
    return Interval(max(0.0, twice - float(high)), max(0.0, twice - float(low)))


def chance_error(confidence: np.ndarray) -> float:
    """Mean ``calibration_error`` of a perfectly calibrated network with this confidence. Seeded."""
    random, bins = np.random.default_rng(BOOTSTRAP_SEED), _bins(confidence)
    draws = (random.random(len(confidence)) < confidence for _ in range(RESAMPLES // 10))
    return float(np.mean([_error(bins, right - confidence) for right in draws]))


def reliability(confidence: np.ndarray, correct: np.ndarray) -> pd.DataFrame:
    """``images``, mean ``confidence`` and ``accuracy`` in % of each bin that is not empty."""
    frame = pd.DataFrame({"confidence": 100 * confidence, "accuracy": 100.0 * correct})
    bins = frame.groupby(_bins(confidence))
    return bins.mean().assign(images=bins.size()).reset_index(drop=True)


def _bins(confidence: np.ndarray) -> np.ndarray:
    return np.searchsorted(np.arange(1, BINS) / BINS, confidence, side="left")


def _error(bins: np.ndarray, gaps: np.ndarray) -> float:
    return 100 * float(np.abs(np.bincount(bins, gaps, BINS)).sum() / len(gaps))
