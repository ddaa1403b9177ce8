"""Training: what it gives, equal when resumed, its switches, and runs that diverge.

That it computes what a plain PyTorch loop does is in ``test_reference.py``.
"""

import copy
import io
import itertools
import math
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from trainings import DAA2, MUON, SGD, change, make_inputs, on_cuda, short_run

from cifarlib import data, metrics, training
from cifarlib.config import RunConfig
from cifarlib.errors import DataError, RunError
from cifarlib.models import build_model
from cifarlib.runs.inputs import load_inputs, normalization
from cifarlib.runs.schema import to_result
from cifarlib.study import expand, load_scale, load_study
from cifarlib.training import fit

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def inputs():
    return make_inputs(train=16, validation=10, test=10)


@pytest.fixture(scope="module")
def base() -> RunConfig:
    """Two batches an epoch."""
    return change(short_run(), batch_size=8)


# -- what comes out ---------------------------------------------------------------------------


def test_the_first_published_loss_is_8_23():
    """Seed 42, batch 32, Listing 4's constants, the split's order: nothing was ever trained."""
    scale = load_scale("full", ["protocol=published", "precision=fp32"])
    run = expand(load_study(), scale, "stage1-base")[0].config
    try:
        inputs = load_inputs(run, CPU)
    except DataError as error:
        pytest.skip(f"CIFAR-10 is not here: {error}")
    feed = training.Feed(run, inputs, channels_last=False)
    images, labels, _ = next(feed.training(epoch=1))
    model = build_model(run.model, 0.0, seed=42).train()
    loss = nn.functional.cross_entropy(model(images), labels).item()
    assert loss == pytest.approx(8.23, abs=0.005)
    assert loss > 3 * math.log(10)


def test_a_run_learns_and_says_what_came_out(base):
    inputs = make_inputs(train=48, validation=20, test=20)
    changes = {"batch_size": 16, "evaluation": {"train_every": 3, "test_every": 2}}
    run = change(base, epochs=5, **changes)
    seen = []
    fitted = fit(run, inputs, CPU, on_batch=seen.append)
    result = to_result(fitted.result)  # as a record holds it, which a validator checks
    history, chosen = result.history, result.chosen
    assert history.epochs == 5
    assert seen == [16, 16, 16] * 5
    assert history.learning_rate == (None, *[0.001] * 5)
    assert history.training_loss[0] is None
    assert history.training_loss[5] < history.training_loss[1]
    due = {0, 2, 4, 5} | set(chosen.values())  # the last, too
    assert {e for e in range(6) if history.test.top1[e] is not None} == due
    validation = history.validation
    for epoch in range(6):
        assert validation.top1[epoch] <= validation.top2[epoch] <= validation.top3[epoch]
    assert chosen["last"] == 5
    assert validation.top1[chosen["validation"]] == max(validation.top1[1:])
    # At the chosen epochs every set is evaluated, whatever is due.
    for rule in ("validation", "test"):
        assert history.test.top1[chosen[rule]] is not None
        assert history.train.top1[chosen[rule]] is not None
    shown = result.predictions
    assert shown.epoch == chosen["validation"]
    hits = sum(shown.confusion["test"][c][c] for c in range(10))
    assert hits == history.test.top1[shown.epoch]
    assert (shown.classes == inputs.test.labels.numpy()).sum() == hits
    assert shown.weights.shape == (10, 512)
    assert history.train.accuracy(shown.epoch) > 40
    assert fitted.timing.train_s > 0


@pytest.mark.parametrize(("selection", "shown"), [("validation", 1), ("test", 2)])
def test_every_set_is_evaluated_at_the_epoch_of_each_rule(base, monkeypatch, selection, shown):
    """Validation accuracy is highest after epoch 1, test accuracy after epoch 2."""
    counts = {10: iter([0, 9, *[1] * 9]), 12: iter([0, 1, 9, *[1] * 9])}  # by images of the set
    monkeypatch.setattr(
        metrics,
        "top_k_correct",
        lambda _, labels: (next(counts.get(len(labels), itertools.repeat(1))),) * 3,
    )
    seldom = {"train_every": 9, "test_every": 1}
    run = change(base, evaluation=seldom, protocol__selection=selection)
    fitted = fit(run, make_inputs(train=16, validation=10, test=12), CPU)
    assert fitted.result.chosen == {"validation": 1, "test": 2, "last": 3}
    assert None not in fitted.result.history.train.top1
    assert fitted.result.predictions.epoch == shown
    assert fitted.result.predictions.last_layer == fitted.weights["fc.weight"].tolist()


# -- the switches of the two protocols --------------------------------------------------------


def test_normalisation_is_published_or_computed(base):
    published = change(base, protocol__normalization="published")
    mean, std = normalization(published)
    assert mean[0] == pytest.approx(0.01002856, abs=1e-8)
    assert std[0] == pytest.approx(0.07729390, abs=1e-8)
    mean, std = normalization(base)
    images = data.load("synthetic")[0].images
    assert mean == pytest.approx(images.mean(axis=(0, 2, 3)) / 255, rel=1e-9)
    resized = change(base, resize={"size": 37, "crop": 32, "method": "bilinear"})
    assert normalization(resized)[1][0] < std[0]  # interpolation smooths


