"""Intervals, tests and effect sizes against identities and formulas worked out by other means."""

import numpy as np
import pytest
from conftest import make_data_record, make_record, tiny_conditions
from scipy import stats

from cifarlib import statistics
from cifarlib.records import pack_classes
from cifarlib.statistics import Interval

# ---------------------------------------------------------------------------------------------
# One accuracy
# ---------------------------------------------------------------------------------------------


def test_wilson_is_its_formula():
    correct, images, z = 8_997, 10_000, stats.norm.ppf(0.975)
    share = correct / images
    centre = (share + z**2 / (2 * images)) / (1 + z**2 / images)
    spread = share * (1 - share) / images + z**2 / (4 * images**2)
    half = z * np.sqrt(spread) / (1 + z**2 / images)
    found = statistics.wilson_interval(correct, images)
    assert (found.low, found.high) == pytest.approx((100 * (centre - half), 100 * (centre + half)))
    assert 89.97 in found
    assert found.high - found.low == pytest.approx(1.18, abs=0.01)


def test_wilson_stays_inside_at_the_ends():
    assert statistics.wilson_interval(0, 50).low == pytest.approx(0, abs=1e-9)
    assert statistics.wilson_interval(50, 50).high == pytest.approx(100)
    assert statistics.wilson_interval(50, 50).low < 95


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_wilson_covers_the_true_share_as_often_as_it_says(share):
    images = 200
    inside = [
        stats.binom.pmf(k, images, share)
        for k in range(images + 1)
        if 100 * share in statistics.wilson_interval(k, images)
    ]
    assert sum(inside) == pytest.approx(0.95, abs=0.02)  # exact coverage, no simulation


def test_mean_and_t_interval_of_seeds():
    values = [89.4, 89.9, 90.1, 89.6, 89.8]
    mean, found = statistics.mean_interval(values)
    half = stats.t.ppf(0.975, 4) * np.std(values, ddof=1) / np.sqrt(5)
    assert mean == pytest.approx(89.76)
    assert (found.low, found.high) == pytest.approx((mean - half, mean + half))


def test_one_seed_has_no_interval_and_equal_seeds_a_point():
    assert statistics.mean_interval([90.0]) == (90.0, None)
    assert statistics.mean_interval([90.0, 90.0]) == (90.0, Interval(90.0, 90.0))


# ---------------------------------------------------------------------------------------------
# Two runs on the same images
# ---------------------------------------------------------------------------------------------


def two_runs(both: int, first: int, second: int, neither: int) -> tuple[np.ndarray, np.ndarray]:
    one = np.repeat([True, True, False, False], [both, first, second, neither])
    other = np.repeat([True, False, True, False], [both, first, second, neither])
    return one, other


def test_correct_images_follow_from_the_data_record():
    condition = tiny_conditions("stage1-daa1/13")[0]
    record, data = make_record(condition), make_data_record("synthetic")
    right = statistics.correct_images(record, data)
    confusion = np.array(record.result.predictions.confusion["test"])
    assert right.sum() == confusion.trace()
    labels = np.arange(len(right)) % 10  # as conftest makes them
    assert (right == (record.result.predictions.classes == labels)).all()


def test_correctness_is_not_made_up_without_the_right_labels():
    record = make_record(tiny_conditions("stage1-daa1/13")[0])
    data = make_data_record("synthetic")
    assert statistics.correct_images(record, None) is None
    assert statistics.correct_images(record, make_data_record("cifar10")) is None
    others = data.model_copy(
        update={"test_labels": pack_classes([9 - i % 10 for i in range(2000)])}
    )
    assert statistics.correct_images(record, others) is None
