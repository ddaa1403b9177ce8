"""Calibration: of made-up predictions whose error is known, and of records of both studies."""

import dataclasses

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import make_data_record, make_record

from cifarlib.beyond import calibration
from cifarlib.beyond.calibration import Calibration
from cifarlib.beyond.seeds import by_label
from cifarlib.records import Results, open_results
from cifarlib.study import STUDIES

OVERRIDES = ("data={name: synthetic, train_size: 20, validation_size: 10, test_size: 40}",)


def give(folder, study: str, skip=lambda condition: False) -> Results:
    """Made-up records of a study at a small scale, with the labels of its test images."""
    results = open_results("smoke", OVERRIDES, folder, STUDIES[study])
    records = {c.run_id: make_record(c) for c in results.conditions if not skip(c)}
    return dataclasses.replace(results, records=records, data=make_data_record("synthetic"))


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Results:
    return give(tmp_path_factory.mktemp("study"), "study")


@pytest.fixture(scope="module")
def beyond(tmp_path_factory) -> Results:
    stages = (calibration.RECIPE,)
    return give(tmp_path_factory.mktemp("beyond"), "beyond", lambda c: c.stage not in stages)


# -- one network --------------------------------------------------------------------------------


def test_the_error_is_the_bins_gap_weighted_by_images():
    sure = Calibration(
        np.array([0.9] * 10 + [0.5] * 30),
        np.array([True] * 6 + [False] * 4 + [True] * 18 + [False] * 12),
    )
    # 10 images 30 points too sure, 30 images 10 points too modest
    assert sure.error == pytest.approx((10 * 30 + 30 * 10) / 40)
    assert sure.accuracy == pytest.approx(60)
    assert sure.mean_confidence == pytest.approx(60)
    bins = sure.reliability()
    assert bins.images.tolist() == [30, 10]
    assert bins.confidence.tolist() == pytest.approx([50, 90])
    assert bins.accuracy.tolist() == pytest.approx([60, 60])


def test_bins_are_open_below_and_hold_every_stored_probability():
    stored = np.arange(256, dtype=np.uint8) / 255
    bins = Calibration(stored, np.zeros(256, dtype=bool)).bins
    assert bins[[0, 17, 18, 34, 35, 238, 239, 255]].tolist() == [0, 0, 1, 1, 2, 13, 14, 14]
    assert np.bincount(bins).tolist() == [18] + [17] * 14


def test_the_interval_is_of_images_and_narrows_with_them():
    random = np.random.default_rng(1)
    confidence = random.uniform(0.3, 1, 4000)
    correct = random.random(4000) < confidence - 0.2  # 20 points too sure
    all_images = Calibration(confidence, correct)
    some = Calibration(confidence[:400], correct[:400])
    assert all_images.error == pytest.approx(20, abs=3)
    for one in (all_images, some):
        assert one.interval.low < one.error < one.interval.high
    widths = [one.interval.high - one.interval.low for one in (all_images, some)]
    assert widths[0] < widths[1] / 2
    assert Calibration(confidence, correct).interval == all_images.interval


# -- records ------------------------------------------------------------------------------------


def test_the_best_run_of_each_stage_is_chosen_on_validation_images(study, beyond):
    networks = calibration.calibrate(study, beyond)
    assert len(networks) == len(study.study.stages) + 2
    first = networks[0]
    of_stage = [study.record(c).accuracy("validation") for c in study.select("stage1-base")]
    assert first.record.accuracy("validation") == max(of_stage)
    predictions = first.record.result.predictions
    matrix = np.array(predictions.confusion["test"])
    assert first.calibration.accuracy == pytest.approx(100 * matrix.trace() / matrix.sum())
    assert first.calibration.mean_confidence == pytest.approx(100 * predictions.confidence.mean())


def test_label_smoothing_is_paired_by_seed_with_the_step_before_it(beyond, tmp_path):
    labels = by_label(beyond, calibration.RECIPE)
    names = list(labels)
    before = names[names.index(calibration.SMOOTHING) - 1]
    one, two = calibration.smoothing_pair(beyond)
    assert one.record.config.label_smoothing == 0 < two.record.config.label_smoothing
    assert one.record.config.seed == two.record.config.seed == 42
    gone = labels[before][0].run_id
    records = {run: record for run, record in beyond.records.items() if run != gone}
    one, two = calibration.smoothing_pair(dataclasses.replace(beyond, records=records))
    assert one.record.config.seed == two.record.config.seed == 43
    one, two = calibration.smoothing_pair(dataclasses.replace(beyond, records={}))
    assert (one.calibration, two.calibration) == (None, None)


def test_without_records_or_without_the_sets_labels_all_is_pending(study, beyond):
    unlabelled = (dataclasses.replace(results, data=None) for results in (study, beyond))
    unrecorded = (dataclasses.replace(results, records={}) for results in (study, beyond))
    for two in (unlabelled, unrecorded):
        networks = calibration.calibrate(*two)
        frame = calibration.tabulate_calibration(networks)
        assert frame.drop(columns="Network").isna().all(axis=None)
        assert calibration.plot_calibration(networks) is None
        assert calibration.describe_calibration(networks).count("pending") == len(networks)
        assert "pending" in calibration.say_calibration(networks)


def test_table_figure_and_words_agree(study, beyond):
    networks = calibration.calibrate(study, beyond)
    frame = calibration.tabulate_calibration(networks)
    assert frame["Network"].tolist() == [n.title for n in networks]
    assert frame.attrs["runs"] == [(n.record.run_id,) for n in networks]
    gap = frame["Mean confidence"] - frame["Test top-1"]
    assert frame["Confidence less accuracy"].tolist() == pytest.approx(gap.tolist())
    figure = calibration.plot_calibration(networks)
    assert len(figure.axes) == len(networks)
    plt.close("all")
    alt, told = calibration.describe_calibration(networks), calibration.say_calibration(networks)
    assert all(f"error {error:.1f} points" in alt for error in frame["Calibration error"])
    before, after = frame["Calibration error"].iloc[-2:]
    assert f"{after:.2f} points where it was {before:.2f}" in told
    assert f"{int((gap > 0).sum())} of {len(networks)} networks" in told
    pending = [*networks[:-1], dataclasses.replace(networks[-1], calibration=None)]
    assert "pending" in calibration.say_calibration(pending)
