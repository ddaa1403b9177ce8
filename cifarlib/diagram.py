"""The residual network as a drawing (Figs. 3 and 4), made from what its execution noted.

Nothing about the network is known here: boxes, arrows, shapes and numbers come from the
``NetworkRecord``. Consecutive layers of one module share a box; a module that adds two paths is
a stage and has a row of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from cifarlib.figures import STYLE
from cifarlib.records import Layer, NetworkRecord
from cifarlib.tables import write_shape

INPUT = "input"
WORDS = {
    "Conv2d": "conv",
    "BatchNorm2d": "batch norm",
    "ReLU": "ReLU",
    "AdaptiveAvgPool2d": "average\npooling",
    "Dropout": "dropout",
    "Linear": "linear",
    "add": "+",
}
MAIN, SIDE, PLAIN, EDGE = "#dcebf7", "#d9f0e9", "#f1f1f1", "#33475b"
SIDE_EDGE = "#00796b"


@dataclass(frozen=True)
class Box:
    """Consecutive layers that one module executes."""

    name: str
    layers: tuple[Layer, ...]

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.layers[0].inputs

    @property
    def output(self) -> Layer:
        return self.layers[-1]

    @property
    def joins(self) -> bool:
        """Does it add two paths?"""
        return len(self.inputs) > 1


@dataclass(frozen=True)
class Row:
    """Boxes in their order; ``side`` is the shortcut beside them, which ``main`` joins."""

    name: str
    main: tuple[Box, ...]
    side: tuple[Box, ...] = ()

    @property
    def boxes(self) -> tuple[Box, ...]:
        return (*self.main, *self.side)

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for box in self.boxes for layer in box.layers)


def arrange(network: NetworkRecord) -> list[Row]:
    """The network's boxes in rows: one for each stage, one for the modules between stages."""
    boxes = _boxes(network.layers)
    stages = {_top(box) for box in boxes if box.joins}
    rows = []
    for stage, members in groupby(boxes, lambda box: _top(box) if _top(box) in stages else ""):
        part = tuple(members)
        if not stage:
            names = list(dict.fromkeys(_top(box) for box in part))
            rows.append(Row(" … ".join(dict.fromkeys([names[0], names[-1]])), part))
            continue
        side = _shortcut(part)
        rows.append(Row(stage, tuple(box for box in part if box not in side), side))
    return rows


def _top(box: Box) -> str:
    return box.name.partition(".")[0]


def _boxes(layers: Sequence[Layer]) -> list[Box]:
    """Layers by the module that holds them, unless that module holds other modules as well."""
    parents = {layer.name.rpartition(".")[0] for layer in layers}

    def owner(layer: Layer) -> str:
        parent = layer.name.rpartition(".")[0]
        mixed = any(other.startswith(f"{parent}.") for other in parents)
        return layer.name if not parent or mixed else parent

    return [Box(name, tuple(members)) for name, members in groupby(layers, owner)]


def _shortcut(boxes: Sequence[Box]) -> tuple[Box, ...]:
    """The shorter of the two paths that the row adds."""
    by_output = {box.output.name: box for box in boxes}
    join = next(box for box in boxes if box.joins)
    paths = []
    for name in join.inputs:
        path = []
        while name in by_output:
            path.insert(0, by_output[name])
            name = by_output[name].inputs[0]
        paths.append(tuple(path))
    return min(paths, key=lambda path: sum(len(box.layers) for box in path))


# ---------------------------------------------------------------------------------------------
# Words
# ---------------------------------------------------------------------------------------------


def _channels(network: NetworkRecord, layer: Layer) -> str:
    """``64→128``: channels or features of a layer's input and output."""
    outputs = {other.name: other.output for other in network.layers} | {INPUT: network.image}
    return f"{outputs[layer.inputs[0]][0]}→{layer.output[0]}"


def _words(network: NetworkRecord, layer: Layer) -> str:
    word = WORDS.get(layer.kind, layer.kind)
    if layer.kernel:
        return f"{layer.kernel}×{layer.kernel} {word} {_channels(network, layer)}"
    return f"{word}\n{_channels(network, layer)}" if layer.kind == "Linear" else word


def _label(network: NetworkRecord, box: Box) -> str:
    first, *others = box.layers
    lines = [_words(network, first)]
    if first.stride:
        lines.append(f"stride {first.stride}")
    if others:
        lines.append(", ".join(WORDS.get(layer.kind, layer.kind) for layer in others))
    return "\n".join(lines)


def describe_network(network: NetworkRecord | None) -> str:
    """Figure 3 in words: its rows from image to logits."""
    if network is None:
        return "Pending."
    parts = []
    for row in arrange(network):
        way = ", ".join(_label(network, box).replace("\n", " ") for box in row.main)
        if row.side:
            shortcut = ", ".join(_label(network, box).replace("\n", " ") for box in row.side)
            way += f"; shortcut to the sum: {shortcut}"
        parts.append(f"{row.name}: {way} (output {write_shape(row.main[-1].output.output)})")
    return (
        f"Diagram of {len(parts)} rows, from an image {write_shape(network.image)} to "
        f"{network.layers[-1].output[0]} logits. {'. '.join(parts)}."
    )