def test_metrics_count_what_they_say():
    logits = torch.tensor([[9.0, 5, 4] + [0] * 7, [1.0, 9, 8] + [0] * 7, [3.0, 2, 1] + [0] * 7])
    labels = torch.tensor([0, 2, 2])
    assert metrics.top_k_correct(logits, labels) == (1, 2, 3)
    confusion = np.array(metrics.confusion_matrix(logits, labels))
    assert confusion.sum() == 3
    assert (confusion[0, 0], confusion[2, 1], confusion[2, 0]) == (1, 1, 1)
    classes, confidence = metrics.predictions(logits)
    assert classes == [0, 1, 0]
    assert confidence[0] == pytest.approx(logits[0].softmax(0).max().item())


# -- past the paper ---------------------------------------------------------------------------

FLIPS = {"flip_probability": 0.5, "alternating_flip": True}
OPTIONS = {
    "sgd": {"optimizer": SGD, "augmentation": DAA2, "dropout": 0.3, "early_stopping": 9},
    "adamw": {"augmentation": DAA2, "dropout": 0.3, "early_stopping": 9},
    "nesterov, changed images, and losses": {
        "optimizer": {**SGD, "nesterov": True},
        "augmentation": FLIPS | {"padding": 2, "padding_mode": "reflect", "cutout": 8},
        "label_smoothing": 0.2,
        "decayed": "weights",
        "weight_decay": 0.1,
    },
    "first weights": {
        "model__last_layer_scale": 0.1,
        "model__branch_scale": 0.5,
        "model__whitening": {"frozen": False},
        "model__batch_norm_momentum": 0.5,
    },
    "muon": {
        "optimizer": MUON,
        "learning_rate": 0.1,
        "average": {"decay": 0.9, "every": 2},
        "model__whitening": {"frozen": True},
    },
    "lookahead and dropped images": {
        "model__partial_identity": True,
        "average": {"decay": 0.9, "every": 2, "lookahead": True},
        "batch_norm_bias_factor": 8.0,
        "progressive_dropping": 0.5,
        "evaluation__crop_averaged": True,
    },
    "muon and adamw": {
        "optimizer": {
            "name": "muon",
            "rest": {"name": "adamw", "beta1": 0.9, "beta2": 0.99, "epsilon": 1e-8},
            "rest_factor": 0.1,
        },
        "learning_rate": 0.02,
        "schedule": {"name": "triangular", "start": 0.2, "peak": 0.3, "final": 0.0},
    },
}


@pytest.mark.parametrize("options", OPTIONS)
def test_a_resumed_run_is_bit_identical(inputs, base, options):
    """Killed after each of its first two epochs; ``test_reference.py`` has that options matter."""
    run = change(base, **OPTIONS[options])
    whole, state, saved = fit(run, inputs, CPU), None, []

    def stop(state):
        buffer = io.BytesIO()
        torch.save(state, buffer)
        saved.append(buffer.getvalue())
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            fit(run, inputs, CPU, state=state, on_epoch=stop)
        state = torch.load(io.BytesIO(saved[-1]), weights_only=True)
    resumed = fit(run, inputs, CPU, state=state)
    assert resumed.result == whole.result
    assert resumed.resumed == 2


# -- precision, device, speed -----------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_cuda_agrees_with_the_cpu():
    inputs, base = make_inputs(), short_run()
    there = fit(base, on_cuda(inputs), torch.device("cuda"))
    ours = there.result.history.training_loss[1:]
    assert ours == pytest.approx(fit(base, inputs, CPU).result.history.training_loss[1:], rel=0.05)


def test_resolve_device_takes_a_gpu_where_there_is_one_and_no_other_name():
    there = "cuda" if torch.cuda.is_available() else "cpu"
    assert training.resolve_device("auto") == torch.device(there)
    assert training.resolve_device("cpu") == CPU
    with pytest.raises(RunError, match="there is no device 'tpu'; use auto, cpu or cuda"):
        training.resolve_device("tpu")


# -- one ranking, and runs that diverge --------------------------------------------------------


@pytest.mark.parametrize(
    "model",
    [
        {"name": "residual", "initialization": "kaiming"},
        {"name": "resnet18", "initialization": "kaiming"},
    ],
)
def test_logits_are_fp32_whatever_the_precision(inputs, base, model):
    run = change(base, precision="bf16", model=model)
    network = training.first_model(run, inputs).eval()
    seen = []
    training.last_layer(network).register_forward_hook(lambda *call: seen.append(call[2].dtype))
    feed = training.Feed(run, inputs, channels_last=True)
    logits = training.compute_logits(
        network, feed.evaluation(inputs.test, "evaluation/test", 0), run, CPU
    )
    assert set(seen) == {torch.float32}
    rounded = logits.bfloat16().float()
    assert not torch.equal(logits, rounded)  # more digits than bfloat16 has


