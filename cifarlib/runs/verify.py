"""Verification: stored runs trained once more, and held against their records.

On the machine a record comes from, with the same versions and threads, a run on the processor gives
the same bits, in 32 bits and in bfloat16 alike: there a record must come out identical. Elsewhere
(another processor, other versions, any GPU) sums are ordered otherwise, and the two are two runs of
one configuration: the difference of their test accuracies must stay below what ``LEVEL`` of such
differences stay below,

- by the spread between recorded seeds, whatever study they are of, t · s · √2 with Student's t.
  Where a configuration has few, all of that network, data, length and learning rate are pooled,
  or, where these are few, too, those of every rate;
- where there are none, by the binomial standard error of the test set, z · SE · √2: at little
  training a seed is worth more than this, at the paper's budget less.
"""

import contextlib
import random
import statistics
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from cifarlib.config import RunConfig, flatten
from cifarlib.errors import CifarlibError, ConfigError, RunError
from cifarlib.runs.provenance import differences
from cifarlib.runs.results import Results
from cifarlib.runs.schema import Provenance, RunRecord
from cifarlib.runs.store import RecordStore, write_atomically
from cifarlib.runs.sweep import sweep
from cifarlib.study import Condition

LEVEL = 0.99  # of differences by chance that count as noise
ENOUGH_SEEDS = 5  # of a configuration, from which it need not be pooled with others
LEAST_FREEDOM = 2  # degrees of it, from which a spread says more than the test set's size

Verdict = Literal["identical", "within noise", "differs", "not trained"]


@dataclass(frozen=True)
class Checked:
    """A stored run and what came of training it again."""

    name: str
    run_id: str
    verdict: Verdict
    reason: str
    stored: float | None  # test top-1 in % at the reported epoch
    trained: float | None = None
    limit: float | None = None  # of their difference, in points; None: identity was required
    same_predictions: float | None = None  # % of the test images

    @property
    def difference(self) -> float | None:
        """What was trained less what was stored, in percentage points."""
        if self.stored is None or self.trained is None:
            return None
        return self.trained - self.stored


def sample(results: Results, number: int, seed: int) -> list[Condition]:
    """Some of the recorded runs by chance, each under the first of its names, in study order.

    Raises ``ConfigError`` where no run is recorded.
    """
    known = {c.run_id: c for c in reversed(results.conditions)}
    recorded = sorted(known.keys() & results.every_record.keys())
    if not recorded:
        raise results.nothing_recorded("verify")
    chosen = random.Random(seed).sample(recorded, min(number, len(recorded)))
    return sorted((known[run] for run in chosen), key=results.conditions.index)


def verify(
    results: Results,
    conditions: Sequence[Condition],
    *,
    device: str = "auto",
    workers: int | None = None,
    keep_weights: bool = False,
) -> list[Checked]:
    """Train recorded conditions again, in a folder that is removed, and compare the results.

    Each is trained with as many threads as its record tells of; of a condition's seeds those that
    are recorded. With ``keep_weights`` the weights of those that come out identical, which are the
    recorded runs' own, are kept beside the records.
    Raises ``ConfigError`` for a condition without a record, and ``RunError`` where not one could be
    trained here.
    """
    unread = (c.run_id for c in conditions if c.run_id not in results.every_record)
    others, _ = results.store.read_runs(unread)  # runs that no study has
    results = replace(results, records=results.records | others)
    unique = {c.run_id: c for c in conditions if c.run_id in results.every_record}
    recorded = {condition.name for condition in unique.values()}
    if lacking := [c.name for c in conditions if c.name not in recorded]:
        raise ConfigError(f"{lacking[0]} is not recorded in {results.store.runs}; name one that is")
    by_threads: dict[int, list[Condition]] = {}
    for run, condition in unique.items():
        threads = results.every_record[run].provenance.threads
        by_threads.setdefault(threads, []).append(condition)
    with _temporary_store() as store:
        for known in (results.data, results.network):
            if known is not None:
                store.write(known)  # to describe them again takes longer than many a run
        reasons: dict[str, str] = {}  # by a job's name: why it was not trained
        for threads, members in by_threads.items():
            outcome = sweep(
                members,
                store,
                device=device,
                workers=workers,
                threads=threads,
                checkpoint_every=0,
                keep_weights=keep_weights,
            )
            reasons |= outcome.unavailable | outcome.failed
        trained, _ = store.read_runs(unique)
        checked = []
        for run, condition in unique.items():
            if run in trained:
                checked.append(compare(condition, results, trained[run]))
            else:
                name, stored = condition.name, results.every_record[run].accuracy("test")
                reason = reasons.get(name) or reasons.get(condition.seeded_name, "it did not end")
                checked.append(Checked(name, run, "not trained", reason, stored))
        for one in checked:
            if keep_weights and one.verdict == "identical":
                weights = store.weights_path(one.run_id).read_bytes()
                write_atomically(results.store.weights_path(one.run_id), weights)
    if not trained:
        raise RunError(f"no run could be trained again: {checked[0].name}: {checked[0].reason}")
    return checked


@contextlib.contextmanager
def _temporary_store() -> Iterator[RecordStore]:
    """A build folder that is removed; ``RunError`` where there is no room for it."""
    try:
        temporary = tempfile.TemporaryDirectory(prefix="cifarlib-verify-")
    except OSError as error:
        raise RunError(
            f"no temporary folder can be made ({error.strerror}); make room or name another place "
            "with TMPDIR"
        ) from error
    with temporary as folder:
        try:
            yield RecordStore(Path(folder))
        except CifarlibError as error:
            if folder not in str(error):
                raise
            raise RunError(str(error).replace("--out", "TMPDIR")) from error


