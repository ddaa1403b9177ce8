"""Figures: panels, lines, numbers and words are the records' own; None without records."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import make_data_record, make_network_record, make_record
from matplotlib.colors import to_rgb

from cifarlib import diagram, display, figures
from cifarlib.config import DATASETS
from cifarlib.records import RecordStore, open_results

NAMES = DATASETS["synthetic"].classes
OVERRIDES = ["evaluation.train_every=1"]


@pytest.fixture(scope="module")
def complete(tmp_path_factory):
    """Every run of stages 1 and 2 recorded, the data set and the network described."""
    folder = tmp_path_factory.mktemp("complete")
    store = RecordStore(folder)
    store.write(make_data_record("synthetic"))
    store.write(make_network_record())
    for condition in open_results("smoke", OVERRIDES, folder).conditions:
        if condition.stage.startswith(("stage1", "stage2")):
            store.write(make_record(condition))
    return open_results("smoke", OVERRIDES, folder)


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Of the base search, the Adam runs; of the long runs, run 9 without dropout; no network."""
    folder = tmp_path_factory.mktemp("begun")
    results = open_results("smoke", [], folder)
    for condition in [
        *results.select("stage1-base", optimizer="adam"),
        *results.select("stage1-long", run=9),
    ]:
        results.store.write(make_record(condition))
    return open_results("smoke", [], folder)


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    return open_results("smoke", [], tmp_path_factory.mktemp("empty"))


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def texts(figure):
    """Everything that is written in a figure."""
    return [text.get_text() for text in figure.findobj(plt.Text) if text.get_text()]


def test_without_records_nothing_is_drawn(empty):
    assert figures.plot_examples(None) is None
    assert figures.plot_transforms(None) is None
    assert diagram.plot_network(None) is None
    assert diagram.plot_stage(None) is None


def test_without_records_the_words_still_come(empty):
    assert diagram.describe_network(None) == diagram.describe_stage(None) == "Pending."


# ---------------------------------------------------------------------------------------------
# Figures 1 and 2: the data
# ---------------------------------------------------------------------------------------------


def test_examples_and_transforms_are_the_records_images(complete):
    figure = figures.plot_examples(complete.data)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles == [f"{n} {name}" for n, name in enumerate(NAMES, start=1)]
    figure = figures.plot_transforms(complete.data)
    assert [axis.get_title() for axis in figure.axes] == list(complete.data.transforms)
    assert f"10 {NAMES[9]}" in figures.describe_examples(complete.data)
    assert "flip" in figures.describe_transforms(complete.data)


# ---------------------------------------------------------------------------------------------
# Figures 3 and 4: the network
# ---------------------------------------------------------------------------------------------


def test_the_network_is_arranged_in_rows_by_its_sums():
    rows = diagram.arrange(make_network_record())
    assert [row.name for row in rows] == ["stem", "stage", "pool … fc"]
    stage = rows[1]
    assert [box.name for box in stage.side] == ["stage.shortcut"]
    assert [box.name for box in stage.main] == [
        "stage.block1", "stage.block2", "stage.add", "stage.relu",
    ]  # fmt: skip
    assert sum(row.parameters for row in rows) == make_network_record().parameters


def test_figure_three_writes_layers_shapes_and_sums():
    network = make_network_record()
    written = texts(diagram.plot_network(network))
    assert "image\n3×8×8" in written
    assert "3×3 conv 4→6\nstride 1\nbatch norm, ReLU" in written
    assert "1×1 conv 4→6, stride 2, batch norm" in written
    assert "linear\n6→10" in written
    assert f"6×4×4\n{222 + 12 + 330 + 12 + 30 + 12}" in written  # the stage's row
    assert any(text.startswith(f"{network.parameters:,} parameters") for text in written)
    assert written.count("+") == 1


def test_figure_four_is_the_stage_layer_by_layer():
    network = make_network_record()
    written = texts(diagram.plot_stage(network))
    assert "3×3 conv 4→6, stride 1, padding 1\n6×8×8; 222 parameters" in written
    assert "1×1 conv 4→6, stride 2, padding 0\n6×4×4; 30 parameters" in written
    assert "ReLU\n6×4×4" in written
    assert "from stem.relu  4×8×8" in written


def test_the_diagrams_words_name_both_paths():
    network = make_network_record()
    assert "shortcut to the sum: 1×1 conv 4→6 stride 2 batch norm" in diagram.describe_network(
        network
    )
    said = diagram.describe_stage(network)
    assert said.startswith("Diagram of stage. Left path: 3×3 conv 4→6, batch norm, ReLU")
    assert said.endswith("Right path, into the sum: 1×1 conv 4→6, batch norm.")


# ---------------------------------------------------------------------------------------------
# All of them
# ---------------------------------------------------------------------------------------------


def test_drawings_are_small_and_the_same_twice(complete):
    drawings = [
        lambda: figures.plot_examples(complete.data),
        lambda: diagram.plot_network(make_network_record()),
    ]
    for draw in drawings:
        one, two = display.draw_svg(draw()), display.draw_svg(draw())
        assert one == two
        assert len(one) < 300_000
        assert not re.search(r'[" ]nan[" ]', one)


def contrast(colour):
    """WCAG's contrast ratio of a colour with the white behind every figure."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 1.05 / (np.dot([0.2126, 0.7152, 0.0722], parts) + 0.05)


def test_colours_stand_out_from_paper_and_page():
    colours = [*figures.RATE_COLOURS.values(), *figures.SPLIT_COLOURS.values(), figures.BEST]
    assert min(map(contrast, colours)) > 3
    assert len(set(figures.RATE_COLOURS.values())) == 4
