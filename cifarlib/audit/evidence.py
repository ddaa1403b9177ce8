"""What the audit computes: the paper held against itself, and against the data set's record.

Every function works on ``params/published/`` and, where it takes ``results``, on records; nothing
is trained. Accuracies are top-1 in %, their differences in percentage points.
"""

from collections.abc import Sequence

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from cifarlib import published
from cifarlib.audit import leads
from cifarlib.config import DATASETS
from cifarlib.display import ABSENT
from cifarlib.figures import BEST, RATE_COLOURS, STYLE
from cifarlib.records import DataRecord, Results

SETTINGS = ["batch_size", "learning_rate", "weight_decay"]
TOP1 = {"train": "train_top1", "validation": "validation_top1", "test": "test_top1"}
IMAGES = {"train": 45_000, "validation": 5_000, "test": 10_000}  # Section II.A.3
NAN = float("nan")


def cifar10_record(results: Results) -> DataRecord | None:
    """The record of CIFAR-10: None where it is missing, or the study runs on the stand-in set."""
    data = results.data
    return data if data and DATASETS[data.dataset].real else None


# ---------------------------------------------------------------------------------------------
# Channel statistics
# ---------------------------------------------------------------------------------------------


def tabulate_factor_49(results: Results) -> pd.DataFrame:
    """Listing 4's constants for 32×32 images beside Eq. 1 and 2 with another count of pixels.

    Six rows. ``true`` are the statistics of the training images; ``by 224²`` is what the two
    equations give when sums over 32² pixels are divided by 224²: the mean is too small by
    f = (224/32)² = 49, and the standard deviation around that mean μ' = μ/f is
    √((σ² + (μ − μ')²) / f). NaN without CIFAR-10's record.
    """
    mean, std = map(np.array, published.read_normalization()["32"])
    factor = (leads.find_lead("factor_49").says["side"] / 32) ** 2
    data = cifar10_record(results)
    true_mean = np.array(data.statistics.mean) if data else np.full(3, NAN)
    true_std = np.array(data.statistics.std) if data else np.full(3, NAN)
    wrong_mean = true_mean / factor
    wrong_std = np.sqrt((true_std**2 + (true_mean - wrong_mean) ** 2) / factor)
    rows = [
        {"Statistic": name, "Channel": channel, "Listing 4": listed, "true": true, "by 224²": wrong}
        for name, *columns in (
            ("mean", mean, true_mean, wrong_mean),
            ("standard deviation", std, true_std, wrong_std),
        )
        for channel, listed, true, wrong in zip("RGB", *columns, strict=True)
    ]
    frame = pd.DataFrame(rows)
    return frame.assign(**{"by 224² − listing": frame["by 224²"] - frame["Listing 4"]})


def tabulate_crops(results: Results) -> pd.DataFrame:
    """Means of Listing 4 beside those of the central and of the random crop of 224 in 256.

    One row for each resize method and channel; NaN where CIFAR-10's record is missing or does
    not have them.
    """
    data = cifar10_record(results)
    rows = []
    for method, (listed, _) in published.read_normalization().items():
        if method == "32":
            continue
        centre = data.resized[method].mean if data and method in data.resized else (NAN,) * 3
        shift = _crop_shift(data, method)
        for index, channel in enumerate("RGB"):
            rows.append(
                {
                    "Method": method,
                    "Channel": channel,
                    "Listing 4": listed[index],
                    "central crop": centre[index],
                    "random crop": centre[index] + shift[index],
                }
            )
    frame = pd.DataFrame(rows)
    for name in ("central", "random"):
        frame[f"{name} − listing"] = frame[f"{name} crop"] - frame["Listing 4"]
    return frame


def _crop_shift(data: DataRecord | None, method: str, size: int = 256, crop: int = 224):
    """Mean of the random crop less that of the central one, (3,), after resizing to ``size``.

    Resizing is linear but for the rounding to whole grey levels, so it may be done to the mean
    image; of two crops of it, rounding touches both means alike.
    """
    from PIL import Image

    if data is None:
        return np.full(3, NAN)
    resample = Image.Resampling[method.upper()]
    offsets = size - crop + 1
    covered = np.convolve(np.ones(offsets), np.ones(crop)) / (offsets * crop)  # by how many crops
    start = round((size - crop) / 2)
    shift = []
    for channel in data.mean_image:
        image = Image.fromarray(channel.astype(np.float32)).resize((size, size), resample)
        pixels = np.asarray(image, dtype=float)
        centre = pixels[start : start + crop, start : start + crop].mean()
        shift.append(covered @ pixels @ covered - centre)
    return np.array(shift)