def compare(condition: Condition, results: Results, trained: RunRecord) -> Checked:
    """A stored record beside a new one of the same run."""
    stored = results.every_record[condition.run_id]
    before, now = (record.accuracy("test") for record in (stored, trained))
    same = stored.result.predictions.classes == trained.result.predictions.classes
    apart = differing_origins(stored.provenance, trained.provenance)
    verdict: Verdict = "differs"
    limit = None
    if stored.result == trained.result:
        verdict = "identical"
        reason = f"every bit, though {', '.join(apart)}" if apart else "every bit, as it must be"
    elif not apart:
        reason = f"same machine, versions and threads, yet {first_difference(stored, trained)}"
    else:
        recorded, _ = results.store.read_runs(results.store.run_ids())
        limit, basis = noise_limit(stored, recorded.values())
        reason = f"{', '.join(apart)}; limit from {basis}"
        if before is not None and now is not None and abs(now - before) <= limit:
            verdict = "within noise"
    share = 100 * float(same.mean())
    return Checked(condition.name, condition.run_id, verdict, reason, before, now, limit, share)


def differing_origins(stored: Provenance, trained: Provenance) -> list[str]:
    """Why two runs of one configuration need not agree to the bit; nothing where they must."""
    apart = []
    if {stored.device_class, trained.device_class} != {"cpu"}:
        apart.append("a GPU orders its sums anew each time")
    apart += [f"it was made in parts, {change}" for change in stored.changes]
    return apart + differences(stored, trained)


def first_difference(stored: RunRecord, trained: RunRecord) -> str:
    """The first epoch at which two histories part, and in what."""
    old, new = (flatten(record.result.history.model_dump()) for record in (stored, trained))
    for epoch in range(min(stored.result.history.epochs, trained.result.history.epochs) + 1):
        for name in (name for name, course in old.items() if isinstance(course, tuple)):
            before, now = old[name][epoch], new[name][epoch]
            if before != now:
                title = name.replace("_", " ").replace(".", " ")
                return f"the {title} of epoch {epoch} is {now}, stored {before}"
    return "the predictions or the number of epochs differ"


def noise_limit(record: RunRecord, records: Iterable[RunRecord]) -> tuple[float, str]:
    """The largest difference of two test accuracies in points that noise explains, and its basis.

    ``records`` are searched for several seeds of the record's configuration, and of others of the
    same network, data, number of epochs and, first, learning rate.
    """
    from scipy import stats

    groups: dict[str, list[float]] = {}
    same_rate: dict[str, list[float]] = {}
    for other in (r for r in records if _budget(r.config) == _budget(record.config)):
        if (accuracy := other.accuracy("test")) is not None:
            group = groups.setdefault(_without_seed(other.config), [])
            group.append(accuracy)
            if other.config.learning_rate == record.config.learning_rate:
                same_rate[_without_seed(other.config)] = group
    own = groups.get(_without_seed(record.config), [])
    chosen = [own] if len(own) >= ENOUGH_SEEDS else _several(same_rate)
    if (freedom := sum(len(group) - 1 for group in chosen)) < LEAST_FREEDOM:
        chosen = _several(groups)
        freedom = sum(len(group) - 1 for group in chosen)
    squares = sum(statistics.variance(group) * (len(group) - 1) for group in chosen)
    if freedom >= LEAST_FREEDOM and squares > 0:
        factor = float(stats.t.ppf((1 + LEVEL) / 2, freedom))
        basis = f"the spread of {sum(map(len, chosen))} seeds"
        if len(chosen) > 1:
            basis += f" of {len(chosen)} configurations"
        return factor * (2 * squares / freedom) ** 0.5, basis
    images = record.result.history.test.images
    # An accuracy of 0 or 100 % would have no error at all; Agresti and Coull's count has one.
    right = (record.result.history.test.top1[record.reported_epoch] or 0) + 2
    share = right / (images + 4)
    factor = float(stats.norm.ppf((1 + LEVEL) / 2))
    error = 100 * (share * (1 - share) / (images + 4)) ** 0.5
    return factor * error * 2**0.5, f"the binomial error of {images:,} test images"


def _several(groups: Mapping[str, list[float]]) -> list[list[float]]:
    """Those of more than one seed."""
    return [group for group in groups.values() if len(group) > 1]


def _without_seed(config: RunConfig) -> str:
    return config.model_copy(update={"seed": 0}).model_dump_json()


def _budget(config: RunConfig) -> tuple[object, ...]:
    return config.model.name, config.epochs, config.data, config.protocol


def tell(checked: Sequence[Checked]) -> list[str]:
    """A line on each run, and how many have which verdict."""
    lines = []
    for one in checked:
        numbers = ""
        if one.difference is not None:
            apart = f"{one.difference:+.2f}"
            apart += "" if one.limit is None else f", limit {one.limit:.2f}"
            numbers = (
                f"stored {one.stored:.2f} %, now {one.trained:.2f} % ({apart}), "
                f"same predictions {one.same_predictions:.1f} %; "
            )
        lines.append(f"{one.name} ({one.run_id[:8]}) {one.verdict}: {numbers}{one.reason}")
    count = Counter(one.verdict for one in checked)
    told = ", ".join(f"{count[name]} {name}" for name in get_args(Verdict) if count[name])
    return [*lines, f"{len(checked)} runs trained again: {told}"]
