"""Programs, lanes and graphs: the same runs as ``training``'s, whoever carries them out.

All but the capture itself is tested on the CPU; what needs a CUDA device is skipped without one.
"""

import copy
import multiprocessing
import os
import re
import subprocess
import sys
import threading
import tomllib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import packages_distributions

import numpy as np
import pytest
import torch
from conftest import DEADLINE, make_record, tiny_conditions, tiny_store
from trainings import DAA2, MUON, SGD, change, make_inputs, on_cuda, short_run

from cifarlib import paths, training
from cifarlib.config import NETWORKS, ModelConfig, card_share
from cifarlib.errors import ConfigError
from cifarlib.gpu import lanes
from cifarlib.gpu.cuda import MOMENTS, Program, kind_of, step_scalars, supports, update_
from cifarlib.gpu.lanes import Card, Lane
from cifarlib.models import build_model
from cifarlib.runs import progress, sweep, worker
from cifarlib.runs.inputs import load_inputs
from cifarlib.runs.schema import to_result
from cifarlib.training import Run, fit

pytestmark = pytest.mark.integration

CPU = torch.device("cpu")
ADAM = {"name": "adam", "beta1": 0.9, "beta2": 0.999, "epsilon": 1e-8}
ADAMW = {**ADAM, "name": "adamw"}
OPTIMIZERS = {"sgd": SGD, "adam": ADAM, "adamw": ADAMW}
STEPS = OPTIMIZERS | {
    "nesterov": {**SGD, "nesterov": True},
    "no momentum": {"name": "sgd", "momentum": 0.0},
}
COSINE = {"name": "cosine", "warmup": 0.2, "final": 0.1}

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")


@pytest.fixture(scope="module")
def inputs():
    """10 training images: batches of 4, 4 and 2."""
    return make_inputs(train=10, validation=6, test=6)


@pytest.fixture(scope="module")
def base():
    return change(
        short_run(), batch_size=4, epochs=2, learning_rate=1e-4, evaluation__train_every=1
    )


def make_lane(**settings) -> Lane:
    return Lane(CPU, threading.Lock(), **{"graphs": False} | settings)


def fit_in(lane: Lane, run, inputs, **settings):
    with lane.working():
        return fit(run, inputs, lane.device, begin=lane.begin, **settings)


def assert_close(one, other, tolerance=1e-3):
    """Two results in fp32 of one configuration that differ in the last bits of their arithmetic:
    a few steps grow those to less than a thousandth of the loss."""
    assert one.history.learning_rate == other.history.learning_rate
    losses = one.history.training_loss[1:], other.history.training_loss[1:]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    for name in ("train", "validation", "test"):
        mine_and_theirs = (getattr(result.history, name).loss for result in (one, other))
        for mine, theirs in zip(*mine_and_theirs, strict=True):
            assert (mine is None) == (theirs is None)
            assert mine is None or mine == pytest.approx(theirs, rel=tolerance)


class NudgedRun(Run):
    """A run whose first weights differ by up to 2^-24 of themselves: the last bit of fp32."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in self.model.parameters():
                noise = 2 * torch.rand(parameter.shape, generator=generator) - 1
                parameter.mul_(1 + 2**-24 * noise.to(parameter.device))


def drift(one, other) -> np.ndarray:
    """The largest relative difference of two results' losses, up to each epoch."""
    pairs = [(one.history.training_loss, other.history.training_loss)]
    for name in ("train", "validation", "test"):
        pairs.append(tuple(getattr(result.history, name).loss for result in (one, other)))
    ours, theirs = np.array(pairs, dtype=float).transpose(1, 0, 2)
    return np.maximum.accumulate(np.nanmax(abs(ours - theirs) / theirs, axis=0))


def assert_close_in_bf16(one, other, nudged):
    """Two results that differ no more than rounding explains.

    bf16 keeps 8 bits, and each step multiplies a difference: one in the last bit of the first
    weights (``nudged``) grows to 1 % of the loss in one epoch of ten steps and to up to 11 % in
    three, measured on a processor. Whatever adds up in another order drifts as far, so three times
    that is allowed, and one bf16 rounding, 2^-8, of a loss.
    """
    assert one.history.learning_rate == other.history.learning_rate
    assert (drift(one, other) <= np.maximum(2**-8, 3 * drift(nudged, other))).all()