# ---------------------------------------------------------------------------------------------
# Digits
# ---------------------------------------------------------------------------------------------


def list_accuracies() -> pd.DataFrame:
    """Every printed accuracy: ``table``, ``set``, ``value`` in % and ``decimals`` printed.

    Trailing zeros that a table leaves out count as printed (89.4 for 89.40 in Table IX).
    """
    parts = []
    for number in ("IV", "V", "VI", "VII", "VIII", "IX", "X", "XI", "XIII", "XIV", "XV"):
        table = published.read_table(number)
        for name, column in TOP1.items():
            values = table[column if column in table else name].dropna()
            decimals = 1 if number in ("IV", "V", "VI", "VII", "VIII") else 2
            if number == "XV":
                # 91.25 % was measured elsewhere; of 10,000 images, four decimals are two
                values = values[table["model"] != "Published ResNet-18"]
                decimals = 2 if name == "test" else 4
            parts.append(
                pd.DataFrame({"table": number, "set": name, "value": values, "decimals": decimals})
            )
    frame = pd.concat(parts, ignore_index=True)
    checked = [_reachable(*row) for row in frame[["set", "value", "decimals"]].values.tolist()]
    return frame.assign(rounded=[r for r, _ in checked], cut=[c for _, c in checked])


def _reachable(name: str, value: float, decimals: int) -> tuple[bool, bool]:
    """Is an accuracy that of a whole number of images, when rounded, and when cut off?

    Shares are float32 and, as PyTorch divides by a number on a GPU, multiplied by its reciprocal:
    cutting off shows the last bit of 90.119995, which rounding hides.
    """
    images, unit = IMAGES[name], 10**decimals
    near = np.arange(int(value / 100 * images) - 1, int(value / 100 * images) + 3)
    shares = (100 * near).astype(np.float32) * (np.float32(1) / np.float32(images))
    wanted = round(value * unit)
    rounded = np.abs(100 * near / images * unit - wanted) <= 0.5 + 1e-9  # a half goes either way
    cut = np.floor(shares.astype(float) * unit).astype(int) == wanted
    return bool(rounded.any()), bool(cut.any())


def tabulate_digits() -> pd.DataFrame:
    """How many printed accuracies are whole numbers of images, by set and by digits.

    ``by chance`` is how many would be if digits fell at random: where it equals the number of
    values, the digits are too few to tell.
    """
    rows = []
    for (decimals, name), part in list_accuracies().groupby(["decimals", "set"]):
        steps = IMAGES[name] / 100 / 10**decimals  # numbers of images for each printed value
        rows.append(
            {
                "Set": {"train": "training"}.get(name, name),
                "Images": IMAGES[name],
                "Decimals": decimals,
                "Values": len(part),
                "by chance": len(part) * min(1.0, steps),
                "if rounded": int(part["rounded"].sum()),
                "if cut off": int(part["cut"].sum()),
            }
        )
    return pd.DataFrame(rows)


def list_differences() -> pd.DataFrame:
    """Every printed train − test difference, and its ``error`` against the printed accuracies.

    ``allowed`` is how far rounding may put them apart.
    """
    parts = []
    for number in ("VII", "VIII", "IX", "XIII", "XIV"):
        table = published.read_table(number)
        error = (table["train_top1"] - table["test_top1"] - table["train_test_difference"]).abs()
        allowed = 0.105 if number in ("VII", "VIII") else 0.015
        parts.append(pd.DataFrame({"table": number, "error": error, "allowed": allowed + 1e-9}))
    return pd.concat(parts, ignore_index=True)


# ---------------------------------------------------------------------------------------------
# Searches
# ---------------------------------------------------------------------------------------------


