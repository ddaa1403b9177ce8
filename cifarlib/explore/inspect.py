"""One run's mistakes, and two runs side by side: settings, accuracies and the exact paired test."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from cifarlib.analysis.statistics import mcnemar
from cifarlib.config import DATASETS, SPLITS
from cifarlib.errors import DataError
from cifarlib.explore.collection import find_run, list_differences
from cifarlib.runs.frames import RunPredictions
from cifarlib.runs.results import Results


def tabulate_pair(results: Results, first: str, second: str) -> pd.DataFrame:
    """Two runs by name, a column each: top-1 accuracies in %, then the settings that differ."""
    pair = [find_run(results, name) for name in (first, second)]
    configs = [record.config for record in pair]
    here, there = list_differences(*reversed(configs)), list_differences(*configs)
    rows = {
        f"{'training' if s == 'train' else s} top-1, %": [r.accuracy(s) for r in pair]
        for s in SPLITS
    }
    rows |= {key: [here.get(key, "–"), there.get(key, "–")] for key in {**here, **there}}
    return pd.DataFrame.from_dict(rows, orient="index", columns=[first, second], dtype=object)


def say_better(results: Results, first: str, second: str) -> str:
    """Which of two trained networks is better on their test images, by McNemar's exact test."""
    records = [find_run(results, name) for name in (first, second)]
    if records[0].run_id == records[1].run_id:
        return f"{first} is one and the same network; choose a second run."
    described = results.store.read_data(records[0].config.data.name)
    pair = [RunPredictions(record, described) for record in records]
    if pair[0].correct is None or pair[1].correct is None:
        raise DataError("the labels of the test images are not on record; run `cifarlib sweep`")
    labels: Any = [found.labels for found in pair]
    if not np.array_equal(*labels):
        raise DataError(f"{first} and {second} were tested on different images; choose other runs")
    return mcnemar(pair[0].correct, pair[1].correct).say(first, second)


def find_mistakes(results: Results, run: str) -> pd.DataFrame:
    """The test images that a run gets wrong, greatest confidence first.

    A row an image, by its number in the data set: ``image`` as HTML, ``true``, ``predicted``, and
    ``confidence`` in %. Raises ``DataError`` where the data set is missing, with how to get it.
    """
    from cifarlib import data

    record = find_run(results, run)
    info, (_, test) = DATASETS[record.config.data.name], data.load(record.config.data.name)
    known: Any = SimpleNamespace(labels=test.labels, data_fingerprint=info.fingerprint)
    predictions = RunPredictions(record, known)
    if predictions.correct is None:
        raise DataError(f"run {record.run_id} was made from other files than the data set now has")
    where = data.stratified_subset(test.labels, record.config.data.test_size)
    frame = pd.DataFrame({"label": predictions.labels, "class": predictions.classes}, index=where)
    frame = frame.map(info.classes.__getitem__).set_axis(["true", "predicted"], axis=1)
    frame["confidence"] = 100 * predictions.confidence
    wrong = frame[~predictions.correct].sort_values("confidence", ascending=False, kind="stable")
    drawn = '<img src="data:image/png;base64,{}" alt="test image {}" width="64">'
    images = [drawn.format(data.to_png(test.images[number]), number) for number in wrong.index]
    wrong.insert(0, "image", images)
    return wrong
