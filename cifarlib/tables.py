"""One function for each table of the paper: its values, ours, and the difference.

Frames have two column levels, (quantity, ``paper`` | ``ours`` | ``diff.``); what names a row
stands under an empty quantity. Accuracies are top-1 in %, differences are ours − paper in
percentage points, “Epoch” is the chosen one. A missing outcome is NaN. Several seeds are averaged.
``frame.attrs["runs"]`` holds, for every row of a table that stands on runs, the ids of those runs.
"""

from collections.abc import Iterable

import pandas as pd

from cifarlib import published
from cifarlib.config import DATASETS
from cifarlib.records import SPLITS, Layer, Results

METRICS = {
    "best_epoch": "Epoch",
    "time_s": "Time, s",
    "train_top1": "Training",
    "validation_top1": "Validation",
    "test_top1": "Test",
    "train_test_difference": "Train − test",
}
WITHOUT_DIFFERENCE = ("best_epoch", "time_s")

WAITING = "pending: weights not available offline"

MODELS = {
    "residual": "Improved run 13",
    "published": "ResNet-20 as published (called ResNet-18)",
    "resnet18": "ResNet-18, Kaiming-initialised",
    "resnet18_imagenet": "ResNet-18, pre-trained",
    "densenet121_imagenet": "DenseNet-121, pre-trained",
}


def tabulate_classes(results: Results) -> pd.DataFrame:
    """Ours alone: images of each class in the three sets, before any subset is taken."""
    names = DATASETS[results.scale.data.name].classes
    counts = results.data.class_counts if results.data else {}
    frame = pd.DataFrame({"Class": names})
    for split in SPLITS:
        frame[split.capitalize()] = counts.get(split, [float("nan")] * len(names))
    return frame


def tabulate_normalization(results: Results) -> pd.DataFrame:
    """Table I: mean and standard deviation of each channel of the training images.

    Six rows; ``paper`` as printed, ``listing`` as in Listing 4, ``ours`` over the data set's
    training images, ``diff.`` ours − listing, and their ratio.
    """
    mean, std = published.read_normalization()["32"]
    printed = published.read_table(1).iloc[0]
    ours = results.data.statistics if results.data else None
    rows = []
    for statistic, values in (("mean", mean), ("std", std)):
        for channel, name, listed in zip(range(3), "RGB", values, strict=True):
            value = getattr(ours, statistic)[channel] if ours else None
            rows.append(
                {
                    "statistic": "mean" if statistic == "mean" else "standard deviation",
                    "channel": name,
                    "paper": float(printed[f"{statistic}_{name.lower()}"]),
                    "listing": listed,
                    "ours": value,
                    "diff.": None if value is None else value - listed,
                    "ours / listing": None if value is None else value / listed,
                }
            )
    return pd.DataFrame(rows).astype(dict.fromkeys(list(rows[0])[2:], float))


def tabulate_interpolation_statistics(results: Results) -> pd.DataFrame:
    """Table II: channel statistics after Resize(256) and CenterCrop(224), by resize method.

    Twelve rows, (method, statistic); ``paper`` is Listing 4 where the table rounds to 4 digits.
    """
    rows = []
    for method, constants in published.read_normalization().items():
        if method == "32":
            continue
        ours = results.data.resized.get(method) if results.data else None
        for statistic, values in zip(("mean", "std"), constants, strict=True):
            row: dict[tuple[str, str], object] = {
                ("", "Method"): method,
                ("", "Statistic"): "mean" if statistic == "mean" else "std.",
            }
            for channel, name in enumerate("RGB"):
                value = getattr(ours, statistic)[channel] if ours else float("nan")
                row[name, "paper"] = values[channel]
                row[name, "ours"] = value
                row[name, "diff."] = value - values[channel]
            rows.append(row)
    return _two_levels(rows)


def tabulate_layers(results: Results) -> pd.DataFrame:
    """Ours alone: the residual network's layers with weights, and their sum in the last row."""
    if results.network is None:
        return pd.DataFrame([dict.fromkeys(LAYER_COLUMNS, float("nan"))])
    rows = [
        (
            layer.name,
            _operation(layer),
            write_shape(layer.output),
            layer.parameters,
            layer.flops / 1e6,
        )
        for layer in results.network.layers
        if layer.parameters
    ]
    total = results.network.parameters, results.network.flops / 1e6
    return pd.DataFrame([*rows, ("all layers", "–", "–", *total)], columns=LAYER_COLUMNS)