# ---------------------------------------------------------------------------------------------
# The optimiser's step
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("name", STEPS)
def test_update_equals_torchs_over_twenty_steps(base, name, decay):
    run = change(base, optimizer=STEPS[name], weight_decay=decay, learning_rate=0.01)
    kept = MOMENTS[run.optimizer.name]
    generator = torch.Generator().manual_seed(3)
    ours = [torch.randn(n, 5, generator=generator) for n in (4, 1, 7)]
    module = torch.nn.ParameterList(copy.deepcopy(ours))
    torchs = training.build_optimizer(run, module)
    moments = [[torch.zeros_like(p) for p in ours] for _ in kept]
    rates = [0.01 / (step + 1) for step in range(20)]
    table = torch.cat([step_scalars(rates[:12], 0), step_scalars(rates[12:], 12)])
    for rate, scalars in zip(rates, table, strict=True):
        gradients = [torch.randn(p.shape, generator=generator) for p in ours]
        for parameter, gradient in zip(module, gradients, strict=True):
            parameter.grad = gradient.clone()
        torchs.param_groups[0]["lr"] = rate
        torchs.step()
        update_(run, ours, gradients, moments, scalars)
    for mine, theirs in zip(ours, module, strict=True):
        torch.testing.assert_close(mine, theirs.detach(), rtol=2e-6, atol=2e-7)
    for key, tensors in zip(kept, moments, strict=True):
        for mine, parameter in zip(tensors, module, strict=True):
            theirs = torchs.state[parameter].get(key)
            theirs = torch.zeros_like(mine) if theirs is None else theirs  # without momentum
            torch.testing.assert_close(mine, theirs, rtol=2e-6, atol=2e-7)


@pytest.mark.parametrize("name", STEPS)
def test_a_gradient_that_lies_otherwise_than_its_weights_updates_them_alike(base, name):
    """Weights of convolutions are channels last; cuDNN gives some gradients channels first."""
    run = change(base, optimizer=STEPS[name], weight_decay=0.1)
    generator = torch.Generator().manual_seed(4)
    weights, gradient = torch.randn(2, 6, 5, 3, 3, generator=generator).unbind()
    updated = []
    for layout in (torch.contiguous_format, torch.channels_last):
        parameter = weights.clone(memory_format=torch.channels_last)
        moments = [[torch.zeros_like(parameter)] for _ in MOMENTS[run.optimizer.name]]
        other = gradient.clone(memory_format=layout)
        update_(run, [parameter], [other], moments, step_scalars([0.1], 0)[0])
        assert parameter.is_contiguous(memory_format=torch.channels_last)
        updated.append(parameter)
    assert torch.equal(*updated)
    assert not torch.equal(updated[0], weights)


# ---------------------------------------------------------------------------------------------
# A run in a lane
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": SGD},
        {"optimizer": ADAM, "augmentation": DAA2},
        {"optimizer": ADAMW, "schedule": COSINE},
        {"optimizer": SGD, "protocol__shuffle": False, "protocol__augmented_evaluation": True,
         "augmentation": DAA2},
        {"optimizer": {**SGD, "nesterov": True}, "label_smoothing": 0.2,
         "augmentation": DAA2 | {"padding_mode": "reflect", "alternating_flip": True, "cutout": 8},
         "schedule": {"name": "triangular", "start": 0.2, "peak": 0.3, "final": 0.0}},
        {"optimizer": SGD, "model__whitening": {"frozen": True}, "model__last_layer_scale": 0.2,
         "model__branch_scale": 0.5, "model__batch_norm_momentum": 0.4,
         "evaluation__flip_averaged": True},
    ],
    ids=[
        "sgd", "adam and augmentation", "adamw and cosine", "published evaluation",
        "nesterov and other augmentation", "other first weights",
    ],
)  # fmt: skip
def test_a_run_in_a_lane_equals_one_by_fit(base, inputs, changes):
    """fp32, a short last batch: the same but for the order of some additions."""
    run = change(base, **changes)
    seen, batches = [], []
    expected = fit(run, inputs, CPU, on_batch=seen.append)
    lane = make_lane()
    got = fit_in(lane, run, inputs, on_batch=batches.append)
    assert_close(got.result, expected.result)
    assert sum(batches) == sum(seen) == 20
    assert got.resumed == 0