def describe_stage(network: NetworkRecord | None) -> str:
    """Figure 4 in words: the two paths of the first stage."""
    row = _first_stage(network)
    if network is None or row is None:
        return "Pending."
    paths = [
        ", ".join(_words(network, layer).replace("\n", " ") for box in part for layer in box.layers)
        for part in (row.main, row.side)
    ]
    return f"Diagram of {row.name}. Left path: {paths[0]}. Right path, into the sum: {paths[1]}."


# ---------------------------------------------------------------------------------------------
# Drawings, in inches
# ---------------------------------------------------------------------------------------------


def plot_network(network: NetworkRecord | None) -> Figure | None:
    """Figure 3: the whole network, a row for each stage, shortcuts above the rows."""
    if network is None:
        return None
    rows = arrange(network)
    tops, depth = [], 0.3
    for row in rows:
        depth += _space(row)
        tops.append(depth)
        depth += HEIGHT + 0.18
    with mpl.rc_context(STYLE):
        figure, axis = _canvas(WIDTH, depth + 0.1)
        axis.text(WIDTH, 0.12, "output\nparameters", ha="right", va="center", fontsize=7.5)
        start = (LEFT, tops[0] + HEIGHT / 2)
        _write(axis, LEFT - 0.1, start[1], f"image\n{write_shape(network.image)}", ha="right")
        for row, top in zip(rows, tops, strict=True):
            start = _draw_row(axis, network, row, top, start, last=row is rows[-1])
        total = f"{network.parameters:,} parameters, {network.flops / 1e6:.0f} MFLOPs an image"
        axis.text(LEFT, depth, total, fontsize=8, va="center", color=EDGE)
    return figure


def _space(row: Row) -> float:
    """Room above a row, for its shortcut."""
    return 0.5 if row.side else 0.08


WIDTH, HEIGHT = 7.2, 0.5
LEFT, RIGHT = 0.95, 6.2  # where the boxes of a row begin and end


def _draw_row(
    axis: Axes,
    network: NetworkRecord,
    row: Row,
    top: float,
    start: tuple[float, float],
    last: bool,
) -> tuple[float, float]:
    """One row, entered from ``start``; gives the point at which the next row begins."""
    middle = top + HEIGHT / 2
    widths = [_weight(box) for box in row.main]
    step = (RIGHT - LEFT) / sum(widths)
    if start[1] != middle:  # from the end of the row above, along the gap, to this row's left
        gap = top - _space(row) - 0.06
        _line(axis, [start, (RIGHT + 0.1, start[1]), (RIGHT + 0.1, gap), (LEFT - 0.15, gap)])
        _line(axis, [(LEFT - 0.15, gap), (LEFT - 0.15, middle), (LEFT, middle)])
        _write(axis, LEFT - 0.22, middle, row.name.replace(" … ", " …\n"), ha="right")
    x = LEFT
    for number, box in enumerate(row.main):
        centre = LEFT + (sum(widths[:number]) + widths[number] / 2) * step
        half = 0.15 if box.joins else widths[number] * step / 2 - 0.11
        _arrow(axis, (x, middle), (centre - half, middle))
        if box.joins:
            _circle(axis, centre, middle, half, _label(network, box))
            _draw_shortcut(axis, network, row, top, centre)
        else:
            fill = MAIN if box.output.parameters or len(box.layers) > 1 else PLAIN
            _box(axis, centre, middle, 2 * half, HEIGHT, _label(network, box), fill)
        x = centre + half
    if last:
        _arrow(axis, (x, middle), (RIGHT + 0.1, middle))
    shape = write_shape(row.main[-1].output.output)
    _write(axis, WIDTH, middle, f"{shape}\n{row.parameters:,}", ha="right")
    return (x, middle)


def _weight(box: Box) -> float:
    """A box's share of its row."""
    if box.joins:
        return 0.5
    return 1.4 if len(box.layers) > 1 else 0.8


def _draw_shortcut(axis: Axes, network: NetworkRecord, row: Row, top: float, centre: float) -> None:
    """The dashed way above a row, from its beginning into the sum at ``centre``."""
    height, begin = top - 0.28, LEFT + 0.06
    middle = top + HEIGHT / 2
    _line(axis, [(begin, middle), (begin, height), (centre, height)], SIDE_EDGE, "--")
    _arrow(axis, (centre, height), (centre, middle - 0.15), SIDE_EDGE, "--")
    text = "  ".join(_label(network, box).replace("\n", ", ") for box in row.side)
    _box(axis, (begin + centre) / 2, height, 2.5, 0.26, text, SIDE, SIDE_EDGE)


