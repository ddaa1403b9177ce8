"""Recorded runs on CIFAR-10.1, from their kept weights."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from cifarlib import metrics
from cifarlib.errors import ConfigError, RecordError
from cifarlib.runs import provenance
from cifarlib.runs.results import Results
from cifarlib.runs.schema import FORMAT, RunRecord, pack_classes
from cifarlib.runs.shift import (
    NewImages,
    ShiftRecord,
    pack,
    predictions_digest,
    read_images,
    read_shift,
    shift_path,
    write_shift,
)
from cifarlib.runs.weights import build_network
from cifarlib.training import Feed, ImageSet, Inputs, compute_logits, lay_out, resolve_device


def evaluate(record: RunRecord, weights: Path, new: NewImages, device: str) -> ShiftRecord:
    """What a recorded run's kept weights make of the new images, evaluated as the run evaluates
    its test images. Raises ``RecordError`` for damaged weights, or another training's."""
    where, config = resolve_device(device), record.config
    if where.type == "cpu":
        torch.set_num_threads(record.provenance.threads)
    model, kept = build_network(record, weights)
    model, channels_last = lay_out(model, config, where)
    images, labels = (torch.from_numpy(part).to(where) for part in (new.images, new.labels))
    here = ImageSet(images, labels)
    feed = Feed(config, Inputs(here, here, here, kept.mean, kept.std), channels_last)
    batches = feed.evaluation(here, "evaluation/test", record.result.predictions.epoch)
    logits = compute_logits(model, batches, config, where)
    classes, confidence = metrics.predictions(logits)
    shares = np.nan_to_num(confidence).clip(0, 1)
    card = torch.cuda.get_device_name(where) if where.type == "cuda" else None
    return ShiftRecord(
        format=FORMAT,
        run_id=record.run_id,
        of_predictions=predictions_digest(record),
        data_fingerprint=new.fingerprint,
        confusion=metrics.confusion_matrix(logits, labels),
        classes=pack_classes(classes),
        confidence=pack(np.rint(shares * 255).astype(np.uint8)),
        right=pack(np.packbits(np.array(classes) == new.labels)),
        provenance=provenance.of_this_process(where.type, torch.get_num_threads(), card),
    )


@dataclass
class Generalised:
    """What came of a study's recorded runs, by name."""

    made: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)  # made before, from the same files
    lacking: list[str] = field(default_factory=list)  # no weights, or damaged ones


def generalise(
    results: Results, folder: Path, *, device: str = "auto", say: Callable[[str], None] = print
) -> Generalised:
    """Evaluate every recorded run with kept weights on CIFAR-10.1, and record what comes out.

    What is there is not made again. Damaged weights are set aside. Raises ``DataError`` where
    ``folder`` does not hold the set, and ``ConfigError`` where no run could be evaluated.
    """
    new, store, done = read_images(folder), results.store, Generalised()
    if not results.real:
        raise ConfigError(
            "these runs are of a generated stand-in set, whose classes are not CIFAR-10.1's; "
            "add --set data.name=cifar10, or name a scale on CIFAR-10"
        )
    names = {c.run_id: f"{c.name} (seed {c.config.seed})" for c in reversed(results.known)}
    for run_id, record in results.records.items():
        name, path, weights = names[run_id], shift_path(store, run_id), store.weights_path(run_id)
        try:
            known = read_shift(store, run_id)
        except RecordError as error:
            say(f"{error}; set aside as {store.set_aside(path, str(error))}")
            known = None
        made_of = known and (known.of_predictions, known.data_fingerprint)
        if made_of == (predictions_digest(record), new.fingerprint):
            done.present.append(name)
            continue
        try:
            if not weights.exists():
                done.lacking.append(name)
                continue
            shift = evaluate(record, weights, new, device)
        except RecordError as error:
            say(f"{error}; set aside as {store.set_aside(weights, str(error))}")
            done.lacking.append(name)
            continue
        write_shift(store, shift)
        done.made.append(name)
        old = record.accuracy("test", epoch=record.result.predictions.epoch)
        say(f"{name}: {old:.2f} % on CIFAR-10, {shift.accuracy:.2f} % on CIFAR-10.1")
    if len(done.lacking) == len(results.records):
        raise ConfigError(f"no recorded run in {store.runs} has kept weights; {KEEP}")
    return done


KEEP = (
    "cifarlib sweep --keep-weights keeps those of the runs it trains, cifarlib verify "
    "--keep-weights --run NAME trains a recorded one again and keeps them if it comes out the same"
)
