"""Records and runs that are made up, for every test that needs some without training."""

import base64
import json
import multiprocessing.forkserver
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from faults import InlineExecutor
from golden import compare

from cifarlib import paths, training
from cifarlib.config import DATASETS, ENGINE, SPLITS, run_id
from cifarlib.errors import DataError
from cifarlib.runs import executors, locks, sweep, worker
from cifarlib.runs import store as files
from cifarlib.runs.schema import (
    DataRecord,
    History,
    Layer,
    NetworkRecord,
    Provenance,
    Result,
    RunRecord,
    SplitHistory,
    Statistics,
    Timing,
    pack_classes,
    pack_predictions,
)
from cifarlib.runs.store import RecordStore, encode
from cifarlib.study import Condition, expand, load_scale, load_study

TINY = (
    "data={name: synthetic, train_size: 20, validation_size: 10, test_size: 10}",
    "epochs={30: 1, 40: 1, 200: 3}",
    "precision=fp32",
)
"""Overrides of the smoke scale under which a run takes a second."""

SET_TINY = [word for override in TINY for word in ("--set", override)]

OF_STAGE2 = [
    "stage1-long",
    "stage2-dropout",
    "stage2-improved",
    "dropout-question",
    "lowered-rate",
    "seeds-of-13/1,rate 0.1",
]
"""What the chapter on stage 2 trains."""

DEADLINE = 120  # s, for what takes a moment on an idle machine

TIERS = ("unit", "integration", "long")
STARTED = {"fork_server", "without_torch", "report"}  # fixtures that start processes

PNG = (  # one black pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGNgYGAAAAAEAAH2FzhVAAAAAElFTkSuQmCC"
)

FEATURES = {"residual": 512, "resnet18": 512, "densenet121": 1024}