@pytest.mark.parametrize("name", STEPS)
def test_in_bf16_a_run_in_a_lane_has_the_very_bits_of_fit(base, inputs, name):
    """Both use fused kernels; a power of two is the same learning rate in float32 and float64."""
    run = change(
        base, optimizer=STEPS[name], precision="bf16", learning_rate=2**-10, augmentation=DAA2
    )
    assert fit_in(make_lane(), run, inputs).result == fit(run, inputs, CPU).result


def test_a_lanes_next_run_knows_nothing_of_the_one_before(base, inputs):
    """Weights, moments, batch statistics and counters: all are put back. Bit for bit."""
    runs = [
        change(base, optimizer=ADAMW, dropout=0.3),
        change(base, optimizer=ADAMW, dropout=0.6, seed=9, learning_rate=0.01),
    ]
    lane = make_lane()
    fit_in(lane, runs[1], inputs)
    again = fit_in(lane, runs[0], inputs)
    assert len(lane.programs) == 1
    alone = fit_in(make_lane(), runs[0], inputs)
    assert again.result == alone.result
    assert fit_in(lane, runs[1], inputs).result != again.result


@pytest.mark.parametrize("optimizer", [SGD, ADAMW], ids=["sgd", "adamw"])
def test_a_resumed_run_ends_with_the_same_bits(base, inputs, optimizer):
    run = change(base, optimizer=optimizer, dropout=0.2, epochs=3)
    states = []
    whole = fit_in(make_lane(), run, inputs, on_epoch=lambda s: states.append(copy.deepcopy(s)))
    resumed = fit_in(make_lane(), run, inputs, state=states[0])
    assert resumed.result == whole.result
    assert resumed.resumed == 1


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_either_way_goes_on_from_the_others_checkpoint(base, inputs, optimizer):
    run = change(base, optimizer=OPTIMIZERS[optimizer])
    eager_states, lane_states = [], []
    expected = fit(run, inputs, CPU, on_epoch=lambda s: eager_states.append(copy.deepcopy(s)))
    lane = make_lane()
    fit_in(lane, run, inputs, on_epoch=lambda s: lane_states.append(copy.deepcopy(s)))
    assert_close(fit(run, inputs, CPU, state=lane_states[0]).result, expected.result)
    assert_close(fit_in(lane, run, inputs, state=eager_states[0]).result, expected.result)


def test_a_run_that_was_broken_off_leaves_no_program(base, inputs):
    lane = make_lane()

    def stop(images):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_in(lane, base, inputs, on_batch=stop)
    assert not lane.programs
    assert not lane.turn.locked()


def test_a_lane_keeps_few_programs(base, inputs):
    lane = make_lane()
    with lane.working():
        for size in (10, 20, 30, 40, 50, 10):
            lane.begin(change(base, batch_size=size), inputs, CPU)
    sizes = [program.config.batch_size for program in lane.programs.values()]
    assert sizes == [30, 40, 50, 10]


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"learning_rate": 0.1, "seed": 9, "epochs": 7}, True),
        ({"early_stopping": 3, "schedule": COSINE}, True),
        ({"protocol__selection": "test", "protocol__checkpoint": "last"}, True),
        ({"weight_decay": 0.5}, False),
        ({"batch_size": 64}, False),
        ({"optimizer": SGD}, False),
        ({"augmentation": DAA2}, False),
        ({"dropout": 0.5}, False),
        ({"model__last_layer_scale": 0.1, "model__branch_scale": 0.5}, True),
        ({"model__whitening": {"frozen": True}}, False),
        ({"precision": "bf16"}, False),
        ({"protocol__augmented_evaluation": True}, False),
        ({"model__name": "resnet18"}, False),
    ],
)
def test_kind_of_is_the_same_for_settings_that_lie_in_tensors(base, changes, same):
    assert (kind_of(change(base, **changes)) == kind_of(base)) is same


