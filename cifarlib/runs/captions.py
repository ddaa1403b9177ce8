"""What stands behind a table or figure, in a sentence: runs, seeds, data, epochs, device."""

import typing
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from cifarlib.config import DATASETS
from cifarlib.formatting import say_count
from cifarlib.runs.mixed_provenance import find_mixtures
from cifarlib.runs.schema import RunRecord
from cifarlib.study import Condition

if typing.TYPE_CHECKING:
    import pandas as pd

    from cifarlib.runs.results import Results


def describe(
    results: "Results", shown: "Iterable[Condition] | pd.DataFrame | str", *, chosen: bool = True
) -> str:
    """What stands behind a table or figure: runs, seeds, data, epochs, device, selection.

    ``shown`` is a stage's name, a frame with a column ``run_id``, or conditions. Where the records
    behind it differ in what all should have in common, that is said, too. Without ``chosen`` it
    leaves out at which epoch accuracies are taken.
    """
    conditions, known = _find(results, shown)
    if not conditions:
        return "No run."
    recorded = [c for c in conditions if c.run_id in known]
    records = [known[name] for name in dict.fromkeys(c.run_id for c in recorded)]
    total = len({c.run_id for c in conditions})
    sizes = [
        " or ".join(f"{n:,}" for n in sorted({getattr(c.config.data, size) for c in conditions}))
        for size in ("train_size", "test_size")
    ]
    seeds = sorted({c.config.seed for c in recorded or conditions})
    trained = {c.config for c in recorded or conditions}
    per_setting = Counter(config.model_copy(update={"seed": 0}) for config in trained)
    most = max(per_setting.values())
    several = f"{'up to ' * (most > min(per_setting.values()))}{most} seeds a setting"
    parts = [
        f"{len(records)} of {say_count(total, 'run')}",
        f"one seed ({seeds[0]})" if len(seeds) == 1 else several,
        f"{_name_data(results.scale.data.name)}: {' training and '.join(sizes)} test images",
    ]
    if diverged := sum(record.result.diverged for record in records):
        parts.insert(1, f"{diverged} diverged")
    epochs = sorted({c.config.epochs for c in conditions})
    parts.append(f"{' or '.join(map(str, epochs))} epochs")
    if records:
        kinds = sorted({(r.config.precision, r.provenance.device) for r in records})
        machines = {precision: [d for p, d in kinds if p == precision] for precision, _ in kinds}
        parts.append("; ".join(f"{p} on {', '.join(named)}" for p, named in machines.items()))
    if chosen:
        sets = {c.config.protocol.selection for c in conditions}
        parts.append(f"accuracies at the epoch chosen on the {' or '.join(sorted(sets))} set")
    behind = {record.run_id: record for record in records}
    mixed = find_mixtures(replace(results, conditions=recorded, records=behind, diverged={}))
    return " ".join(["; ".join(parts) + ".", *(f"Mixed: {said}" for said in mixed.values())])


def _find(results: "Results", shown: Any) -> tuple[list[Condition], dict[str, RunRecord]]:
    """The conditions shown, and the records behind them: of a frame, the second study's, too."""
    if isinstance(shown, str):
        return results.select(shown), results.every_record
    if not hasattr(shown, "columns"):
        return list(shown), results.every_record
    ids = set(shown["run_id"])
    found = [c for c in results.known if c.run_id in ids]
    if further := ids - {c.run_id for c in found}:
        found += [c for c in results.beyond.known if c.run_id in further]
        return found, results.every_record | results.beyond.every_record
    return found, results.every_record


def describe_data(results: "Results") -> str:
    """Which data set a table or figure of the data stage shows."""
    info = DATASETS[results.scale.data.name]
    name = _name_data(results.scale.data.name)
    name = f"{name[0].upper()}{name[1:]}"
    return f"{name} ({info.train_images:,} training images); fingerprint {info.fingerprint}."


def _name_data(dataset: str) -> str:
    info = DATASETS[dataset]
    return info.title if info.real else f"{info.title}, not CIFAR-10"
