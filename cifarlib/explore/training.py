"""Training from a notebook's cell: any condition of a study, with settings of one's own."""

import itertools
from collections.abc import Sequence
from typing import Any

import pandas as pd

from cifarlib.errors import ConfigError
from cifarlib.explore.collection import OWN, check_results, collect, tabulate, write_note
from cifarlib.runs.grids import make_grid, open_study, plain_values
from cifarlib.runs.in_notebook import train_missing
from cifarlib.runs.other_studies import find_condition, list_conditions
from cifarlib.runs.progress import check_device
from cifarlib.runs.results import Results, open_results
from cifarlib.study import Condition, change, merge_presets


def train(
    start: str, results: Results | None = None, *, device: str = "auto", **settings: Any
) -> pd.DataFrame:
    """Train a condition, such as ``stage1-daa1/13``, with some settings changed; the run's row.

    Settings are named as in the study, ``learning_rate=0.002``, ``optimizer="sgd"``,
    ``**{"data.train_size": 2000}``; all else, epochs and seed included, is the condition's. A list
    of values trains a run with each of them, several lists one with every combination.

    Runs are trained as in a sweep, in worker processes with its locks, checkpoints and records.
    ``results`` are those of scale smoke unless given. Raises ``ConfigError`` for settings that
    cannot be, before anything is trained, and the errors of ``train_missing``.
    """
    check_device(device)
    results = check_results(results or open_results("smoke"))
    conditions = choose_conditions(start, results, settings)
    _, records = collect(results)
    for condition in conditions:
        if condition.stage == OWN and condition.run_id not in records:
            write_note(results, condition, start)
    train_missing(conditions, results, records, device)
    frame = tabulate(results)
    return frame[frame["run_id"].isin([condition.run_id for condition in conditions])]


def grid(
    start: str,
    results: Results | None = None,
    *,
    seeds: Sequence[int] = (),
    name: str = "",
    device: str = "auto",
    **settings: Any,
) -> pd.DataFrame:
    """Train every combination of some settings' values, on a condition by name; the runs' rows.

    ``grid("stage1-daa1/13", dropout=[0, 0.3], learning_rate=[0.003, 0.01], seeds=[42, 43])`` is
    ``cifarlib sweep --from``: the condition itself is trained, too, and the grid is kept as a study
    in the build folder, by the name that is said or ``name``. Else as ``train``.
    """
    check_device(device)
    results = check_results(results or open_results("smoke"))
    named = make_grid(results, start, settings, seeds, name)
    opened = open_study(results, named)
    train_missing(opened.conditions, opened, opened.every_record, device)
    print(
        f"The grid is the study {named}. 09_own.ipynb shows it, and so does: cifarlib report "
        f"--study {named} {results.options}"
    )
    return opened.reread().runs.drop_duplicates("run_id")  # the condition may lie in the grid, too


def choose_conditions(start: str, results: Results, settings: dict[str, Any]) -> list[Condition]:
    """A condition by name with every combination of the settings' values."""
    study, base = find_condition(results, start)
    study = study.model_copy(update={"presets": merge_presets(study.presets)})
    by_id = {condition.run_id: condition for _, condition in reversed([*list_conditions(results)])}
    values = {key: plain_values(value) for key, value in settings.items()}
    if empty := [key for key, given in values.items() if not given]:
        raise ConfigError(f"{empty[0]} has no value; give one, or leave it out")
    points = (
        dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())
    )
    chosen = (change(study, base, point) for point in points)
    return list({c.run_id: by_id.get(c.run_id, c) for c in chosen}.values())