# ---------------------------------------------------------------------------------------------
# Step by step
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [{"optimizer": MUON}, {"decayed": "weights"}, {"average": {"decay": 0.9}}],
    ids=["muon", "decayed", "average"],
)
def test_what_no_program_carries_out_a_lane_takes_step_by_step(base, inputs, changes):
    """The very run that ``fit`` makes, with the turn given up after each epoch."""
    run = change(base, epochs=1, **changes)
    assert not supports(run)
    assert supports(base)
    lane, waits = make_lane(graphs=True), []
    lane.wait = lambda: waits.append(lane.turn.locked())
    assert fit_in(lane, run, inputs).result == fit(run, inputs, CPU).result
    assert waits == [True] * run.epochs
    assert not lane.programs
    assert (lane.execution(run), lane.execution(base)) == ("eager", "graph")


# ---------------------------------------------------------------------------------------------
# Dropout
# ---------------------------------------------------------------------------------------------


def make_program(run, inputs) -> Program:
    feed = training.Feed(run, inputs, channels_last=False)
    model = build_model(run.model, run.dropout, run.seed)
    return Program(run, inputs, feed, model)


def test_masks_are_drawn_by_seed_and_epoch(base, inputs):
    run = change(base, dropout=0.3)
    program = make_program(run, inputs)
    masks = {}
    for seed, epoch in ((1, 1), (1, 2), (2, 1), (1, 1)):
        config = change(run, seed=seed)
        program.start(config, program.feed, epoch, program.scalars)
        mask = program.mask.clone()
        assert torch.equal(masks.setdefault((seed, epoch), mask), mask)
        assert mask.double().mean() == pytest.approx(0.7, abs=0.02)
    assert len({m.numpy().tobytes() for m in masks.values()}) == 3
    assert program.scale.item() == pytest.approx(1 / 0.7)
    assert kind_of(change(run, dropout=0.7)) == kind_of(run)  # the mask lies in a tensor


def test_dropped_features_are_zero_and_the_rest_grow(base, inputs):
    program = make_program(change(base, dropout=0.5), inputs)
    program.start(program.config, program.feed, 1, program.scalars)
    features = torch.ones(10, 512)
    program.dropout.factors = program.mask * program.scale
    program.dropout.train()
    assert set(program.dropout(features).unique().tolist()) == {0.0, 2.0}
    program.dropout.eval()
    assert program.dropout(features) is features


# ---------------------------------------------------------------------------------------------
# When graphs are captured
# ---------------------------------------------------------------------------------------------


class MadeUpGraph:
    """Carries the piece out at each replay, as a real one would."""

    def __init__(self, program, work):
        self.replays = 0

        def replay():
            self.replays += 1
            program.carry_out(work)

        self.replay = replay


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_replayed_steps_are_the_runs_own(base, inputs, monkeypatch, dropout):
    """The steps before a capture count, the capture itself is none."""
    monkeypatch.setattr(Lane, "capture", lambda lane, program, work: MadeUpGraph(program, work))
    run = change(base, dropout=dropout, epochs=3)
    lane = make_lane(graphs=True)
    assert fit_in(lane, run, inputs).result == fit_in(make_lane(), run, inputs).result
    (program,) = lane.programs.values()
    replays = {work: graph.replays for work, graph in program.graphs.items()}
    assert program.carried_out[("step", 4)] == lanes.WARM_UP
    assert replays[("step", 4)] == 2 * 3 - lanes.WARM_UP
    assert ("step", 2) not in replays  # once an epoch
    before = replays[("step", 4)]
    fit_in(lane, change(run, seed=5), inputs)
    assert program.graphs[("step", 4)].replays == before + 6  # nothing captured anew


@pytest.fixture
def calls(monkeypatch) -> list[str]:
    """What a lane asks of CUDA while it captures: a device made up of a list of names."""
    log: list[str] = []

    class Graph:
        def capture_begin(self, *pool, capture_error_mode):
            log.append(f"begin in {pool or 'a new pool'}, {capture_error_mode}")

        def capture_end(self):
            log.append("end")

        def pool(self):
            return "the pool"

    class Stream:
        def synchronize(self):
            log.append("wait for the stream")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: log.append("wait for the device"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: log.append("empty the cache"))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (50e9, 80e9))
    return log


class MadeUpProgram:
    """Says when it is carried out; ``graphs`` as a program has them."""

    def __init__(self, log, fault=None):
        self.log, self.fault, self.graphs = log, fault, {}

    def carry_out(self, work):
        self.log.append(f"carry out {work}")
        if self.fault:
            raise self.fault


