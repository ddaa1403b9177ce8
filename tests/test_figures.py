"""Figures: panels, lines, numbers and words are the records' own; None without records."""

import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from conftest import make_data_record, make_network_record, make_record
from matplotlib.collections import QuadMesh
from matplotlib.colors import to_hex, to_rgb

from cifarlib import curves, diagram, display, figures, tables
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
    assert figures.plot_confusion(None) is None
    assert figures.plot_last_layer(None) is None
    assert figures.plot_agreement({"SGD": tables.tabulate_base_search(empty, "sgd")}) is None
    assert curves.plot_base_search(empty) is None
    assert curves.plot_dropout(empty, 9) is None
    assert diagram.plot_network(None) is None
    assert diagram.plot_stage(None) is None


def test_without_records_the_words_still_come(empty):
    assert figures.describe_confusion(None) == "Pending."
    assert diagram.describe_network(None) == diagram.describe_stage(None) == "Pending."
    assert "no run" in curves.describe_base_search(empty)
    assert curves.describe_dropout(empty, 9).count("pending") == 5


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
# Figure 5: the base search
# ---------------------------------------------------------------------------------------------


def grid(figure):
    """The panels of Figure 5, 3 × 4."""
    return np.array(figure.axes).reshape(3, 4)


def test_figure_five_shows_every_run_and_marks_the_best(complete):
    panels = grid(curves.plot_base_search(complete, threshold=0.01))
    for row in panels[:2]:
        assert [len(axis.lines) - 1 for axis in row] == [12, 12, 12, 36]  # and the red dot
    best = complete.stage("stage1-base")["test_top1"].max()
    for axis in panels[0, [3]]:
        assert axis.lines[-1].get_ydata() == pytest.approx([best])
        assert to_hex(axis.lines[-1].get_color()) == figures.BEST


def test_figure_fives_curves_are_the_records(complete):
    panels = grid(curves.plot_base_search(complete, threshold=0.01))
    for number, condition in enumerate(complete.select("stage1-base", optimizer="adam")):
        history = complete.record(condition).result.history.test
        accuracy, loss = panels[0, 1].lines[number], panels[1, 1].lines[number]
        assert accuracy.get_ydata().tolist() == pytest.approx(
            [history.accuracy(epoch) for epoch in range(len(history.top1))]
        )
        assert loss.get_ydata().tolist() == list(history.loss)
        rate = condition.config.learning_rate
        assert accuracy.get_color() == loss.get_color() == figures.RATE_COLOURS[rate]
        assert accuracy.is_dashed() == (condition.config.weight_decay == 0.0001)


def test_figure_fives_third_row_leads_from_first_losses_to_accuracies(complete):
    panel = grid(curves.plot_base_search(complete, threshold=0.01))[2, 3]
    runs = complete.select("stage1-base")
    lines = [line for line in panel.lines if len(line.get_xdata()) == 5]
    dots = [line for line in panel.lines if line.get_marker() in "os^" and line.get_xdata()[0] < 1]
    assert len(lines) == len(dots) == len(runs)
    losses = [complete.record(c).result.history.test.loss[0] for c in runs]
    heights = [dot.get_ydata()[0] for dot in dots]
    assert np.argsort(heights).tolist() == np.argsort(losses).tolist()
    for condition, dot in zip(runs, dots, strict=True):
        colour, mark = figures.BATCH_MARKS[condition.config.batch_size]
        assert (dot.get_color(), dot.get_marker()) == (colour, mark)
    accuracies = [complete.record(c).accuracy("test") for c in runs]
    ends = np.array([line.get_ydata()[4] for line in lines])
    low, high = min(accuracies), max(accuracies)
    assert ends == pytest.approx((np.array(accuracies) - low) / (high - low))


def test_equal_first_losses_stand_side_by_side(begun):
    alike = begun.select("stage1-base", optimizer="adam")
    for condition in alike:
        record = begun.records[condition.run_id]
        history = record.result.history
        test = history.test.model_copy(update={"loss": (2.5, *history.test.loss[1:])})
        result = record.result.model_copy(
            update={"history": history.model_copy(update={"test": test})}
        )
        begun.records[condition.run_id] = record.model_copy(update={"result": result})
    panel = grid(curves.plot_base_search(begun, threshold=0.01))[2, 1]
    dots = [line for line in panel.lines if line.get_marker() in "os^" and line.get_xdata()[0] < 1]
    assert {dot.get_ydata()[0] for dot in dots} == {0.5}
    assert len({round(float(dot.get_xdata()[0]), 6) for dot in dots}) == 3  # batch sizes
    assert "2.5" in [text.get_text() for text in panel.texts]


def test_figure_five_with_one_optimiser_recorded(begun):
    panels = grid(curves.plot_base_search(begun, threshold=99.0))
    assert [axis.get_title() for axis in panels[0]] == [
        "SGD (0 runs)", "Adam (12 runs)", "AdamW (0 runs)", "above 99 % (0 runs)",
    ]  # fmt: skip
    assert [len(axis.lines) for axis in panels[0]] == [0, 13, 0, 0]


def test_figure_fives_legend_says_what_marks_mean(complete):
    figure = curves.plot_base_search(complete, threshold=0.01)
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [
        *("learning rate 0.001", "learning rate 0.0001", "L2 0.001", "L2 0.0001"),
        *(f"first loss, batch size {size}" for size in (32, 64, 256)),
        "best run",
    ]


def test_figure_fives_words_name_the_best_runs(complete):
    said = curves.describe_base_search(complete, 0.01)
    frame = complete.stage("stage1-base").query("optimizer == 'sgd'")
    best = frame.loc[frame["test_top1"].idxmax()]
    assert f"SGD: 12 runs, best run {best['run']} with {best['test_top1']:.1f} %" in said


