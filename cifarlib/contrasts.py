"""Pairs of settings on the same test images: differences, their intervals, and families of tests.

The difference of two settings is taken seed by seed, and from two seeds on the difference, p and
interval are all of Student's t over the seeds. One seed says nothing of other seeds: its difference
is tested on the images, by McNemar's exact test, which tells two trained networks apart, not two
settings.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from cifarlib import published
from cifarlib.display import Format, fixed, signed
from cifarlib.records import Results
from cifarlib.statistics import (
    ALPHA,
    Interval,
    adjust_holm,
    bootstrap_difference,
    correct_images,
    mcnemar,
    mean_interval,
    two_proportions,
    wilson_interval,
)
from cifarlib.study import Condition

PUBLISHED_IMAGES = 10_000  # test images behind every printed test accuracy

RANKED = {
    "IV": ("stage1-base", {"optimizer": "sgd"}),
    "V": ("stage1-base", {"optimizer": "adam"}),
    "VI": ("stage1-base", {"optimizer": "adamw"}),
    "VII": ("stage1-daa1", {}),
    "VIII": ("stage1-daa2", {}),
    "IX": ("stage1-long", {}),
}
"""Tables in which the paper looks for a best run, and whose conditions they hold."""

MATCHED = ("batch_size", "learning_rate", "weight_decay")
"""Settings that two rows share where only the augmentation differs."""

STEPS = (0.1, 0.2, 0.5, 0.7)  # dropout beside 0.0


@dataclass(frozen=True)
class Contrast:
    """The test accuracy of one setting less that of another, in percentage points."""

    difference: float
    p: float  # two-sided
    seeds: int
    runs: tuple[str, ...]
    first: tuple[str, ...]  # run ids of the first setting, one for each seed
    second: tuple[str, ...]
    adjusted: float | None = None  # p after Holm's correction, in a family

    @property
    def separate(self) -> bool:
        """Whether the test tells the two apart."""
        return (self.p if self.adjusted is None else self.adjusted) < ALPHA

    @property
    def basis(self) -> str:
        """What was tested, in words."""
        return "exact McNemar, one seed" if self.seeds == 1 else f"t test, {self.seeds} seeds"


def contrast(
    results: Results, first: Iterable[Condition], second: Iterable[Condition]
) -> Contrast | None:
    """Compare two settings, given as conditions of one or more seeds.

    None while no seed is recorded of both, and where correctness cannot be told image by
    image. Accuracies are those of the recorded predictions.
    """
    one, other = _by_seed(results, first), _by_seed(results, second)
    seeds = [seed for seed in one if seed in other]
    differences, tests = [], []
    for seed in seeds:
        right, wrong = (
            correct_images(results.records[c[seed]], results.data) for c in (one, other)
        )
        if right is None or wrong is None or len(right) != len(wrong):
            return None
        tests.append(mcnemar(right, wrong))
        differences.append(tests[-1].difference)
    if not seeds:
        return None
    mean, _ = mean_interval(differences)
    p = tests[0].p if len(seeds) == 1 else t_test(differences)
    runs = tuple(one[s] for s in seeds), tuple(other[s] for s in seeds)
    return Contrast(mean, p, len(seeds), tuple(dict.fromkeys(runs[0] + runs[1])), *runs)


def difference_interval(results: Results, pair: Contrast) -> Interval:
    """95 % interval of a contrast: Student's t over the seeds, or a paired bootstrap of images."""
    right = [
        (
            correct_images(results.records[a], results.data),
            correct_images(results.records[b], results.data),
        )
        for a, b in zip(pair.first, pair.second, strict=True)
    ]
    _, interval = mean_interval([mcnemar(a, b).difference for a, b in right])
    return interval or bootstrap_difference(*right[0])


def adjust(family: Sequence[Contrast]) -> list[Contrast]:
    """The same contrasts, their p values corrected for the family by Holm's method."""
    adjusted = adjust_holm([pair.p for pair in family])
    return [replace(pair, adjusted=p) for pair, p in zip(family, adjusted, strict=True)]


def _by_seed(results: Results, conditions: Iterable[Condition]) -> dict[int, str]:
    return {c.config.seed: c.run_id for c in conditions if c.run_id in results.records}