def test_a_capture_waits_for_its_own_stream_only(calls):
    """Other lanes' work goes on, and their memory stays: neither is waited for nor given back."""
    lane, program = make_lane(graphs=True), MadeUpProgram(calls)
    lane.stream, lane.programs["key"] = torch.cuda.Stream(), program
    program.graphs["first"] = lane.capture(program, "first")
    lane.capture(program, "second")
    assert calls == [
        *("wait for the stream", "begin in a new pool, thread_local", "carry out first", "end"),
        *("wait for the stream", "begin in ('the pool',), thread_local", "carry out second", "end"),
    ]


def test_a_capture_on_a_full_device_empties_the_cache_first(calls, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (8e9, 80e9))
    lane = make_lane(graphs=True)
    lane.stream = torch.cuda.Stream()
    lane.capture(MadeUpProgram(calls), "step")
    assert calls[:2] == ["wait for the stream", "empty the cache"]


def test_a_capture_that_fails_is_ended_and_says_why(calls):
    lane = make_lane(graphs=True)
    lane.stream = torch.cuda.Stream()
    with pytest.raises(ZeroDivisionError):
        lane.capture(MadeUpProgram(calls, ZeroDivisionError()), "step")
    assert calls[-1] == "end"


@pytest.mark.parametrize(("wanted", "execution"), [("0", "eager"), ("1", "graph"), ("", "graph")])
def test_graphs_are_left_out_where_the_environment_says_so(base, monkeypatch, wanted, execution):
    monkeypatch.setenv("CIFARLIB_GRAPHS", wanted)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (50e9, 80e9))
    card = lanes._make_card.__wrapped__(CPU)
    with card.lane(base) as lane:
        assert lane.execution(base) == execution  # as the run's record says it


def test_a_wrong_value_of_cifarlib_graphs_is_one_sentence(monkeypatch):
    monkeypatch.setenv("CIFARLIB_GRAPHS", "no")
    with pytest.raises(ConfigError, match="CIFARLIB_GRAPHS is 'no'; set it to 0"):
        lanes.graphs_are_wanted()


# ---------------------------------------------------------------------------------------------
# Several lanes
# ---------------------------------------------------------------------------------------------


def test_lanes_side_by_side_decide_no_result(base, inputs):
    runs = [change(base, seed=seed, dropout=0.2, epochs=1) for seed in (1, 2, 3)]
    alone = [fit_in(make_lane(), run, inputs).result for run in runs]
    turn = threading.Lock()

    def work(run):
        return fit_in(Lane(CPU, turn, graphs=False), run, inputs).result

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(work, runs)) == alone


def test_room_is_given_in_the_order_of_asking():
    card, log, steps = Card(CPU, 1e9, graphs=False), [], deque()

    def use(name, part, leave):
        with card.room(part) as together:
            log.append((name, together))
            assert leave.wait(DEADLINE)

    def start(name, part):
        leave = threading.Event()
        thread = threading.Thread(target=use, args=(name, part, leave))
        before = len(card.queue) + len(log)
        thread.start()
        end = threading.Event()
        for _ in range(DEADLINE * 100):
            if len(card.queue) + len(log) > before:
                break
            end.wait(0.01)
        steps.append((thread, leave))

    for name, part in (("a", 0.5), ("b", 0.5), ("whole", 1.0), ("small", 0.1)):
        start(name, part)
    assert log == [("a", 1), ("b", 2)]  # a small one does not overtake: the large one would starve
    for index in range(4):
        thread, leave = steps[index]
        leave.set()
        thread.join(DEADLINE)
    assert [name for name, _ in log] == ["a", "b", "whole", "small"]
    assert log[2][1] == 1
    assert card.used == []


def test_small_batches_share_a_card_and_large_images_fill_it(base):
    memory = 80e9
    parts = [card_share(change(base, batch_size=size), memory) for size in (32, 64, 128, 256)]
    assert parts == sorted(parts)
    assert parts[0] <= 1 / 8
    assert 1 / 4 < parts[-1] <= 1 / 2
    (large,) = tiny_conditions("stage3/3", overrides=("image_size=224",))
    assert card_share(large.config, memory) == 1.0
    assert card_share(base, 2e9) > 0.5  # a small card


