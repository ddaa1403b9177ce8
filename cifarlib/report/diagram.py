"""The residual network as a drawing, made from what its execution noted.

Nothing about the network is known here: boxes, arrows, shapes and numbers are the
``NetworkRecord``'s. Layers of one module share a box; of one stage alone, each has its own.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from cifarlib.runs.schema import Layer, NetworkRecord

WORDS = {"Conv2d": "conv", "BatchNorm2d": "batch norm", "AdaptiveAvgPool2d": "average pooling"}
WORDS |= {"Dropout": "dropout", "Linear": "linear", "add": "sum"}
WIDTH, PITCH, HALF = 7.2, 0.5, 0.17  # inches: figure, from row to row, half a box
MAIN, SIDE = (2.6, 3.1), (5.86, 2.6)  # inches: centre and width of boxes on each path
COLOURS = ("#dcebf7", "#33475b"), ("#d9f0e9", "#00796b")  # fill and edge
ROUND = "round,pad=0,rounding_size=0.05"


@dataclass(frozen=True)
class Box:
    """Consecutive layers of the main path or of a shortcut beside it; the input is row 0."""

    name: str
    text: str  # layers; output shape and parameters
    row: float
    aside: bool  # on a shortcut
    sources: tuple["Box", ...]  # whose outputs it takes; the input has none


def arrange(network: NetworkRecord, stage: str = "") -> list[Box]:
    """The input, then the network's modules, or one stage's layers, in order of execution.

    The main path is the longest one; each of its boxes has a row. The boxes of a shortcut are
    spread over the rows between its ends.
    """
    layers = [la for la in network.layers if not stage or la.name.startswith(f"{stage}.")]
    main = _longest_path(layers)
    shapes = {"input": network.image} | {la.name: la.output for la in network.layers}
    first = layers[0].inputs[0]
    boxes = [Box("", f"{first}, {_say_shape(shapes[first])}", 0, False, ())]
    home, row = {first: boxes[0]}, 0
    named = groupby(layers, lambda la: la.name if stage else la.name.rpartition(".")[0])
    groups = [tuple(group) for _, group in named]
    for number, group in enumerate(groups):
        aside = group[0].name not in main
        sources = tuple(home[name] for name in group[0].inputs)
        row += not aside
        place, above = float(row), sources[0].row
        if aside:
            left = next(n for n, g in enumerate(groups[number:]) if g[0].name in main)
            place = above + (row + 1 - above) / (left + 1)
        boxes.append(Box(_name(group, stage), _say(group, shapes, stage), place, aside, sources))
        home |= dict.fromkeys((layer.name for layer in group), boxes[-1])
    return boxes


def _longest_path(layers: Sequence[Layer]) -> set[str]:
    """Names of the layers on the longest path to the last one."""
    depth: dict[str, int] = {}
    for layer in layers:
        depth[layer.name] = 1 + max(depth.get(name, 0) for name in layer.inputs)
    known, path, name = {layer.name: layer for layer in layers}, set(), layers[-1].name
    while name in known:
        path.add(name)
        name = max(known[name].inputs, key=lambda before: depth.get(before, 0))
    return path


def _name(group: Sequence[Layer], stage: str) -> str:
    names = [layer.name.removeprefix(f"{stage}.") for layer in group]
    module = "" if stage else names[0].rpartition(".")[0]
    return module or " … ".join(dict.fromkeys([names[0], names[-1]]))


def _say(group: Sequence[Layer], shapes: Mapping[str, Sequence[int]], stage: str) -> str:
    words = []
    for layer in group:
        word = WORDS.get(layer.kind, layer.kind)
        if layer.kind in ("Conv2d", "Linear"):
            word += f" {shapes[layer.inputs[0]][0]}→{layer.output[0]}"
        if layer.kernel:
            word = f"{layer.kernel}×{layer.kernel} {word}, stride {layer.stride}"
            word += f", padding {layer.padding}" if stage else ""
        words.append(word)
    count = sum(layer.parameters for layer in group)
    more = f"; {count:,} parameters" if count else ""
    return f"{', '.join(words)}\n{_say_shape(group[-1].output)}{more}"


def _say_shape(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))


def describe_network(network: NetworkRecord | None, stage: str = "") -> str:
    """``plot_network`` in words."""
    if network is None:
        return "Pending."
    source, *boxes = arrange(network, stage)
    lines = (f"{'beside it, ' if box.aside else ''}{box.name}: {box.text}" for box in boxes)
    told = ". ".join(lines).replace("\n", "; output ")
    return f"Diagram of {len(boxes)} boxes, from top to bottom: {source.text}. {told}."


def plot_network(network: NetworkRecord | None, stage: str = "") -> Figure | None:
    """The whole network, a box for each module, or one stage of it, a box for each layer.

    A box holds layers, output shape and parameters; shortcuts stand beside the main path, dashed.
    """
    if network is None:
        return None
    boxes = arrange(network, stage)
    height = PITCH * (max(box.row for box in boxes) + 0.65)
    figure = plt.figure(figsize=(WIDTH, height))
    axis = figure.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height - 0.1, -0.1))
    axis.axis("off")
    font: dict[str, Any] = {"va": "center", "fontsize": 7.5, "linespacing": 1.25}
    for box in boxes:
        (x, wide), y = (SIDE if box.aside else MAIN), PITCH * box.row
        fill, edge = COLOURS[box.aside]
        if box.sources:
            corner = (x - wide / 2, y - HALF)
            axis.add_patch(FancyBboxPatch(corner, wide, 2 * HALF, ROUND, fc=fill, ec=edge))
        axis.text(x, y, box.text, ha="center", **font)
        axis.text(0, y, "" if box.aside else box.name, **font)
        for source in box.sources:
            side = source.aside or box.aside
            line: Any = {"color": COLOURS[side][1], "lw": 0.9, "ls": "--" if side else "-"}
            *points, last, end = _route(source, box)
            axis.plot(*zip(*points, last, strict=True), **line)
            arrow = {"arrowstyle": "-|>", "shrinkA": 0, "shrinkB": 0, "mutation_scale": 8}
            axis.annotate("", end, last, arrowprops=arrow | line)
    return figure


def _route(start: Box, end: Box) -> list[tuple[float, float]]:
    """The corners of an arrow between two boxes: straight, out to a shortcut, or back from it."""
    top, bottom = PITCH * start.row, PITCH * end.row
    x = (SIDE if start.aside or end.aside else MAIN)[0]
    if start.aside == end.aside:
        return [(x, top + HALF), (x, bottom - HALF)]
    if end.aside:
        return [(MAIN[0], top + HALF + 0.04), (x, top + HALF + 0.04), (x, bottom - HALF)]
    return [(x, top + HALF), (x, bottom), (MAIN[0] + MAIN[1] / 2, bottom)]
