"""One setting over its seeds: accuracies, means, intervals, and differences paired by seed.

Accuracies are top-1 in %, differences in percentage points.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from cifarlib.display import fixed, signed
from cifarlib.records import Results, RunRecord
from cifarlib.statistics import Interval, mean_interval
from cifarlib.study import Condition

Measure = Callable[[RunRecord], float | None]


@dataclass(frozen=True)
class Mean:
    """The mean over seeds, with Student's t interval where there are at least two."""

    values: tuple[float, ...]
    runs: tuple[str, ...] = ()

    @property
    def count(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float | None:
        return mean_interval(self.values)[0] if self.values else None

    @property
    def interval(self) -> Interval | None:
        return mean_interval(self.values)[1] if self.values else None

    def say(self) -> str | None:
        """“56.31 [55.20 to 57.42]”; None without a seed."""
        return _say(self, fixed(2))

    def say_difference(self) -> str | None:
        """“+0.31 [−0.80 to +1.42]”; None without a seed."""
        return _say(self, signed(2))


def _say(value: Mean, form: Callable[[float], str]) -> str | None:
    if value.mean is None:
        return None
    interval = value.interval
    if interval is None:
        return form(value.mean)
    return f"{form(value.mean)} [{form(interval.low)} to {form(interval.high)}]"


def tested(record: RunRecord) -> float | None:
    """Test top-1 as the run's protocol reports it."""
    return record.accuracy("test")


def validated(record: RunRecord) -> float | None:
    """Validation top-1 at the reported epoch."""
    return record.accuracy("validation")


def by_label(results: Results, stage: str, run: int | None = None) -> dict[str, list[Condition]]:
    """Label → its conditions, one for each seed, in the study's order."""
    found: dict[str, list[Condition]] = {}
    for condition in results.select(stage):
        if run is None or condition.run == run:
            label = condition.changed.get("label") or condition.settings["label"]
            found.setdefault(label, []).append(condition)
    return found


def average(results: Results, conditions: Iterable[Condition], measure: Measure = tested) -> Mean:
    """A measure of one setting over its recorded seeds."""
    known = values(results, conditions, measure)
    return Mean(tuple(known.values()), _ids(results, conditions))


def difference(
    results: Results,
    first: Sequence[Condition],
    second: Sequence[Condition],
    measure: Measure = tested,
    other: Measure | None = None,
) -> Mean:
    """A measure of the first setting less that of the second (or ``other``), seed by seed."""
    one, two = values(results, first, measure), values(results, second, other or measure)
    return Mean(
        tuple(one[seed] - two[seed] for seed in one if seed in two),
        _ids(results, [c for c in [*first, *second] if c.config.seed in one.keys() & two.keys()]),
    )


def values(
    results: Results, conditions: Iterable[Condition], measure: Measure
) -> Mapping[int, float]:
    """Seed → a measure of its record; seeds without a record or a value are left out."""
    found = {}
    for condition in conditions:
        record = results.record(condition)
        if record is not None and (value := measure(record)) is not None:
            found[condition.config.seed] = value
    return found


def _ids(results: Results, conditions: Iterable[Condition]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(c.run_id for c in conditions if results.record(c) is not None))