@pytest.mark.parametrize("name", NETWORKS)
def test_the_memory_of_an_image_is_what_its_network_keeps(name):
    """Bytes of all tensors saved for the backward pass in bf16, weights aside."""
    size, images = (32, 8) if name == "residual" else (64, 4)
    model = build_model(ModelConfig(name=name, initialization="kaiming"), 0.0, 0).train()
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    sizes, alive = {}, []

    def save(tensor):
        storage = tensor.untyped_storage()
        alive.append(tensor)  # so that no two have the same place
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(images, 3, size, size))
    copies = 2 * sum(p.numel() for p in model.parameters())  # in bf16
    kept = (sum(sizes.values()) - copies) / images / (size / 32) ** 2 / 1e6
    assert NETWORKS[name].memory == pytest.approx(kept, rel=0.05)


# ---------------------------------------------------------------------------------------------
# In a sweep
# ---------------------------------------------------------------------------------------------


def test_workers_of_one_process_make_their_records_in_lanes(tmp_path, monkeypatch):
    """Threads over pipes, as on a CUDA device; here the device is the CPU."""
    card = Card(CPU, 80e9, graphs=False)
    monkeypatch.setattr(worker, "_card", lambda name: card)
    store = tiny_store(tmp_path)
    chosen = tiny_conditions("stage1-base/25", "stage1-base/26", "stage1-long/9")
    pipes = [multiprocessing.Pipe() for _ in range(2)]
    server = threading.Thread(
        target=worker.serve,
        args=([theirs for _, theirs in pipes], tmp_path, worker.Settings("cpu", 1, 1)),
    )
    server.start()
    jobs = deque(sweep.RunJob(c.run_id, c.name, c.config) for c in chosen)
    records, busy = [], [ours for ours, _ in pipes]
    for connection in busy:
        connection.send(jobs.popleft())
    while busy:
        for connection in multiprocessing.connection.wait(busy, timeout=DEADLINE):
            message = connection.recv()
            assert message.kind in ("images", "epoch", "checkpoint", "done"), message
            if message.kind == "done":
                records.append(message.record)
                connection.send(jobs.popleft() if jobs else None)
                if not jobs and len(records) >= 2:
                    busy.remove(connection)
    server.join(DEADLINE)
    assert not server.is_alive()
    assert store.run_ids() == sorted(c.run_id for c in chosen)
    for condition in chosen:
        record = store.read_run(condition.run_id)
        alone = load_inputs(condition.config, CPU)
        assert record.result == to_result(fit_in(make_lane(), condition.config, alone).result)
        assert record.provenance.execution == "eager"
        assert 1 <= record.provenance.lanes <= 2
    assert list(store.state.iterdir()) == []


def test_a_run_among_lanes_costs_its_part_of_the_device():
    (condition,) = tiny_conditions("stage1-base/1")
    alone, among = (
        progress.Prices([make_record(condition, device_class="cuda", lanes=lanes)], "cuda")
        for lanes in (1, 4)
    )
    assert alone.seconds(condition.config) == pytest.approx(15.0)
    assert among.seconds(condition.config) == pytest.approx(15.0 / 4)


# ---------------------------------------------------------------------------------------------
# On a CUDA device
# ---------------------------------------------------------------------------------------------

LEAN = {"filelock", "numpy", "pillow", "psutil", "pydantic", "pytest", "pyyaml", "torch",
        "torchvision", "tqdm"}  # fmt: skip
"""What these tests may need, and training in a sweep: a rented GPU machine often has no more."""

WITHOUT = """
import sys
sys.modules.update(dict.fromkeys(sys.argv[1:]))  # as if they were not installed
import conftest, test_cuda, cifarlib.gpu.lanes, cifarlib.runs.weights, cifarlib.runs.describe
"""