def read_searches(*numbers: str) -> pd.DataFrame:
    """Tables IV to VIII, or some of them, one under the other, with a column ``table``."""
    numbers = numbers or ("IV", "V", "VI", "VII", "VIII")
    return pd.concat([published.read_table(n).assign(table=n) for n in numbers], ignore_index=True)


def pair_tables(first: str, second: str) -> pd.DataFrame:
    """Rows of two of Tables IV to VIII with equal settings: both test accuracies, and the gain."""
    columns = [*SETTINGS, "run", "test_top1"]
    one, other = (published.read_table(number)[columns] for number in (first, second))
    pairs = one.merge(other, on=SETTINGS, suffixes=("_first", "_second"))
    gain = (pairs["test_top1_second"] - pairs["test_top1_first"]).round(1)
    return pairs.assign(gain=gain)


def tabulate_augmentation_gain() -> pd.DataFrame:
    """Test accuracy with AdamW at equal settings, without augmentation and with DAA-1; 12 rows."""
    pairs = pair_tables("VI", "VII").sort_values("gain", ignore_index=True)
    return pd.DataFrame(
        {
            "Run in VI": pairs["run_first"],
            "Run in VII": pairs["run_second"],
            "Batch": pairs["batch_size"],
            "LR": pairs["learning_rate"],
            "L2": pairs["weight_decay"],
            "none": pairs["test_top1_first"],
            "DAA-1": pairs["test_top1_second"],
            "gain": pairs["gain"],
        }
    )


def share_variance(table: pd.DataFrame, factors: Sequence[str]) -> dict[str, float]:
    """Share of the variance of test accuracy that each factor explains by itself, in %.

    The designs are balanced, so shares of main effects add up, and the rest are interactions.
    """
    total = table["test_top1"].var(ddof=0)
    return {
        factor: 100 * table.groupby(factor)["test_top1"].transform("mean").var(ddof=0) / total
        for factor in factors
    }


def tabulate_variance() -> pd.DataFrame:
    """What explains the variance of the paper's test accuracies, search by search, in %."""
    searches = {
        "IV–VI: base search": (read_searches("IV", "V", "VI"), ["optimizer", *SETTINGS]),
        "VII: AdamW, DAA-1": (read_searches("VII"), SETTINGS),
        "VIII: AdamW, DAA-2": (read_searches("VIII"), SETTINGS),
    }
    rows = []
    for name, (table, factors) in searches.items():
        shares = share_variance(table, factors)
        row = {"Search": name, "Runs": len(table), "Optimiser": shares.get("optimizer", ABSENT)}
        row |= {
            "Learning rate": shares["learning_rate"],
            "Batch size": shares["batch_size"],
            "Weight decay": shares["weight_decay"],
        }
        rows.append(row | {"Interactions": 100 - sum(shares.values())})
    return pd.DataFrame(rows)


def tabulate_order() -> pd.DataFrame:
    """The two smallest train − test differences of Tables VII and VIII, smallest first."""
    rows = []
    for number in ("VII", "VIII"):
        table = published.read_table(number)
        by_test = table["test_top1"].rank(ascending=False, method="min").astype(int)
        low = table.assign(place=by_test).nsmallest(2, "train_test_difference")
        rows += [
            {
                "Table": number,
                "Run": row.run,
                "Train − test": row.train_test_difference,
                "Test": row.test_top1,
                "Rank by test": row.place,
            }
            for row in low.itertuples()
        ]
    return pd.DataFrame(rows)


# ---------------------------------------------------------------------------------------------
# Epochs
# ---------------------------------------------------------------------------------------------


def list_long_runs() -> pd.DataFrame:
    """The ten runs of Tables XIII and XIV: their best epoch, and the last that they can have had.

    Listing 2 ends a run in the first epoch that is more than ``patience`` after the best one.
    """
    limits = leads.read_facts()["early_stopping"].values
    runs = pd.concat([published.read_table("XIII"), published.read_table("XIV")])
    runs = runs[["run", "dropout", "best_epoch", "epochs"]].reset_index(drop=True)
    stop = runs["best_epoch"] + limits["patience"] + 1
    return runs.assign(
        last_epoch=np.minimum(stop, limits["epochs"]), complete=stop > limits["epochs"]
    )


