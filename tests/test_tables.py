"""The paper's tables beside ours: right rows, right cells, pending where nothing is recorded."""

from types import SimpleNamespace

import numpy as np
import pytest
from conftest import make_data_record, make_network_record, make_record

from cifarlib import data, tables
from cifarlib.errors import DataError
from cifarlib.records import RecordStore, Statistics, open_results
from cifarlib.sweep import describe

SEEDS = ["seeds=[1, 2]"]


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Smoke with two seeds, every condition recorded with made-up numbers."""
    folder = tmp_path_factory.mktemp("complete")
    store = RecordStore(folder)
    store.write(make_data_record("synthetic"))
    for condition in open_results("smoke", SEEDS, folder).conditions:
        store.write(make_record(condition))
    return open_results("smoke", SEEDS, folder)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return open_results("smoke", [], tmp_path_factory.mktemp("empty"))


def mean_test_accuracy(results, stage, run, **changed):
    chosen = [c for c in results.conditions if (c.stage, c.run, c.changed) == (stage, run, changed)]
    assert len(chosen) == 2  # seeds
    return np.mean([results.record(c).accuracy("test") for c in chosen])


def test_the_models_are_matched_with_their_runs(complete, empty):
    table = tables.tabulate_models(complete)
    improved = mean_test_accuracy(complete, "stage2-improved", 13)
    densenet = mean_test_accuracy(complete, "stage3", 3)
    assert table["Test", "paper"].tolist() == [89.97, 91.25, 90.28, 89.9, 83.85]
    assert table["Test", "ours"].iloc[0] == pytest.approx(improved)
    assert table["Test", "ours"].iloc[4] == pytest.approx(densenet)
    assert table["Test", "ours"].iloc[1] == "–"  # not of this study
    assert not table["", "Model"].str.contains("pending").any()
    waiting = tables.tabulate_models(empty)["", "Model"].str.contains(tables.WAITING)
    assert waiting.tolist() == [False, False, False, True, True]


def test_resize_methods_stand_in_the_studys_order(complete):
    table = tables.tabulate_interpolation_accuracy(complete)
    methods = ["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"]
    assert table["Method"].tolist() == methods
    assert table["Test"].iloc[5] == pytest.approx(mean_test_accuracy(complete, "interpolation", 6))


def test_data_tables_hold_the_record_and_wait_without_one(complete, empty):
    normal = tables.tabulate_normalization(complete)
    ours = [*complete.data.statistics.mean, *complete.data.statistics.std]
    assert normal["ours"].tolist() == pytest.approx(ours)
    assert normal["paper"].tolist() == [0.01, 0.0098, 0.0091, 0.0773, 0.0759, 0.0728]
    resized = tables.tabulate_interpolation_statistics(complete)
    assert len(resized) == 12
    assert resized["G", "ours"].iloc[0] == complete.data.resized["nearest"].mean[1]
    assert tables.tabulate_normalization(empty)["ours"].isna().all()
    assert tables.tabulate_interpolation_statistics(empty)["R", "ours"].isna().all()
    assert tables.tabulate_classes(empty)["Test"].isna().all()
    assert tables.tabulate_classes(complete)["Train"].sum() == sum(
        complete.data.class_counts["train"]
    )


def test_table_ones_means_are_a_forty_ninth_of_cifar10s(empty):
    """Eq. 1 over N·M = 224² on images of 32²."""
    try:
        mean, std = data.channel_statistics(data.load("cifar10")[0].images)
    except DataError as error:
        pytest.skip(f"CIFAR-10 is not here: {error}")
    assert mean == pytest.approx([0.49139968, 0.48215841, 0.44653091], abs=1e-8)
    assert std == pytest.approx([0.24703223, 0.24348513, 0.26158784], abs=1e-8)
    record = make_data_record("synthetic").model_copy(
        update={"statistics": Statistics(mean=tuple(mean.tolist()), std=tuple(std.tolist()))}
    )
    table = tables.tabulate_normalization(SimpleNamespace(data=record))
    assert table["ours / listing"].iloc[:3].tolist() == pytest.approx([49.0] * 3, abs=1e-4)


# ---------------------------------------------------------------------------------------------
# Stages, layers, top-k, confusion
# ---------------------------------------------------------------------------------------------


def test_layers_add_up_in_the_last_row(empty):
    network = make_network_record()
    table = tables.tabulate_layers(SimpleNamespace(network=network))
    assert table["Layer"].tolist()[0] == "stem.conv"
    assert table["Operation"].tolist()[0] == "Conv2d 3×3, stride 1, padding 1"
    assert table["Output"].tolist()[0] == "4×8×8"
    for column in ("Parameters", "MFLOPs"):
        assert table[column].iloc[:-1].sum() == pytest.approx(table[column].iloc[-1])
    assert table["Parameters"].iloc[-1] == network.parameters
    assert tables.tabulate_layers(empty).isna().all(axis=None)


def test_the_networks_table_ends_with_the_papers_size():
    pytest.importorskip("torch")

    table = tables.tabulate_layers(SimpleNamespace(network=describe.describe_network()))
    assert table["Parameters"].iloc[-1] == 4_869_066
    assert len(table) == 11 + 11 + 1 + 1  # convolutions, their norms, the last layer, the sum


# ---------------------------------------------------------------------------------------------
# The runs behind the rows
# ---------------------------------------------------------------------------------------------


def test_rows_name_the_runs_behind_them(complete):
    models = tables.tabulate_models(complete)
    assert [len(runs) for runs in models.attrs["runs"]] == [2, 0, 2, 2, 2]
    improved = tuple(c.run_id for c in complete.select("stage2-improved"))
    assert models.attrs["runs"][0] == improved
    resized = tables.tabulate_interpolation_accuracy(complete)
    assert [len(runs) for runs in resized.attrs["runs"]] == [2] * 6