def pytest_configure():
    """One thread each: small batches gain nothing from more, and tests run side by side."""
    os.environ["OMP_NUM_THREADS"] = "1"  # of what tests start
    torch.set_num_threads(1)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Each test is in one tier: that of its mark, or by what it starts. The slow come first."""
    for item in items:
        marked = [tier for tier in TIERS if item.get_closest_marker(tier)]
        if len(marked) > 1:
            raise pytest.UsageError(f"{item.nodeid} is in more than one tier: {marked}")
        if not marked:
            item.add_marker("integration" if STARTED & {*item.fixturenames} else "unit")
    items.sort(key=lambda item: item.get_closest_marker("unit") is not None)


def tiny_conditions(*names: str, overrides: tuple[str, ...] = ()) -> list[Condition]:
    """Conditions of the study by name, all of them without names, at the tiny scale."""
    study = load_study()
    conditions = expand(study, load_scale("smoke", [*TINY, *overrides], study))
    return [c for c in conditions if not names or c.name in names]


def tiny_store(folder: Path) -> RecordStore:
    """A build folder in which stand-in set and network are described: that takes a while."""
    store = RecordStore(folder)
    store.write(make_data_record("synthetic"))
    store.write(make_network_record())
    return store


def make_record(condition: Condition, *, trained: int | None = None, **changed) -> RunRecord:
    """A plausible record of a condition: its numbers come from its run id.

    ``trained`` is the number of epochs, as configured unless it is given; ``changed`` replaces
    fields of timing and provenance.
    """
    config = condition.config
    random = np.random.default_rng(int(condition.run_id, 16))
    epochs = trained or config.epochs
    best = int(random.integers(1, epochs + 1))
    history, confusion = {}, {}
    for name in SPLITS:
        images = getattr(config.data, f"{name}_size")
        labels = np.arange(images) % 10
        guesses = random.integers(0, 10, images)
        classes = np.where(random.random(images) < 0.7, labels, guesses)
        matrix = np.zeros((10, 10), dtype=int)
        np.add.at(matrix, (labels, classes), 1)
        confusion[name] = tuple(map(tuple, matrix.tolist()))
        right = int(matrix.trace())
        top1 = np.minimum(right, random.integers(images // 10, images, epochs + 1))
        top1[best] = right
        every = {"train": config.evaluation.train_every, "test": config.evaluation.test_every}
        due = [e == best or bool(every.get(name, 1)) for e in range(epochs + 1)]
        history[name] = SplitHistory(
            images=images,
            loss=_where(due, [float(f"{x:.7g}") for x in random.uniform(0.1, 3, epochs + 1)]),
            top1=_where(due, top1.tolist()),
            top2=_where(due, np.minimum(images, top1 + images // 10).tolist()),
            top3=_where(due, np.minimum(images, top1 + images // 5).tolist()),
        )
    weights = random.normal(size=(10, FEATURES[config.model.name]))
    timing = {"train_s": 12.5, "evaluation_s": 2.5, "images_per_s": 100.0, "cpu_s": None}
    return RunRecord(
        format=1,
        run_id=condition.run_id,
        engine=ENGINE,
        data_fingerprint=DATASETS[config.data.name].fingerprint,
        config=config,
        result=Result(
            history=History(
                learning_rate=(None, *[config.learning_rate] * epochs),
                training_loss=(None, *[float(f"{x:.7g}") for x in random.uniform(0, 3, epochs)]),
                **history,
            ),
            chosen={"validation": best, "test": best, "last": epochs},
            predictions=pack_predictions(
                best, confusion, classes.tolist(), random.random(images).tolist(), weights
            ),
        ),
        timing=Timing(**{key: changed.pop(key, value) for key, value in timing.items()}),
        provenance=make_provenance(**changed),
    )


def write_records(store: RecordStore, conditions: Iterable[Condition], **changed) -> None:
    """Write a made-up record of each condition."""
    for condition in conditions:
        store.write(make_record(condition, **changed))


def with_result(record: RunRecord, **changed) -> RunRecord:
    """A record with other fields in its result, or in the history there."""
    parts = {name: changed.pop(name) for name in History.model_fields.keys() & changed.keys()}
    result = {"history": record.result.history.model_copy(update=parts)} | changed
    return record.model_copy(update={"result": record.result.model_copy(update=result)})


def _where(due: list[bool], values: list) -> tuple:
    return tuple(value if now else None for now, value in zip(due, values, strict=True))


def forge(record, change) -> bytes:
    """A record after a change to its JSON by someone who puts the digest right, too."""
    content = json.loads(encode(record))
    del content["digest"]
    change(content)
    content["digest"] = files._digest(content)
    return json.dumps(content).encode()


def rewrite(store, record, change):
    """Put a forged record of a run in place."""
    path = store.run_path(record.run_id)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(forge(record, change))


def diverge(content) -> None:
    """Change a record's JSON to that of a run that diverged, for ``rewrite``."""
    content["result"]["history"]["training_loss"][-1] = None
    content["result"]["diverged"] = True


def make_provenance(**changed) -> Provenance:
    """Where a made-up record says it comes from."""
    known = {
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "versions": {"python": "3.11.2", "torch": "2.11.0"},
        "device": "a processor",
        "device_class": "cpu",
        "threads": 1,
        "finished": "2025-01-02T03:04:05+00:00",
    }
    return Provenance(**known | changed)