def test_the_threshold_falls_where_no_run_reaches_the_papers(complete, empty):
    assert curves.choose_threshold(empty) == 70.0
    assert curves.choose_threshold(complete, threshold=33.0) == 33.0
    best = complete.stage("stage1-base")["test_top1"].max()
    chosen = curves.choose_threshold(complete)
    assert chosen == 70.0 if best > 70 else 0.8 * best < chosen < best


# ---------------------------------------------------------------------------------------------
# Figures 8 and 9: dropout
# ---------------------------------------------------------------------------------------------


def test_dropout_has_a_row_for_each_level_with_the_records_curves(complete):
    figure = curves.plot_dropout(complete, 13)
    panels = np.array(figure.axes).reshape(5, 2)
    assert [axis.get_title(loc="left") for axis in panels[:, 0]] == [
        f"dropout {p:g}: loss" for p in (0, 0.1, 0.2, 0.5, 0.7)
    ]
    record = complete.record(complete.find("stage2-dropout", 13, dropout=0.5))
    history = record.result.history
    train, test, chosen = panels[3, 0].lines
    assert train.get_ydata().tolist() == list(history.training_loss[1:])
    assert test.get_ydata().tolist() == list(history.test.loss)
    assert chosen.get_xdata()[0] == record.reported_epoch
    curves_ = panels[3, 1].lines[:6]  # top-1, 2, 3 of training and test set
    expected = [history.split(s).accuracy(2, k) for k in (1, 2, 3) for s in ("train", "test")]
    assert [line.get_ydata()[2] for line in curves_] == pytest.approx(expected)
    assert f"{record.accuracy('test'):.1f}" in panels[3, 1].get_title(loc="left")


def test_missing_dropout_runs_say_pending(begun):
    figure = curves.plot_dropout(begun, 9)
    panels = np.array(figure.axes).reshape(5, 2)
    assert texts(figure).count("pending") == 8
    dots = [line for line in panels[0, 1].lines if line.get_marker() == "o"]
    assert len(dots) == 1  # training accuracy at the chosen epochs only
    assert 1 <= len(dots[0].get_xdata()) <= 3
    assert curves.plot_dropout(begun, 13) is None
    said = curves.describe_dropout(begun, 9)
    assert said.count("pending") == 4
    record = begun.record(begun.find("stage1-long", 9))
    assert f"dropout 0 reaches {record.accuracy('test'):.1f} %" in said


# ---------------------------------------------------------------------------------------------
# Figures 6, 7 and 10, and the last layer
# ---------------------------------------------------------------------------------------------


def test_confusion_shares_add_up_to_their_class(complete):
    record = complete.record(complete.find("stage1-long", 13))
    left, right = figures.plot_confusion(record).axes
    for axis, split in ((left, "train"), (right, "test")):
        mesh = axis.findobj(QuadMesh)[0]
        shares = np.asarray(mesh.get_array()).reshape(10, 10)
        counts = np.array(record.result.predictions.confusion[split])
        assert shares.sum(axis=1) == pytest.approx([100.0] * 10)
        assert shares == pytest.approx(100 * counts / counts.sum(axis=1, keepdims=True))
        written = [text.get_text() for text in axis.texts]
        assert written == [f"{share:.0f}" if share >= 0.5 else "" for share in shares.ravel()]
        labels = [label.get_text() for label in axis.get_yticklabels()]
        assert labels == [f"{n} {name}" for n, name in enumerate(NAMES, start=1)]


def test_the_confusions_words_name_the_largest_mistake(complete):
    record = complete.record(complete.find("stage1-long", 13))
    counts = np.array(record.result.predictions.confusion["test"], dtype=float)
    shares = 100 * counts / counts.sum(axis=1, keepdims=True)
    np.fill_diagonal(shares, 0)
    said = figures.describe_confusion(record)
    assert f" {shares.max():.0f} %," in said
    epoch = record.result.predictions.epoch
    assert f"test set, top-1 {record.accuracy('test', epoch=epoch):.1f} %" in said


def test_the_last_layers_heat_map_holds_its_weights(complete):
    record = complete.record(complete.find("stage2-improved", 13))
    weights = record.result.predictions.weights
    figure = figures.plot_last_layer(record)
    image = figure.axes[0].images[0]
    assert np.asarray(image.get_array())[::8] == pytest.approx(weights)
    assert image.norm.vmax == -image.norm.vmin == pytest.approx(np.abs(weights).max())
    bars = [bar.get_width() for bar in figure.axes[1].patches]
    assert bars == pytest.approx(np.sqrt((weights**2).mean(axis=1)))
    assert f"{weights.max():.2f}" in figures.describe_last_layer(record)


# ---------------------------------------------------------------------------------------------
# All of them
# ---------------------------------------------------------------------------------------------


def test_agreement_in_words_is_the_rank_correlation(complete, begun):
    searches = {
        "SGD": tables.tabulate_base_search(begun, "sgd"),
        "Adam": tables.tabulate_base_search(begun, "adam"),
    }
    rank = searches["Adam"]["Test", "ours"].corr(searches["Adam"]["Test", "paper"], "spearman")
    assert f"SGD pending, Adam {rank:.2f}." in figures.describe_agreement(searches)
    assert len(figures.plot_agreement(searches).axes) == 2


def test_drawings_are_small_and_the_same_twice(complete):
    record = complete.record(complete.find("stage2-improved", 13))
    drawings = [
        lambda: figures.plot_confusion(record),
        lambda: figures.plot_last_layer(record),
        lambda: curves.plot_base_search(complete, 0.01),
        lambda: curves.plot_dropout(complete, 9),
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