def t_test(differences: Sequence[float]) -> float:
    """Two-sided p that differences, one for each of at least two seeds, are 0 in the mean."""
    from scipy import stats

    if len(set(differences)) == 1:  # no spread: the test is undefined
        return 1.0 if differences[0] == 0 else 0.0
    return float(stats.ttest_1samp(differences, 0).pvalue)


# ---------------------------------------------------------------------------------------------
# Which conditions
# ---------------------------------------------------------------------------------------------


def group(results: Results, stage: str, **settings: object) -> dict[int, list[Condition]]:
    """Run number → its conditions, one for each seed, of a stage with some settings."""
    runs: dict[int, list[Condition]] = {}
    for condition in results.select(stage, **settings):
        runs.setdefault(condition.run, []).append(condition)
    return runs


def accuracy(results: Results, conditions: Iterable[Condition]) -> float | None:
    """Mean test top-1 in % of one setting's recorded seeds; None without any."""
    found = [results.records[i].accuracy("test") for i in _by_seed(results, conditions).values()]
    found = [value for value in found if value is not None]
    return sum(found) / len(found) if found else None


def rank(results: Results, runs: dict[int, list[Condition]]) -> dict[int, float]:
    """Run number → mean test top-1 in %, the best first; only runs that are recorded."""
    known = {run: accuracy(results, conditions) for run, conditions in runs.items()}
    known = {run: value for run, value in known.items() if value is not None}
    return dict(sorted(known.items(), key=lambda item: -item[1]))


def against_best(
    results: Results, runs: dict[int, list[Condition]], best: int
) -> dict[int, Contrast]:
    """One run against each other run that is recorded, as a family corrected by Holm's method."""
    pairs = {
        run: pair
        for run in rank(results, runs)
        if run != best and (pair := contrast(results, runs[best], runs[run]))
    }
    return dict(zip(pairs, adjust(list(pairs.values())), strict=True))


def published_ties(number: str) -> tuple[int, int, int]:
    """(best run, others it is not told apart from, others) of a printed table.

    By two-proportion tests on the printed accuracies, corrected by Holm's method.
    """
    table = published.read_table(number).sort_values("test_top1", ascending=False, kind="stable")
    best, *others = table["test_top1"]
    p = adjust_holm([two_proportions(best, other, PUBLISHED_IMAGES) for other in others])
    return int(table["run"].iloc[0]), sum(value >= ALPHA for value in p), len(others)


# ---------------------------------------------------------------------------------------------
# As tables
# ---------------------------------------------------------------------------------------------


def tabulate_best(results: Results) -> pd.DataFrame:
    """Ours: the best run of each search, its Wilson interval, and how many runs tie with it.

    A row for each of Tables IV–IX. “Not told apart” counts the other runs that Holm-corrected
    tests cannot tell from the best: exact McNemar for ours, two proportions for the paper's.
    """
    rows, behind = [], []
    for number, (stage, settings) in RANKED.items():
        runs = group(results, stage, **settings)
        best, tied, others = published_ties(number)
        row: dict[tuple[str, str], object] = {
            ("", "Table"): number,
            ("Best run", "paper"): best,
            ("Not told apart", "paper"): f"{tied} of {others}",
        }
        row |= _our_best(results, runs)
        rows.append(row)
        behind.append(_ids(runs.values()))
    columns = [
        ("", "Table"),
        ("Best run", "paper"), ("Best run", "ours"),
        ("Ours", "top-1, %"), ("Ours", "95 % interval"),
        ("Runner-up", "run"), ("Runner-up", "behind by"), ("Runner-up", "95 % interval"),
        ("Runner-up", "p (Holm)"),
        ("Not told apart", "paper"), ("Not told apart", "ours"),
    ]  # fmt: skip
    return _frame(rows, columns, behind)