def test_tied_logits_are_ranked_by_class_in_every_count():
    logits = torch.zeros(4, 10)
    logits[1, 3] = logits[1, 7] = 1.0
    logits[2] = math.nan
    logits[3, 9] = 1.0
    labels = torch.tensor([0, 7, 0, 9])
    assert metrics.rank(logits)[:3, :2].tolist() == [[0, 1], [3, 7], [0, 1]]
    matrix = metrics.confusion_matrix(logits, labels)
    classes, confidence = metrics.predictions(logits)
    top1, top2, _ = metrics.top_k_correct(logits, labels)
    assert classes == [0, 3, 0, 9]
    assert top1 == sum(matrix[c][c] for c in range(10)) == 3
    assert top2 == 4
    assert confidence[0] == pytest.approx(0.1)


def lose_weights(epoch: int, *, late: bool = False):
    """Begin a run whose weights are spoilt by an epoch's first or last step, as too large a one."""

    def begin(*arguments) -> training.Run:
        run = training.Run(*arguments)
        train = run._train_epoch

        def spoiled(number, on_batch):
            loss = train(number, on_batch) if late else None
            if number == epoch:
                with torch.no_grad():
                    run.model.fc.weight.fill_(math.nan)
            return train(number, on_batch) if loss is None else loss

        run._train_epoch = spoiled
        return run

    return begin


@pytest.mark.parametrize(
    ("lost", "selection", "chosen"), [(3, "validation", {1, 2}), (1, "test", {1})]
)
def test_a_run_that_diverges_ends_and_its_lost_epochs_are_never_best(
    inputs, base, lost, selection, chosen
):
    seldom = {"train_every": 9, "test_every": 9}
    run = change(base, epochs=5, evaluation=seldom, protocol__selection=selection)
    fitted = fit(run, inputs, CPU, begin=lose_weights(lost))
    history = fitted.result.history
    assert fitted.result.diverged
    assert len(history.training_loss) == 1 + lost
    assert history.training_loss[-1] is None
    assert history.validation.loss[-1] is None
    assert None not in (history.train.top1[-1], history.test.top1[-1])  # the last is evaluated
    assert fitted.result.chosen[selection] in chosen
    assert fitted.result.predictions.epoch in chosen


def test_a_run_whose_last_step_loses_the_weights_diverged(inputs, base):
    """Its training loss is finite, its validation loss is not."""
    fitted = fit(change(base, epochs=2), inputs, CPU, begin=lose_weights(2, late=True))
    history = fitted.result.history
    assert history.training_loss[2] is not None
    assert history.validation.loss[2] is None
    assert fitted.result.diverged
    assert fitted.result.chosen["validation"] == 1


@pytest.mark.parametrize(
    ("loss", "kept"),
    [(0.123456789, 0.1234568), (math.nan, None), (-math.inf, None), (None, None)],
)
def test_losses_are_kept_to_7_digits_where_they_are_finite(loss, kept):
    assert training._finite(loss) == kept


def test_a_lost_epoch_loses_to_a_finite_one_of_lower_accuracy(inputs, base, monkeypatch):
    """9 % with a finite loss is better than 10 % with none."""
    run = training.Run(change(base, epochs=5), inputs, CPU)
    counts = iter([(9, 9, 9), (10, 10, 10)])
    losses = iter([2.0, math.nan])
    monkeypatch.setattr(metrics, "top_k_correct", lambda *_: next(counts))
    monkeypatch.setattr(metrics, "mean_loss", lambda *_: next(losses))
    run.config = change(run.config, evaluation={"train_every": 0, "test_every": 0})
    for name in ("learning_rate", "training_loss"):
        run.history[name].append(None)
    for name in training.SPLITS:
        for column in run.history[name].values():
            column.append(None)
    run.measure(1, loss=2.0)
    run.measure(2, loss=2.0)
    assert run.history["validation"]["top1"][1:] == [9, 10]
    assert run.best["validation"]["epoch"] == 1


def test_timing_adds_up_over_epochs_and_over_the_parts_of_a_resumed_run(inputs, base, monkeypatch):
    """By clocks that show a second more at each look."""
    clock, processor = itertools.count(), itertools.count()
    looks = {"perf_counter": partial(next, clock), "process_time": partial(next, processor)}
    monkeypatch.setattr(training, "time", SimpleNamespace(**looks))
    run = change(base, progressive_dropping=0.5)  # 16, 12 and 8 images
    states = []
    whole = fit(run, inputs, CPU, on_epoch=lambda state: states.append(copy.deepcopy(state)))
    assert (whole.timing.train_s, whole.timing.images_per_s) == (3, (16 + 12 + 8) / 3)
    assert whole.timing.cpu_s == whole.timing.train_s + whole.timing.evaluation_s
    assert len(states) == 2  # none after the last epoch
    assert fit(run, inputs, CPU, state=states[0]).timing == whole.timing


def test_processor_time_is_counted(inputs, base):
    timing = fit(change(base, epochs=1), inputs, CPU).timing
    assert 0 < timing.cpu_s <= 1.5 * (timing.train_s + timing.evaluation_s) + 1
