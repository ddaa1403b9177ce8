"""The drawing of the residual network: boxes, rows, words and arrows are the record's own."""

import matplotlib.pyplot as plt
import pytest
from conftest import make_network_record

from cifarlib.report import diagram, show


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def test_arrange_puts_the_shortcut_beside_the_rows_between_its_ends():
    boxes = {box.name: box for box in diagram.arrange(make_network_record())}
    assert list(boxes) == [
        *("", "stem", "stage.block1", "stage.block2", "stage.shortcut", "stage", "pool … fc"),
    ]
    rows = {name: box.row for name, box in boxes.items() if not box.aside}
    assert list(rows.values()) == list(range(6))
    shortcut, stem, total = (boxes[name] for name in ("stage.shortcut", "stem", "stage"))
    assert shortcut.aside
    assert shortcut.row == (stem.row + total.row) / 2
    assert shortcut.sources == (stem,)
    assert total.sources == (boxes["stage.block2"], shortcut)


def test_arrange_spreads_the_layers_of_one_stage():
    boxes = diagram.arrange(make_network_record(), "stage")
    assert boxes[0].text == "stem.relu, 4×8×8"
    assert [box.row for box in boxes if not box.aside] == list(range(9))
    assert [box.row for box in boxes if box.aside] == pytest.approx([7 / 3, 14 / 3])


def test_plot_network_writes_layers_shapes_and_parameters():
    network = make_network_record()
    figure = diagram.plot_network(network)
    written = [text.get_text() for text in figure.findobj(plt.Text) if text.get_text()]
    assert "input, 3×8×8" in written
    assert "3×3 conv 4→6, stride 1, batch norm, ReLU\n6×8×8; 234 parameters" in written
    assert "1×1 conv 4→6, stride 2, batch norm\n6×4×4; 42 parameters" in written
    assert "sum, ReLU\n6×4×4" in written
    assert "average pooling, flatten, linear 6→10\n10; 70 parameters" in written
    assert diagram.plot_network(None) is None


def test_plot_network_draws_an_arrow_for_each_input():
    axis = diagram.plot_network(make_network_record(), "stage").axes[0]
    arrows = [text for text in axis.texts if getattr(text, "arrow_patch", None)]
    assert len(arrows) == 11  # ten boxes, one of which has two inputs
    assert len(axis.patches) == 10
    dashed = [line for line in axis.lines if line.get_linestyle() == "--"]
    assert len(dashed) == 3  # into the shortcut, within it, and back


def test_describe_network_names_both_paths():
    said = diagram.describe_network(make_network_record(), "stage")
    assert said.startswith(
        "Diagram of 10 boxes, from top to bottom: stem.relu, 4×8×8. block1.conv:"
    )
    assert "beside it, shortcut.conv: 1×1 conv 4→6, stride 2, padding 0; output 6×4×4;" in said
    assert diagram.describe_network(None) == "Pending."


def test_drawings_are_the_same_twice():
    one, two = (show.draw_svg(diagram.plot_network(make_network_record())) for _ in range(2))
    assert one == two