def _our_best(results: Results, runs: dict[int, list[Condition]]) -> dict[tuple[str, str], object]:
    ranked = rank(results, runs)
    if len(ranked) < len(runs):
        return {}
    best, second = list(ranked)[:2]
    records = [results.records[i] for i in _by_seed(results, runs[best]).values()]
    row: dict[tuple[str, str], object] = {
        ("Best run", "ours"): best,
        ("Ours", "top-1, %"): ranked[best],
        ("Ours", "95 % interval"): _seed_interval([r.accuracy("test") for r in records], records),
    }
    pairs = against_best(results, runs, best)
    if pair := pairs.get(second):
        tied = sum(not other.separate for other in pairs.values())
        row |= {
            ("Runner-up", "run"): second,
            ("Runner-up", "behind by"): pair.difference,
            ("Runner-up", "95 % interval"): say_interval(difference_interval(results, pair)),
            ("Runner-up", "p (Holm)"): pair.adjusted,
            ("Not told apart", "ours"): f"{tied} of {len(pairs)}",
        }
    return row


def _seed_interval(values: Sequence[float], records: Sequence) -> str:
    """Wilson's interval of one seed, or Student's over several."""
    _, interval = mean_interval(values)
    if interval is None:
        images = records[0].result.history.test.images
        interval = wilson_interval(values[0] * images / 100, images)
    return say_range(interval)


def tabulate_augmentation_gain(results: Results) -> pd.DataFrame:
    """What augmentation adds to AdamW, for each of the 12 matching rows of Tables VI, VII, VIII.

    Differences of test top-1 in points to the run without augmentation; ours with p, corrected
    over the family of 24 by Holm's method.
    """
    tables = {stage: published.read_table(n) for stage, n in _SEARCHES.items()}
    rows, behind, family = [], [], []
    for _, plain in tables["stage1-base"].iterrows():
        settings = {name: plain[name] for name in MATCHED}
        base = results.select("stage1-base", optimizer="adamw", **settings)
        row: dict[tuple[str, str], object] = {
            ("", "Batch"): settings["batch_size"],
            ("", "LR"): settings["learning_rate"],
            ("", "L2"): settings["weight_decay"],
        }
        sets = [base]
        for stage, name in (("stage1-daa1", "DAA-1"), ("stage1-daa2", "DAA-2")):
            printed = tables[stage]
            same = (printed[list(MATCHED)] == pd.Series(settings)).all(axis=1)
            row[name, "paper"] = printed.loc[same, "test_top1"].item() - plain["test_top1"]
            augmented = results.select(stage, **settings)
            sets.append(augmented)
            if pair := contrast(results, augmented, base):
                row[name, "ours"] = pair.difference
                family.append((len(rows), name, pair))
        rows.append(row)
        behind.append(_ids(sets))
    for (place, name, _), pair in zip(family, adjust([p for *_, p in family]), strict=True):
        rows[place][name, "p (Holm)"] = pair.adjusted
    columns = [("", "Batch"), ("", "LR"), ("", "L2")]
    columns += [(d, c) for d in ("DAA-1", "DAA-2") for c in ("paper", "ours", "p (Holm)")]
    return _frame(rows, columns, behind)


_SEARCHES = {"stage1-base": "VI", "stage1-daa1": "VII", "stage1-daa2": "VIII"}


def dropout_contrasts(results: Results, run: int) -> dict[float, Contrast | None]:
    """Dropout → its contrast with dropout 0.0 on a long run, Holm-corrected over the four."""
    base = results.select("stage1-long", run=run)
    pairs = {
        p: contrast(results, results.select("stage2-dropout", run=run, dropout=p), base)
        for p in STEPS
    }
    done = [p for p, pair in pairs.items() if pair]
    adjusted = dict(zip(done, adjust([pairs[p] for p in done]), strict=True))  # type: ignore[misc]
    return pairs | adjusted


def tabulate_dropout_tests(results: Results) -> pd.DataFrame:
    """What each dropout does to the test accuracy of runs 9 and 13 against none; eight rows.

    A family of four for each run.
    """
    frames = []
    for run, number in ((9, "XIII"), (13, "XIV")):
        printed = published.read_table(number).set_index("dropout")["test_top1"]
        base = results.select("stage1-long", run=run)
        pairs = [
            Pair(
                {("", "Run"): run, ("", "Dropout"): step},
                results.select("stage2-dropout", run=run, dropout=step),
                base,
                (printed[step], printed[0]),
            )
            for step in STEPS
        ]
        frames.append(_tabulate_family(results, pairs))
    frame = pd.concat(frames, ignore_index=True)
    frame.attrs["runs"] = [runs for part in frames for runs in part.attrs["runs"]]
    return frame


