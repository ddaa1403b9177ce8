"""Figures for exploring."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import make_record, tiny_conditions
from matplotlib.colors import to_hex
from test_collection import STUDY, write_runs

from cifarlib.explore import sketches


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_the_grid_has_a_line_for_each_run_through_its_values(tmp_path):
    frame = write_runs(tmp_path).frame
    shown, chosen = frame.index[:3], frame.index[:1]
    figure = sketches.plot_grid(frame, ["learning_rate", "weight_decay"], shown, chosen)
    axis = figure.axes[0]
    lines = [line for line in axis.lines if len(line.get_xdata()) > 2]
    assert len(lines) == len(frame)
    grey = [line for line in lines if to_hex(line.get_color()) == sketches.NOT_CHOSEN]
    assert len(grey) == len(frame) - 3
    assert sum(line.get_linewidth() > 2 for line in lines) == 1
    rates = sorted(frame["learning_rate"].unique())
    low, high = frame["test_top1"].min(), frame["test_top1"].max()
    for name, row in frame.iterrows():
        ends = rates.index(row["learning_rate"]) / 3, (row["test_top1"] - low) / (high - low)
        found = [
            line
            for line in lines
            if abs(line.get_ydata()[0] - ends[0]) <= sketches.SPREAD + 1e-9
            and line.get_ydata()[-1] == pytest.approx(ends[1])
        ]
        assert found, name
    labels = [label.get_text() for label in axis.get_xticklabels()]
    assert labels == ["learning rate", "weight decay (L2)", "test top-1, %"]
    assert {"0.1", "0.01", "0.001", "0.0001"} <= {text.get_text() for text in axis.texts}


def test_the_grid_of_one_run_can_be_drawn(tmp_path):
    frame = write_runs(tmp_path, STUDY[:1]).frame
    figure = sketches.plot_grid(frame, ["dropout"], frame.index)
    (line,) = (line for line in figure.axes[0].lines if len(line.get_xdata()) > 2)
    assert set(line.get_ydata()) == {0.5}


def test_lines_bend_from_axis_to_axis():
    x, y = sketches._bend(np.array([0.0, 1.0, 0.5]))
    at = dict(zip(x.round(6), y, strict=False))
    assert (at[0.0], at[2.0]) == (0.0, 0.5)
    assert y.max() == 1.0
    assert x[y.argmax()] == pytest.approx(1.0)


def test_curves_are_the_records(tmp_path):
    conditions = tiny_conditions("stage1-long/9", "stage1-long/13")
    records = {c.name: make_record(c) for c in conditions}
    axis = sketches.plot_curves(records, "test", "top-1 accuracy, %").axes[0]
    lines = {line.get_label(): line for line in axis.lines if line.get_label() in records}
    for name, record in records.items():
        assert list(lines[name].get_xdata()) == [0, 1, 2, 3]
        accuracies = [record.accuracy("test", epoch=epoch) for epoch in range(4)]
        assert list(lines[name].get_ydata()) == accuracies
    dots = [line for line in axis.lines if line.get_marker() == "o"]
    assert [dot.get_xdata()[0] for dot in dots] == [r.reported_epoch for r in records.values()]
    assert axis.get_ylabel() == "test top-1 accuracy, %"


def test_a_set_that_was_evaluated_once_is_a_dot():
    (condition,) = tiny_conditions("stage1-long/9")
    record = make_record(condition)
    epochs, losses = sketches.trace(record, "train", "loss")
    assert epochs == [record.reported_epoch]
    assert losses == [record.result.history.train.loss[record.reported_epoch]]


def test_curves_can_be_told_apart():
    kinds = {(colour, str(line)) for colour in sketches.COLOURS for line in sketches.LINES}
    assert len(kinds) == sketches.MOST


def test_nothing_is_drawn_of_nothing():
    assert sketches.plot_curves({}, "test", "loss") is None
    assert sketches.plot_progress({}, 4) is None


def test_progress_is_drawn_over_all_its_epochs():
    axis = sketches.plot_progress({1: 20.0, 2: 30.0}, 10).axes[0]
    assert axis.get_xlim() == (0, 10)
    assert list(axis.lines[0].get_ydata()) == [20.0, 30.0]
