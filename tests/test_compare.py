"""The paper beside ours: rows meet by their settings, seeds are averaged, states are said."""

import numpy as np
import pandas as pd
import pytest

from cifarlib.analysis.compare import compare

PAPER = pd.DataFrame({
    "run": [1, 2, 3], "batch_size": [32, 64, 128], "epoch": [5, 6, 7],
    "test_top1": [60.0, 61.0, 62.0],
})  # fmt: skip
OURS = pd.DataFrame({
    "batch_size": [64, 64, 32, 128], "seed": [1, 2, 1, 1], "run_id": ["a", "b", "c", "d"],
    "epoch": [3.0, 5.0, 2.0, None], "test_top1": [70.0, 72.0, 60.5, None],
    "state": ["recorded", "recorded", "recorded", "diverged"],
})  # fmt: skip


def test_compare_joins_rows_by_their_settings_and_averages_seeds():
    frame = compare(PAPER, OURS, on=["batch_size"])
    assert frame.columns.tolist() == [
        ("", "Run"), ("", "Batch"), ("Test", "paper"), ("Test", "ours"), ("Test", "diff."),
        ("Epoch", "paper"), ("Epoch", "ours"),
    ]  # fmt: skip
    assert frame["Test", "ours"].tolist()[:2] == [60.5, 71.0]
    assert frame["Test", "diff."].tolist()[:2] == [0.5, 10.0]
    assert frame["Epoch", "ours"].tolist()[:2] == [2.0, 4.0]
    assert frame.attrs["runs"] == {0: ("c",), 1: ("a", "b"), 2: ("d",)}


def test_compare_takes_a_column_as_a_text():
    frame = compare(PAPER, OURS, on="batch_size", values="test_top1", names="run")
    pd.testing.assert_frame_equal(
        frame, compare(PAPER, OURS, on=["batch_size"], values=["test_top1"], names=["run"])
    )


def test_compare_says_what_a_missing_value_is():
    frame = compare(PAPER, OURS.iloc[:-1], on=["batch_size"])
    assert np.isnan(frame["Test", "ours"].iloc[2])
    assert frame.attrs["runs"] == {0: ("c",), 1: ("a", "b")}
    assert compare(PAPER, OURS, on=["batch_size"]).attrs["states"][2] == "diverged"


def test_compare_keeps_the_runs_of_rows_that_are_filtered():
    frame = compare(PAPER, OURS, on=["batch_size"]).sort_values(("Test", "ours")).iloc[:1]
    assert frame.attrs["runs"][frame.index[0]] == ("c",)


@pytest.mark.parametrize(
    ("paper", "on", "said"),
    [
        (PAPER, ["dropout"], "dropout is no column of paper; join on another: known are"),
        ("IV", ["batch_size"], r"paper is 'IV'; give a frame, such as cl.paper.table\('IV'\)"),
        (PAPER.assign(batch_size=32), ["batch_size"], "rows of the paper are equal in batch_size"),
    ],
)
def test_compare_refuses_rows_that_cannot_meet(paper, on, said):
    with pytest.raises(ValueError, match=said):
        compare(paper, OURS, on=on)


def test_compare_refuses_to_average_what_is_not_one_condition():
    named = OURS.assign(name=["a/1", "b/1", "a/2", "a/3"])
    with pytest.raises(ValueError, match="a/1 and b/1 are equal in batch_size, but not the same"):
        compare(PAPER, named, on=["batch_size"])
    with pytest.raises(ValueError, match="differ in optimizer, sgd in the paper's and adam"):
        compare(PAPER.assign(optimizer="sgd"), OURS.assign(optimizer="adam"), on="batch_size")
    with pytest.raises(ValueError, match="foo is no column of both frames"):
        compare(PAPER, OURS, on=["batch_size"], values=["foo"])
    with pytest.raises(ValueError, match="name the columns in which rows meet"):
        compare(PAPER, OURS, on=[])