def test_a_gpu_machine_needs_few_packages():
    project = tomllib.loads((paths.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    declared = sum(project["optional-dependencies"].values(), project["dependencies"])
    names = {re.match(r"[\w-]+", text)[0].lower().replace("_", "-") for text in declared}
    names -= LEAN | {"cifarlib"}
    absent = [
        module
        for module, owners in packages_distributions().items()
        if {owner.lower().replace("_", "-") for owner in owners} & names
    ]
    assert {"pandas", "matplotlib"} <= set(absent)
    places = os.pathsep.join([str(paths.ROOT), str(paths.ROOT / "tests")])
    subprocess.run(
        [sys.executable, "-c", WITHOUT, *absent],
        env=os.environ | {"PYTHONPATH": places},
        check=True,
        timeout=DEADLINE,
    )


def test_drift_of_a_fault_exceeds_that_of_rounding(base, inputs):
    """Of the tolerance itself: rounding passes, another learning rate does not."""
    run = change(base, precision="bf16", optimizer=SGD)
    expected = fit(run, inputs, CPU).result
    nudged = fit(run, inputs, CPU, begin=NudgedRun).result
    assert 0 < drift(nudged, expected)[-1] < 0.1
    assert_close_in_bf16(expected, expected, nudged)
    faulty = fit(change(run, learning_rate=8 * run.learning_rate), inputs, CPU).result
    assert (drift(faulty, expected)[1:] > 3 * drift(nudged, expected)[1:]).all()


@needs_cuda
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_graphs_give_the_same_as_single_steps(base, optimizer):
    inputs = on_cuda(make_inputs(train=328, validation=100, test=100))
    device = torch.device("cuda")
    run = change(
        base,
        optimizer=OPTIMIZERS[optimizer],
        precision="bf16",
        batch_size=32,
        epochs=3,
        augmentation=DAA2,
    )
    eager = fit(run, inputs, device).result
    nudged = fit(run, inputs, device, begin=NudgedRun).result
    turn = threading.Lock()
    lane = Lane(device, turn, graphs=True)
    graphed = fit_in(lane, run, inputs).result
    (program,) = lane.programs.values()
    assert {("step", 32), ("validation", 100)} <= program.graphs.keys()
    assert_close_in_bf16(graphed, eager, nudged)
    plain = fit_in(Lane(device, turn, graphs=False), run, inputs).result
    assert_close_in_bf16(plain, eager, nudged)
    again = fit_in(lane, run, inputs).result  # everything replayed from the start
    assert_close_in_bf16(again, eager, nudged)


@needs_cuda
def test_no_step_waits_for_the_device(base):
    """Neither a step nor an evaluation copies to the host, or a capture would fail."""
    inputs = on_cuda(make_inputs(train=64, validation=20, test=20))
    run = change(base, batch_size=32, dropout=0.5, augmentation=DAA2, precision="bf16")
    with Lane(torch.device("cuda"), threading.Lock(), graphs=False).working() as lane:
        ours = lane.begin(run, inputs, lane.device)
        program = ours.program
        ours.model.train()
        program.start(run, ours.feed, 1, step_scalars([0.1, 0.1], 0))
        program.carry_out(("step", 32))  # constants are copied the first time
        torch.cuda.set_sync_debug_mode("error")
        try:
            program.carry_out(("step", 32))
        finally:
            torch.cuda.set_sync_debug_mode("default")


@needs_cuda
def test_lanes_of_graphs_side_by_side_equal_single_ones(base):
    inputs = on_cuda(make_inputs(train=328, validation=100, test=100))
    device = torch.device("cuda")
    runs = [
        change(base, seed=seed, precision="bf16", batch_size=32, epochs=3) for seed in (1, 2, 3, 4)
    ]
    alone = [fit_in(Lane(device, threading.Lock(), graphs=True), r, inputs).result for r in runs]
    nudged = [fit(run, inputs, device, begin=NudgedRun).result for run in runs]
    card = Card(device, 80e9, graphs=True)

    def work(run):
        with card.lane(run) as lane:
            return fit_in(lane, run, inputs).result

    with ThreadPoolExecutor(4) as pool:
        for found, single, other in zip(pool.map(work, runs), alone, nudged, strict=True):
            assert_close_in_bf16(found, single, other)


@needs_cuda
def test_a_sweep_on_the_device_records_its_lanes(tmp_path):
    store = tiny_store(tmp_path)
    chosen = tiny_conditions("stage1-base/25", "stage1-base/26", "stage2-dropout/9,dropout=0.5")
    outcome = sweep.sweep(chosen, store, device="cuda", workers=3)
    assert outcome.done == 3
    for condition in chosen:
        provenance = store.read_run(condition.run_id).provenance
        assert (provenance.device_class, provenance.execution) == ("cuda", "graph")
        assert np.isfinite(store.read_run(condition.run_id).result.history.training_loss[1])