LAYER_COLUMNS = ["Layer", "Operation", "Output", "Parameters", "MFLOPs"]


def _operation(layer: Layer) -> str:
    if layer.kernel is None:
        return layer.kind
    size = f"{layer.kernel}×{layer.kernel}"
    return f"{layer.kind} {size}, stride {layer.stride}, padding {layer.padding}"


def write_shape(sizes: Iterable[int]) -> str:
    """A shape as text, 64×17×17."""
    return "×".join(map(str, sizes))


def tabulate_models(results: Results) -> pd.DataFrame:
    """Table XV: the improved run 13 beside ResNet-18 and DenseNet-121; 5 rows."""
    ours = pd.concat([results.stage("stage2-improved"), results.stage("stage3")])
    paper = published.read_table(15)
    paper = paper.assign(model=list(MODELS))
    metrics = ["train_top1", "validation_top1", "test_top1"]
    frame = _compare(paper, ours, ["model"], {}, metrics)
    runs = frame.attrs["runs"]
    frame = frame.astype(object)
    for column in frame.columns:  # a model of another study: nothing of ours can stand beside it
        if column[1] in ("ours", "diff."):
            frame.loc[frame["", "Model"] == "published", [column]] = "–"
    waiting = frame["", "Model"].str.endswith("_imagenet") & frame["Test", "ours"].isna()
    frame["", "Model"] = frame["", "Model"].map(MODELS)
    frame.loc[waiting, [("", "Model")]] += f" ({WAITING})"
    frame.attrs["runs"] = runs
    return frame


def tabulate_interpolation_accuracy(results: Results) -> pd.DataFrame:
    """Ours alone, for the paper prints no accuracies: the six resize methods, one row each."""
    frame = results.stage("interpolation")
    frame["method"] = [resize["method"] for resize in frame["resize"]]
    columns = {"method": "Method", "best_epoch": "Epoch"}
    columns |= {f"{split}_top1": METRICS[f"{split}_top1"] for split in SPLITS}
    means = frame.groupby("method", sort=False)[list(columns)[1:]].mean().reset_index()
    means = means.rename(columns=columns)
    means.attrs["runs"] = [_runs(frame[frame["method"] == m]) for m in means["Method"]]
    return means


SETTINGS = {"batch_size": "Batch", "learning_rate": "LR", "weight_decay": "L2"}
NAMES = {"run": "Run", "dropout": "Dropout", "model": "Model"} | SETTINGS


def _compare(
    paper: pd.DataFrame,
    ours: pd.DataFrame,
    keys: list[str],
    settings: dict[str, str],
    metrics: list[str],
) -> pd.DataFrame:
    """The paper's rows with our mean outcome beside each, matched by ``keys``."""
    means = ours.groupby(keys, sort=False)[metrics].mean()
    ended = ours.groupby(keys[0], sort=False)["diverged"].all()
    diverged = set(ended[ended].index)
    rows, runs = [], []
    for _, row in paper.iterrows():
        cells: dict[tuple[str, str], object] = {("", NAMES[k]): row[k] for k in [*keys, *settings]}
        key = row[keys[0]]
        for metric in metrics:
            theirs = pd.to_numeric(row[metric])
            value = means.loc[key, metric] if key in means.index else float("nan")
            if key in diverged:
                value = "diverged"
            cells[METRICS[metric], "paper"] = theirs
            cells[METRICS[metric], "ours"] = value
            if metric not in WITHOUT_DIFFERENCE:
                cells[METRICS[metric], "diff."] = "–" if key in diverged else value - theirs
        rows.append(cells)
        runs.append(_runs(ours[ours[keys[0]] == key]))
    return _two_levels(rows, runs)


def _runs(frame: pd.DataFrame) -> tuple[str, ...]:
    """The ids of the runs in a part of a stage's frame."""
    return tuple(dict.fromkeys(frame["run_id"]))


def _two_levels(
    rows: list[dict[tuple[str, str], object]], runs: list[tuple[str, ...]] | None = None
) -> pd.DataFrame:
    frame = pd.DataFrame(rows)
    frame.columns = pd.MultiIndex.from_tuples(frame.columns)
    if runs is not None:
        frame.attrs["runs"] = runs
    return frame
