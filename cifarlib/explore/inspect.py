"""One run's mistakes, and two runs side by side: settings, accuracies and the exact paired test."""

import base64
import io

import numpy as np
import pandas as pd

from cifarlib.analysis.statistics import mcnemar
from cifarlib.config import DATASETS
from cifarlib.errors import DataError
from cifarlib.explore.collection import find_run, list_differences
from cifarlib.records import SPLITS, Results, RunRecord
from cifarlib.runs.frames import RunPredictions


def tabulate_pair(results: Results, first: str, second: str) -> pd.DataFrame:
    """Two runs by name, a column each: top-1 accuracies in %, then the settings that differ."""
    pair = {name: find_run(results, name) for name in (first, second)}
    configs = [record.config for record in pair.values()]
    here, there = list_differences(*reversed(configs)), list_differences(*configs)
    rows = {
        f"{'training' if s == 'train' else s} top-1, %": [r.accuracy(s) for r in pair.values()]
        for s in SPLITS
    }
    rows |= {key: [here.get(key, "–"), there.get(key, "–")] for key in {**here, **there}}
    return pd.DataFrame.from_dict(rows, orient="index", columns=list(pair), dtype=object)


def say_better(results: Results, first: str, second: str) -> str:
    """Which of two trained networks is better on their test images, by McNemar's exact test."""
    pair = [_predictions(results, find_run(results, name)) for name in (first, second)]
    if not np.array_equal(pair[0].labels, pair[1].labels):
        raise DataError(f"{first} and {second} were tested on different images; choose other runs")
    return mcnemar(pair[0].correct, pair[1].correct).say(first, second)


def _predictions(results: Results, record: RunRecord) -> RunPredictions:
    """A run's predictions with the labels of its test images; ``DataError`` without them."""
    found = RunPredictions(record, results.store.read_data(record.config.data.name))
    if found.correct is None:
        raise DataError(
            f"the labels of the test images of run {record.run_id} are not on record; "
            "`cifarlib sweep` describes the data set in the build folder"
        )
    return found


def find_mistakes(results: Results, run: str) -> pd.DataFrame:
    """The test images that a run gets wrong, greatest confidence first.

    A row an image, by its number in the data set: ``image`` as HTML, ``true``, ``predicted``, and
    ``confidence`` in %. Raises ``DataError`` where the data set is missing, with how to get it.
    """
    from cifarlib import data

    record = find_run(results, run)
    predictions, names = _predictions(results, record), DATASETS[record.config.data.name].classes
    _, test = data.load(record.config.data.name)
    where = data.stratified_subset(test.labels, record.config.data.test_size)
    frame = pd.DataFrame({"label": predictions.labels, "class": predictions.classes}, index=where)
    frame = frame.map(names.__getitem__).set_axis(["true", "predicted"], axis=1)
    frame["confidence"] = 100 * predictions.confidence
    wrong = frame[~predictions.correct].sort_values("confidence", ascending=False, kind="stable")
    wrong.insert(0, "image", [_draw(test.images[number], number) for number in wrong.index])
    return wrong


def _draw(pixels: np.ndarray, number: int) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels.transpose(1, 2, 0)).save(buffer, format="PNG")
    source = base64.b64encode(buffer.getvalue()).decode()
    return f'<img src="data:image/png;base64,{source}" alt="test image {number}" width="64">'
