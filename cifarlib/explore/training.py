"""Training from a notebook's cell: any condition of a study, with settings of one's own."""

import itertools
from typing import Any

import pandas as pd

from cifarlib.checking import suggest
from cifarlib.errors import ConfigError
from cifarlib.explore.collection import OWN, collect, tabulate, write_note
from cifarlib.runs.further import list_conditions
from cifarlib.runs.in_notebook import say_cost, sweep_with_bar
from cifarlib.runs.results import Results, open_results
from cifarlib.study import Condition, change


def train(
    start: str, results: Results | None = None, *, device: str = "auto", **settings: Any
) -> pd.DataFrame:
    """Train a condition, such as ``stage1-daa1/13``, with some settings changed; the run's row.

    Settings are named as in the study, ``learning_rate=0.002``, ``optimizer="sgd"``,
    ``**{"data.train_size": 2000}``; all else, epochs and seed included, is the condition's. A list
    of values trains a run with each of them, several lists one with every combination.

    Runs are trained as in a sweep, in worker processes with its locks, checkpoints and records.
    ``results`` are those of scale smoke unless given. Raises ``ConfigError`` for settings that
    cannot be, before anything is trained, and the errors of ``sweep_with_bar``.
    """
    results = results or open_results("smoke")
    conditions = choose_conditions(start, results, settings)
    _, records = collect(results)
    missing = [condition for condition in conditions if condition.run_id not in records]
    if missing:
        print(say_cost(missing, records.values(), device), flush=True)
        for condition in missing:
            if condition.stage == OWN:
                write_note(results, condition, start)
        sweep_with_bar(missing, results.store, device)
    frame = tabulate(results)
    return frame[frame["run_id"].isin([condition.run_id for condition in conditions])]


def choose_conditions(start: str, results: Results, settings: dict[str, Any]) -> list[Condition]:
    """A condition by name with every combination of the settings' values."""
    known = list(list_conditions(results))[::-1]
    by_name = {condition.name: (study, condition) for study, condition in known}
    by_id = {condition.run_id: condition for _, condition in known}
    if start not in by_name:
        raise ConfigError(f"no condition is named {start!r}; {suggest(start, by_name)}")
    values = (value if isinstance(value, list) else [value] for value in settings.values())
    points = (dict(zip(settings, point, strict=True)) for point in itertools.product(*values))
    chosen = (change(*by_name[start], point) for point in points)
    return list({c.run_id: by_id.get(c.run_id, c) for c in chosen}.values())