def make_data_record(dataset: str) -> DataRecord:
    """A made-up description of a data set."""
    info = DATASETS[dataset]
    numbers = Statistics(mean=(0.5, 0.4, 0.3), std=(0.25, 0.24, 0.23))
    return DataRecord(
        format=1,
        dataset=dataset,
        data_fingerprint=info.fingerprint,
        class_counts={
            "train": (info.train_images * 9 // 100,) * 10,
            "validation": (info.train_images // 100,) * 10,
            "test": (info.test_images // 10,) * 10,
        },
        statistics=numbers,
        resized={"nearest": numbers, "bilinear": numbers},
        test_labels=pack_classes([i % 10 for i in range(info.test_images)]),  # as make_record's
        pixel_sums=pack_pixel_sums(numbers.mean, info.train_images),
        first_loss={"fan_out": 8.2, "fan_in": 2.4},
        examples=(PNG,) * 10,
        transforms={"original": PNG, "flip": PNG},
        provenance=make_provenance(),
    )


def pack_pixel_sums(means: tuple[float, ...], images: int) -> str:
    """Sums of pixels of uniform colour over a number of images."""
    sums = np.rint(np.array(means) * 255 * images).astype("<u4")
    return base64.b64encode(np.repeat(sums, 32 * 32).tobytes()).decode()


def make_network_record() -> NetworkRecord:
    """A made-up description of a network: a stem, one residual stage, a head."""
    layers: list[Layer] = []

    def add(name: str, kind: str, output: tuple, parameters: int = 0, *inputs: str, **window):
        inputs = inputs or (layers[-1].name if layers else "input",)
        flops = 7 * parameters if window else 0
        place = {"name": name, "kind": kind, "inputs": inputs, "output": output}
        layers.append(Layer(**place, parameters=parameters, flops=flops, **window))

    def block(name: str, output: tuple, parameters: int, *inputs: str, stride: int, kernel: int):
        window = {"kernel": kernel, "stride": stride, "padding": kernel // 2}
        add(f"{name}.conv", "Conv2d", output, parameters, *inputs, **window)
        add(f"{name}.norm", "BatchNorm2d", output, 2 * output[0])
        if kernel > 1:
            add(f"{name}.relu", "ReLU", output)

    block("stem", (4, 8, 8), 112, stride=1, kernel=3)
    block("stage.block1", (6, 8, 8), 222, stride=1, kernel=3)
    block("stage.block2", (6, 4, 4), 330, stride=2, kernel=3)
    block("stage.shortcut", (6, 4, 4), 30, "stem.relu", stride=2, kernel=1)
    add("stage.add", "add", (6, 4, 4), 0, "stage.block2.relu", "stage.shortcut.norm")
    add("stage.relu", "ReLU", (6, 4, 4))
    add("pool", "AdaptiveAvgPool2d", (6, 1, 1))
    add("flatten", "flatten", (6,))
    add("fc", "Linear", (10,), 70)
    return NetworkRecord(
        format=1,
        engine=ENGINE,
        model="residual",
        image=(3, 8, 8),
        layers=tuple(layers),
        provenance=make_provenance(),
    )


# ---------------------------------------------------------------------------------------------
# Made-up runs
# ---------------------------------------------------------------------------------------------

# Seeds, and what happens to such a run.
GOOD, RAISES, DIES, DIES_ONCE, STARVES_ONCE, LACKS_DATA, HANGS, SEES_ANOTHER_DIE = range(8)
HEARD = "heard"  # a file that is there once the sweep was told of a run's end
MEETS_ANOTHER = 8  # and every seed up to 39; the study's own, 42 and on, are good


def serve_made_up(connections, folder, settings):
    """A worker that makes its records up and notes in a file what it was asked to train."""

    def train(config, store, *_, **__):
        log = store.folder / "trained.log"
        name = run_id(config)
        with log.open("a") as file:
            file.write(f"{os.getpid()} {name}\n")
        if config.seed == RAISES:
            raise ZeroDivisionError("a fault of one run\nin two lines")
        first = log.read_text().count(name) == 1
        if config.seed == DIES or (config.seed == DIES_ONCE and first):
            os.kill(os.getpid(), signal.SIGKILL)
        if config.seed == STARVES_ONCE and first:
            raise MemoryError("no room for the images")
        if config.seed == LACKS_DATA:
            raise DataError("the data are gone; fetch them")
        if config.seed == HANGS:
            threading.Event().wait()
        if config.seed == SEES_ANOTHER_DIE:
            other = int(wait_for(lambda: others(log), "company").pop())
            wait_for((store.folder / HEARD).exists, "news of the other's end of work")
            os.kill(other, signal.SIGKILL)
            wait_for(lambda: not psutil.pid_exists(other), "notice of a death")
        if MEETS_ANOTHER <= config.seed < 40:
            wait_for(lambda: others(log), "company")
        record = make_record(Condition("", None, {}, {}, config, name, ""))
        store.write(record)
        return record

    worker.train = train
    training.resolve_device = lambda name: torch.device("cpu")
    worker.serve(connections, folder, settings)


def others(log: Path) -> set[str]:
    """The other processes that were asked to train something."""
    return {line.split()[0] for line in log.read_text().splitlines()} - {str(os.getpid())}


@pytest.fixture(scope="session")
def fork_server():
    """Starts processes in a moment: forks of one that has imported what a worker needs.

    On macOS it starts them anew: a fork of what torch has loaded there may crash.
    """
    if sys.platform == "darwin":
        return multiprocessing
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["conftest", "cifarlib.training"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        multiprocessing.forkserver.ensure_running()
    return SimpleNamespace(get_context=lambda method: context)


@pytest.fixture
def forked(monkeypatch, fork_server):
    """Sweeps start their workers from the fork server, which knows no changed environment."""
    monkeypatch.setattr(executors, "multiprocessing", fork_server)


@pytest.fixture
def made_up(monkeypatch, forked):
    """... and their runs are made up, see ``serve_made_up``."""
    monkeypatch.setattr(executors, "serve", serve_made_up)


@pytest.fixture
def inline(monkeypatch):
    """Sweeps train in this process."""
    monkeypatch.setattr(sweep, "LocalExecutor", InlineExecutor)


@pytest.fixture
def at_once():
    """Fail a test that waits for what never comes, such as the writer of a pipe."""

    def give_up(number, frame):
        raise TimeoutError("waited for 20 s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def wait_for(happened, what: str):
    """Wait until a condition holds; what it gave."""
    end = time.monotonic() + DEADLINE
    while not (found := happened()):
        assert time.monotonic() < end, f"{what} did not happen within {DEADLINE} s"
        time.sleep(0.005)
    return found


# ---------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------

BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


@pytest.fixture(scope="session")
def without_torch(tmp_path_factory):
    """Run a command in a process, and kernels and workers of it, that find no torch."""
    folder = tmp_path_factory.mktemp("blocker")
    (folder / "sitecustomize.py").write_text(BLOCKER, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), str(paths.ROOT)])}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "cifarlib", *arguments]
        return subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)

    return run


@pytest.fixture(scope="session")
def report(without_torch, tmp_path_factory, worker_id) -> Path:
    """The build folder of the only whole report that is rendered: of the frozen records.

    They are real runs at scale smoke, of a study that has begun. The command finds no torch. One
    of the test processes renders it, the others wait.
    """
    shared = tmp_path_factory.getbasetemp()
    if worker_id != "master":
        shared = shared.parent
    folder = shared / "report"
    with locks.lock(shared / "report.lock", patient=True):
        if not (folder / "report.html").exists():
            shutil.rmtree(folder, ignore_errors=True)
            compare.unpack(folder)
            done = without_torch("report", "--scale", "smoke", "--out", str(folder))
            assert done.returncode == 0, done.stderr
    return folder


def make_verdicts(*verdicts, kind="claim", **values):
    """Claims or doubts with some verdicts, as ``read_verdicts`` gives them."""
    import pandas as pd  # here, for a machine that trains has neither pandas nor the report's rest

    from cifarlib.analysis.judges import JUDGED
    from cifarlib.paper.statements import read_statements
    from cifarlib.report.verdicts import COLUMNS

    ids = list(read_statements(f"{kind}s"))
    rows = [
        {"kind": kind, "id": name, "text": "Rate <b>decides</b>", "where": "§V", "verdict": verdict}
        | {"paper": "86.9 %", "ours": "31.5 %", "provisional": verdict in JUDGED, "p": None}
        | values
        for name, verdict in zip(ids, verdicts, strict=False)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def render_page(told, *html, name="06_claims.ipynb"):
    """The parsed page of a report whose only chapter shows some HTML."""
    from bs4 import BeautifulSoup
    from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

    from cifarlib.report import notebooks, page

    outputs = [new_output("display_data", data={"text/html": text}) for text in html]
    cells = [new_code_cell("show()", outputs=[output]) for output in outputs]
    notebook = new_notebook(cells=[new_markdown_cell("# A title"), *cells])
    return BeautifulSoup(page.make_page(notebooks.join([(name, notebook)]), told), "html.parser")


def assemble(executed, output, told=None):
    """Write the page of executed notebooks, without the rest of a report.

    ``told`` is what ``front.describe`` says; of a study without records unless given.
    """
    from cifarlib.report import assembly, front, page
    from cifarlib.runs.results import open_results

    told = told or front.describe(open_results("smoke", build=output.parent / "none"), "")
    output.write_bytes(page.make_page(assembly.merge(executed), told))
    return output
