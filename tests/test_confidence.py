"""Calibration of a network's probabilities."""

import numpy as np
import pytest

from cifarlib.analysis.confidence import (
    bootstrap_error,
    calibration_error,
    chance_error,
    reliability,
)


def test_the_calibration_error_is_the_bins_gap_weighted_by_images():
    sure = np.array([0.9] * 10 + [0.5] * 30)
    right = np.array([True] * 6 + [False] * 4 + [True] * 18 + [False] * 12)
    # 10 images 30 points overconfident, 30 images 10 points underconfident
    assert calibration_error(sure, right) == pytest.approx((10 * 30 + 30 * 10) / 40)
    bins = reliability(sure, right)
    assert bins["images"].tolist() == [30, 10]
    assert bins["confidence"].tolist() == pytest.approx([50, 90])
    assert bins["accuracy"].tolist() == pytest.approx([60, 60])


def test_reliability_has_15_bins_open_below_for_every_stored_probability():
    stored = np.arange(256) / 255
    bins = reliability(stored, np.zeros(256, dtype=bool))
    assert bins["images"].tolist() == [18] + [17] * 14
    assert bins["confidence"][0] == pytest.approx(100 * stored[:18].mean())


def test_the_interval_of_the_calibration_error_narrows_with_images():
    random = np.random.default_rng(1)
    sure = random.uniform(0.3, 1, 4000)
    right = random.random(4000) < sure - 0.2  # 20 points overconfident
    assert calibration_error(sure, right) == pytest.approx(20, abs=3)
    widths = []
    for n in (4000, 400):
        interval = bootstrap_error(sure[:n], right[:n])
        assert interval.low < calibration_error(sure[:n], right[:n]) < interval.high
        widths.append(interval.high - interval.low)
    assert widths[0] < widths[1] / 2
    assert bootstrap_error(sure, right) == bootstrap_error(sure, right)


def test_a_calibrated_network_has_the_error_of_chance_and_its_interval_reaches_0():
    random = np.random.default_rng(3)
    sure = random.uniform(0.3, 1, 2000)
    errors = [calibration_error(sure, random.random(2000) < sure) for _ in range(200)]
    assert chance_error(sure) == pytest.approx(np.mean(errors), rel=0.1)
    assert bootstrap_error(sure, random.random(2000) < sure).low < 1
