"""Recorded runs on CIFAR-10.1, from their kept weights."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from cifarlib import metrics
from cifarlib.errors import ConfigError, RecordError
from cifarlib.runs import provenance
from cifarlib.runs.cifar10_1 import (
    NewImages,
    ShiftRecord,
    predictions_digest,
    read_images,
    read_shift,
    shift_path,
)
from cifarlib.runs.results import Results
from cifarlib.runs.schema import FORMAT, RunRecord, pack, pack_classes, pack_confidence
from cifarlib.runs.store import encode, write_atomically
from cifarlib.runs.weights import build_network
from cifarlib.training import Feed, ImageSet, Inputs, compute_logits, prepare_model, resolve_device


def evaluate(record: RunRecord, weights: Path, new: NewImages, device: str) -> ShiftRecord:
    """What a recorded run's kept weights make of the new images, evaluated as the run evaluates
    its test images. Raises ``RecordError`` for damaged weights, or another training's."""
    where, config = resolve_device(device), record.config
    if where.type == "cpu":
        torch.set_num_threads(record.provenance.threads)
    model, kept = build_network(record, weights)
    model, channels_last = prepare_model(model, config, where)
    images, labels = (torch.from_numpy(part).to(where) for part in (new.images, new.labels))
    here = ImageSet(images, labels)
    feed = Feed(config, Inputs(here, here, here, kept.mean, kept.std), channels_last)
    batches = feed.evaluation(here, "evaluation/test", record.result.predictions.epoch)
    logits = compute_logits(model, batches, config, where)
    classes, confidence = metrics.predictions(logits)
    gpu = torch.cuda.get_device_name(where) if where.type == "cuda" else None
    return ShiftRecord(
        format=FORMAT,
        run_id=record.run_id,
        of_predictions=predictions_digest(record),
        data_fingerprint=new.fingerprint,
        confusion=metrics.confusion_matrix(logits, labels),
        classes=pack_classes(classes),
        confidence=pack_confidence(confidence),
        right=pack(np.packbits(np.array(classes) == new.labels)),
        provenance=provenance.of_this_process(torch.get_num_threads(), gpu),
    )


def generalise(results: Results, folder: Path, *, device: str = "auto") -> Iterator[str]:
    """Evaluate every recorded run with kept weights on CIFAR-10.1, and record what comes out.

    Gives a line on each as it is made, and a summary. What is there is not made again. Damaged
    weights are set aside. Raises ``DataError`` where ``folder`` does not hold the set, and
    ``ConfigError`` where no run could be evaluated.
    """
    new, store, count = read_images(folder), results.store, Counter[str]()
    if not results.real:
        raise ConfigError(
            "these runs are of a generated stand-in set, whose classes are not CIFAR-10.1's; "
            "add --set data.name=cifar10, or name a scale on CIFAR-10"
        )
    names = {c.run_id: c.seeded_name for c in reversed(results.known)}
    for run_id, record in results.records.items():
        path, weights = shift_path(store, run_id), store.weights_path(run_id)
        known = None
        try:
            known = read_shift(store, run_id)
        except RecordError as error:
            yield f"{error}; set aside as {store.set_aside(path, error)}"
        made_of = known and (known.of_predictions, known.data_fingerprint)
        if made_of == (predictions_digest(record), new.fingerprint):
            count["present"] += 1
            continue
        try:
            shift = evaluate(record, weights, new, device) if weights.exists() else None
        except RecordError as error:
            shift = None
            yield f"{error}; set aside as {store.set_aside(weights, error)}"
        if shift:
            write_atomically(path, encode(shift))
            old = record.accuracy("test", epoch=record.result.predictions.epoch)
            yield f"{names[run_id]}: {old:.2f} % on CIFAR-10, {shift.accuracy:.2f} % on CIFAR-10.1"
        count["made" if shift else "lacking"] += 1
    if count["lacking"] == len(results.records):
        raise ConfigError(
            f"no recorded run in {store.runs} has kept weights; cifarlib sweep --keep-weights "
            "keeps those of the runs it trains, cifarlib verify --keep-weights --run NAME trains a "
            "recorded one again and keeps them if it comes out the same"
        )
    yield (
        f"{count['made']} runs evaluated on CIFAR-10.1, {count['present']} were already, "
        f"{count['lacking']} have no kept weights"
    )