def tabulate_model_tests(results: Results) -> pd.DataFrame:
    """The best model against the long run it comes from, and the models of Table XV; four rows."""
    printed = published.read_table("XV")["test_top1"]
    before = published.read_table("IX").set_index("run")["test_top1"][13]
    improved = results.select("stage2-improved")
    new, pretrained, dense = (
        results.select("stage3", model=name)
        for name in ("resnet18", "resnet18_imagenet", "densenet121_imagenet")
    )
    pairs = [
        ("improved run 13", "run 13", improved, results.select("stage1-long", run=13),
         (printed[0], before)),
        ("improved run 13", "ResNet-18", improved, new, (printed[0], printed[2])),
        ("ResNet-18", "ResNet-18, pre-trained", new, pretrained, (printed[2], printed[3])),
        ("improved run 13", "DenseNet-121, pre-trained", improved, dense, (printed[0], printed[4])),
    ]  # fmt: skip
    return _tabulate_family(
        results,
        [Pair({("", "First"): a, ("", "Second"): b}, *rest) for a, b, *rest in pairs],
    )


@dataclass(frozen=True)
class Pair:
    """A row of a family of tests: its labels, two settings, and their printed accuracies in %."""

    labels: dict[tuple[str, str], object]
    first: Sequence[Condition]
    second: Sequence[Condition]
    printed: tuple[float, float]


def _tabulate_family(results: Results, family: Sequence[Pair]) -> pd.DataFrame:
    """Differences of test top-1 in points, first − second, and p after Holm's correction.

    The paper's p is of two proportions, as its images cannot be paired; ours as in ``contrast``.
    """
    published_p = adjust_holm([two_proportions(*pair.printed, PUBLISHED_IMAGES) for pair in family])
    found = [contrast(results, pair.first, pair.second) for pair in family]
    adjusted = iter(adjust([one for one in found if one]))
    rows = []
    for pair, paper_p, ours in zip(family, published_p, found, strict=True):
        row = pair.labels | {
            ("Paper", "difference"): pair.printed[0] - pair.printed[1],
            ("Paper", "p (Holm)"): paper_p,
        }
        if ours:
            row |= {
                ("Ours", "difference"): ours.difference,
                ("Ours", "95 % interval"): say_interval(difference_interval(results, ours)),
                ("Ours", "p (Holm)"): next(adjusted).adjusted,
            }
        rows.append(row)
    columns = [*family[0].labels, ("Paper", "difference"), ("Paper", "p (Holm)")]
    columns += [("Ours", c) for c in ("difference", "95 % interval", "p (Holm)")]
    return _frame(rows, columns, [_ids((pair.first, pair.second)) for pair in family])


def _ids(sets: Iterable[Iterable[Condition]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(c.run_id for conditions in sets for c in conditions))


def _frame(
    rows: Sequence[dict[tuple[str, str], object]],
    columns: Sequence[tuple[str, str]],
    behind: Sequence[tuple[str, ...]],
) -> pd.DataFrame:
    frame = pd.DataFrame(rows).reindex(columns=pd.MultiIndex.from_tuples(columns))
    frame.attrs["runs"] = list(behind)
    return frame


def say_interval(interval: Interval, digits: int = 2) -> str:
    """An interval of differences in words: “−0.12 to +0.85”."""
    return f"{signed(digits)(interval.low)} to {signed(digits)(interval.high)}"


def say_range(interval: Interval) -> str:
    """An interval of accuracies in words: “89.2 to 90.4”."""
    return f"{interval.low:.1f} to {interval.high:.1f}"


def say_p(p: float) -> str:
    """A p value in words: 0.034, or “< 0.001”."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


FORMATS: dict[Any, Format] = {
    ("", "LR"): "{:g}",
    ("", "L2"): "{:g}",
    ("Best run", "ours"): "{:.0f}",
    ("Runner-up", "run"): "{:.0f}",
    "top-1, %": fixed(1),
    "behind by": fixed(2),
    "difference": signed(2),
    **{(gain, side): signed(1) for gain in ("DAA-1", "DAA-2") for side in ("paper", "ours")},
    "p (Holm)": say_p,
}
"""How the columns of these tables are written."""