def tabulate_selection(results: Results) -> pd.DataFrame:
    """Ours: what choosing the epoch on the test set adds to the test accuracy, by stage.

    Rows are stages with a mean over their recorded runs: test accuracy at the epoch that is best
    on validation, at the one that is best on test, and how often both are the same epoch.
    """
    rows, behind = [], []
    for name, title in results.stages.items():
        runs = dict.fromkeys(c.run_id for c in results.select(name))
        kept = [r for run in runs if (r := results.records.get(run)) and "test" in r.result.chosen]
        chosen = [r.result.chosen for r in kept]
        pairs = [
            (r.accuracy("test", epoch=c["validation"]), r.accuracy("test", epoch=c["test"]))
            for r, c in zip(kept, chosen, strict=True)
        ]
        pairs = [pair for pair in pairs if None not in pair]
        behind.append(tuple(r.run_id for r in kept))
        fair, best = np.mean(pairs, axis=0) if pairs else (NAN, NAN)
        same = sum(c["validation"] == c["test"] for c in chosen)
        rows.append(
            {
                "Stage": title,
                "Runs": len(pairs),
                "by validation": fair,
                "by test": best,
                "gained": best - fair,
                "same epoch": same if pairs else NAN,
            }
        )
    frame = pd.DataFrame(rows)
    frame.attrs["runs"] = behind
    return frame


# ---------------------------------------------------------------------------------------------
# Drawings
# ---------------------------------------------------------------------------------------------


def plot_augmentation_gain() -> Figure:
    """Twelve lines from the test accuracy without augmentation to that with DAA-1.

    A mark on each line says where the gain that the text claims would end.
    """
    gains = tabulate_augmentation_gain()
    claimed = leads.find_lead("augmentation_gain").says["up_to"]
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
        rows = range(len(gains))
        colours = [RATE_COLOURS[rate] for rate in gains["LR"]]
        axis.hlines(rows, gains["none"], gains["DAA-1"], colors=colours, linewidth=1.5)
        axis.scatter(gains["none"], rows, facecolors="white", edgecolors=colours, zorder=3)
        axis.scatter(gains["DAA-1"], rows, c=colours, zorder=3)
        axis.scatter(gains["none"] + claimed, rows, marker="|", s=80, c="0.2", zorder=4)
        ends = np.maximum(gains["DAA-1"], gains["none"] + claimed)  # labels clear of the marks
        for row, (end, gain) in enumerate(zip(ends, gains["gain"], strict=True)):
            axis.annotate(f"+{gain:.1f}", (end, row), (6, 0), textcoords="offset points",
                          va="center", fontsize=8)  # fmt: skip
        names = gains[["Batch", "LR", "L2"]].itertuples(index=False)
        axis.set_yticks(rows, [f"batch {b}, LR {r:g}, L2 {d:g}" for b, r, d in names])
        axis.set_xlabel(f"test top-1 in % (bars: {claimed:g} points above no augmentation)")
        axis.set_xlim(right=ends.max() + 4)
        axis.grid(axis="y", visible=False)
    return figure


def plot_long_runs() -> Figure:
    """Ten bars from epoch 0 to the last one that a run can have had, the best epoch marked."""
    runs = list_long_runs()
    with mpl.rc_context(STYLE):
        figure, axis = plt.subplots(figsize=(7, 3), layout="constrained")
        rows = range(len(runs))
        colours = np.where(runs["complete"], "0.6", BEST)
        axis.barh(rows, runs["last_epoch"], color=colours, height=0.6)
        axis.plot(runs["best_epoch"], rows, "|", color="black", markersize=9)
        for row, last in zip(rows, runs["last_epoch"], strict=True):
            axis.annotate(str(last), (last, row), (4, 0), textcoords="offset points",
                          va="center", fontsize=8)  # fmt: skip
        names = runs[["run", "dropout"]].itertuples(index=False)
        axis.set_yticks(rows, [f"run {run}, dropout {dropout:g}" for run, dropout in names])
        axis.invert_yaxis()
        axis.set_xlim(right=1.07 * runs["epochs"].max())
        axis.set_xlabel("epoch (bar: last one, tick: best one)")
        axis.grid(axis="y", visible=False)
    return figure