def plot_stage(network: NetworkRecord | None) -> Figure | None:
    """Figure 4: the first residual stage, layer by layer, with shapes and parameters."""
    row = _first_stage(network)
    if network is None or row is None:
        return None
    main = [layer for box in row.main for layer in box.layers]
    side = [layer for box in row.side for layer in box.layers]
    pitch, left, right = 0.47, 2.0, 5.35
    join = next(n for n, layer in enumerate(main) if len(layer.inputs) > 1)
    with mpl.rc_context(STYLE):
        figure, axis = _canvas(WIDTH, TOP + pitch * len(main))
        heights = [TOP + pitch * n for n in range(len(main))]
        entry = _entry(network, main[0])
        _write(axis, left, 0.12, f"{entry[0]}  {write_shape(entry[1])}")
        _arrow(axis, (left, 0.22), (left, heights[0] - HALF))
        _line(axis, [(left, 0.34), (right, 0.34)], SIDE_EDGE, "--")
        for number, (layer, y) in enumerate(zip(main, heights, strict=True)):
            if number == join:
                _circle(axis, left, y, 0.15, _words(network, layer))
                _write(axis, left - 0.25, y, write_shape(layer.output), ha="right")
            else:
                fill = MAIN if layer.parameters else PLAIN
                _box(axis, left, y, 3.4, HALF * 2, _details(network, layer), fill)
            if number:
                _arrow(axis, (left, heights[number - 1] + _half(number - 1, join)),
                       (left, y - _half(number, join)))  # fmt: skip
        places = [heights[0] + (n + 1) * pitch for n in range(len(side))]
        for number, (layer, y) in enumerate(zip(side, places, strict=True)):
            _arrow(axis, (right, places[number - 1] + HALF if number else 0.34),
                   (right, y - HALF), SIDE_EDGE, "--")  # fmt: skip
            _box(axis, right, y, 3.1, HALF * 2, _details(network, layer), SIDE, SIDE_EDGE)
        _line(axis, [(right, places[-1] + HALF), (right, heights[join])], SIDE_EDGE, "--")
        _arrow(axis, (right, heights[join]), (left + 0.15, heights[join]), SIDE_EDGE, "--")
    return figure


HALF, TOP = 0.175, 0.68  # half of a box, height of the first


def _first_stage(network: NetworkRecord | None) -> Row | None:
    return next((row for row in arrange(network) if row.side), None) if network else None


def _half(number: int, join: int) -> float:
    return 0.15 if number == join else HALF


def _entry(network: NetworkRecord, layer: Layer) -> tuple[str, tuple[int, ...]]:
    outputs = {other.name: other.output for other in network.layers} | {INPUT: network.image}
    return f"from {layer.inputs[0]}", outputs[layer.inputs[0]]


def _details(network: NetworkRecord, layer: Layer) -> str:
    window = f", stride {layer.stride}, padding {layer.padding}" if layer.kernel else ""
    count = f"; {layer.parameters:,} parameters" if layer.parameters else ""
    return f"{_words(network, layer)}{window}\n{write_shape(layer.output)}{count}"


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Axes of inches that begin at the upper left corner."""
    figure = plt.figure(figsize=(width, height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.axis("off")
    return figure, axis


def _write(axis: Axes, x: float, y: float, text: str, ha: str = "center") -> None:
    axis.text(x, y, text, ha=ha, va="center", fontsize=7.5, linespacing=1.3)


def _box(
    axis: Axes, x: float, y: float, width: float, height: float, text: str, fill: str,
    edge: str = EDGE,
) -> None:  # fmt: skip
    corner = (x - width / 2, y - height / 2)
    style = "round,pad=0,rounding_size=0.06"
    axis.add_patch(
        FancyBboxPatch(
            corner, width, height, style, facecolor=fill, edgecolor=edge, linewidth=0.9, zorder=2
        )
    )
    axis.text(x, y, text, ha="center", va="center", fontsize=7.5, linespacing=1.25, zorder=3)


def _circle(axis: Axes, x: float, y: float, radius: float, text: str) -> None:
    patch = plt.Circle((x, y), radius, facecolor="white", edgecolor=EDGE, linewidth=0.9, zorder=2)
    axis.add_patch(patch)
    axis.text(x, y, text, ha="center", va="center_baseline", fontsize=11, zorder=3)


def _line(
    axis: Axes, points: Sequence[tuple[float, float]], colour: str = EDGE, style: str = "-"
) -> None:
    axis.plot(*zip(*points, strict=True), style, color=colour, linewidth=0.9, zorder=1)


def _arrow(
    axis: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str = EDGE,
    style: str = "-",
) -> None:
    arrow = {"arrowstyle": "-|>", "color": colour, "linewidth": 0.9, "linestyle": style,
             "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}  # fmt: skip
    axis.annotate("", xy=end, xytext=start, arrowprops=arrow, zorder=1)
