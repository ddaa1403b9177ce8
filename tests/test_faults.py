"""Faults of processes, disks and clocks at random moments: nothing is lost, nothing is torn.

Kills are repeated ``CIFARLIB_FAULTS`` times, the rest up to ``FEW`` times; ``make faults`` is the
long form. What must hold after each: the same command finishes, every record is valid, and its
``result`` has the bits of a run that was never disturbed.
"""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import DEADLINE, SET_TINY, make_record, tiny_conditions, tiny_store, wait_for
from faults import (
    EPOCHS,
    LONG,
    REPETITIONS,
    InlineExecutor,
    epochs_lost,
    kill_group,
    open_fault,
    read_epochs,
    start,
    worker_processes,
)
from test_damage import damage

from cifarlib import cli
from cifarlib.runs import checkpoints, executors, locks, sweep, worker
from cifarlib.runs import store as files
from cifarlib.runs.store import RecordStore

pytestmark = pytest.mark.long

STAGE = "stage1-long"  # two conditions of three epochs each, under the tiny scale
COMMAND = ["--stage", STAGE, *SET_TINY, "--device", "cpu", "--checkpoint-every", "1"]
FEW = min(REPETITIONS, 6) if LONG else 1  # of the faults that are the same at most moments
ODD = "ein Ordner – für Läufe"  # every folder here has spaces and letters beyond ASCII


@pytest.fixture(scope="module")
def conditions():
    return [c for c in tiny_conditions() if c.stage == STAGE]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, conditions):
    """What the runs' results are, by run id."""
    store = tiny_store(tmp_path_factory.mktemp("undisturbed"))
    outcome = sweep.sweep(conditions, store, executor=InlineExecutor)
    assert outcome == executors.Outcome(done=len(conditions))
    return {c.run_id: store.read_run(c.run_id).result for c in conditions}


def run_command(folder: Path, *more: str) -> int:
    return cli.main(["sweep", "--out", str(folder), *COMMAND, *more])


def check(folder: Path, undisturbed: dict) -> None:
    """Every record is there, valid and the same; no torn or left file anywhere. Then none is."""
    store = RecordStore(folder)
    recorded, faults = store.read_runs(store.run_ids())
    assert faults == []
    assert {name: record.result for name, record in recorded.items()} == undisturbed
    assert [path.name for path in store.state.iterdir()] == []
    assert [path.name for path in store.runs.iterdir() if path.name.startswith(".")] == []
    assert not (folder / "damaged").exists()
    for name in undisturbed:
        store.run_path(name).unlink()


# ---------------------------------------------------------------------------------------------
# Killed
# ---------------------------------------------------------------------------------------------


def long_folder(tmp_path: Path) -> str:
    """A folder for temporary files whose name is longer than that of a socket may be."""
    folder = tmp_path / ("t" * 100) / ("t" * 100)
    folder.mkdir(parents=True, exist_ok=True)
    return str(folder)


def let_pass(fault, process, folder: Path) -> None:
    """Wait for a random moment: somewhere in the start, or after a random number of epochs."""
    if fault.random.random() < 0.2:
        end = time.monotonic() + fault.random.uniform(0, 4)
        wait_for(lambda: process.poll() is not None or time.monotonic() > end, "a moment")
        return
    goal = sum(map(len, read_epochs(folder).values())) + fault.random.randint(1, 3)
    wait_for(
        lambda: process.poll() is not None or sum(map(len, read_epochs(folder).values())) >= goal,
        "an epoch",
    )
    time.sleep(fault.random.uniform(0, 0.4))


def finish_campaign(fault, folder: Path, undisturbed: dict, kills: int) -> None:
    """Check a folder whose runs all ended, and count what kills cost."""
    with fault.attempt(kills):
        check(folder, undisturbed)
        for name, begun in read_epochs(folder).items():
            lost = epochs_lost(begun)
            fault.epochs_lost += lost
            assert max(lost, default=0) <= 1
            assert set(begun) == set(range(1, undisturbed[name].history.epochs + 1))
    (folder / EPOCHS).unlink()


@contextlib.contextmanager
def sweeping(tmp_path: Path, *more: str):
    """A counting sweep by two workers, which never outlives the block."""
    process = start(tmp_path / ODD, *COMMAND, *more, TMPDIR=long_folder(tmp_path))
    try:
        yield process
    finally:
        kill_group(process)
        process.stderr.close()


def test_sweeps_that_are_killed_go_on(tmp_path, undisturbed):
    """SIGKILL of the whole process group: as if the machine had lost its power."""
    folder = tiny_store(tmp_path / ODD).folder
    with open_fault("SIGKILL of a sweep and its workers") as fault:
        left, pending = REPETITIONS, 0
        while left or pending:
            with sweeping(tmp_path, "--workers", "2") as process:
                if left:
                    let_pass(fault, process, folder)
                else:
                    process.wait(DEADLINE)
                if process.poll() is None:
                    kill_group(process)
                    left, pending = left - 1, pending + 1
                else:
                    assert process.returncode == 0, process.stderr.read()
                    finish_campaign(fault, folder, undisturbed, pending)
                    pending = 0
                assert "Traceback" not in process.stderr.read()


def test_workers_that_are_killed_are_replaced(tmp_path, undisturbed):
    """Their runs are tried once more, then set aside; the same command goes on with those."""
    folder = tiny_store(tmp_path / ODD).folder
    with open_fault("SIGKILL of one worker") as fault:
        left, pending = REPETITIONS, 0
        while left or pending:
            with sweeping(tmp_path, "--workers", "2") as process:
                while left and process.poll() is None:
                    let_pass(fault, process, folder)
                    if workers := worker_processes(process):
                        fault.random.choice(workers).kill()
                        left, pending = left - 1, pending + 1
                code = process.wait(DEADLINE)
                said = process.stderr.read().splitlines()
                failed = {line.split(": failed, ")[0] for line in said if ": failed, " in line}
                assert code == bool(failed), said
                assert not any("Traceback" in line for line in said)
                if failed:
                    assert said[-1].startswith(f"cifarlib: {len(failed)} runs failed; their errors")
                    assert all("killed (signal 9)" in line for line in said[-1 - len(failed) : -1])
                else:
                    finish_campaign(fault, folder, undisturbed, pending)
                    pending = 0


def test_two_sweeps_share_a_folder(tmp_path, undisturbed):
    """Each run is trained by one of them, each epoch once; a report may read meanwhile."""
    folder = tiny_store(tmp_path / ODD).folder
    note = "with a report of the same folder" if LONG else ""
    with (
        open_fault("Two sweeps of one folder at once", note) as fault,
        fault.attempt(),
        sweeping(tmp_path, "--workers", "1") as one,
        sweeping(tmp_path, "--workers", "1") as other,
    ):
        if LONG:
            command = [sys.executable, "-m", "cifarlib", "report", "--only", "stage1"]
            command += ["--out", str(folder), *SET_TINY]
            subprocess.run(command, check=True, capture_output=True, timeout=3 * DEADLINE)
        assert [one.wait(DEADLINE), other.wait(DEADLINE)] == [0, 0]
        assert all(begun == [1, 2, 3] for begun in read_epochs(folder).values())
        shutil.rmtree(folder / "notebooks", ignore_errors=True)
        check(folder, undisturbed)


def test_the_lock_of_a_dead_process_binds_nobody(tmp_path, conditions):
    """Not even where its number now belongs to another living process: the kernel holds locks."""
    path = tmp_path / ODD / "state" / "run.lock"
    program = (
        "import os, pathlib, sys\nfrom cifarlib.runs.locks import lock\n"
        "with lock(pathlib.Path(sys.argv[1])) as held:\n"
        "    pathlib.Path(sys.argv[1]).write_text(sys.argv[2])\n"
        "    print(held, flush=True)\n    sys.stdin.read()\n"
    )
    with open_fault("Lock left by a killed process") as fault:
        for _ in range(REPETITIONS):
            with (
                fault.attempt(),
                subprocess.Popen(
                    [sys.executable, "-c", program, str(path), str(os.getppid())],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                ) as process,
            ):
                assert process.stdout.readline() == "True\n"
                with locks.lock(path) as held:
                    assert not held
                process.kill()
                process.wait()
                assert path.read_text() == str(os.getppid())  # a process that lives
                with locks.lock(path) as held:
                    assert held


# ---------------------------------------------------------------------------------------------
# No room
# ---------------------------------------------------------------------------------------------


@pytest.fixture
def disk(tmp_path):
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256m", "cifarlib-test", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command here")
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, free: int) -> Path:
    """A file that leaves some bytes free, to a page."""
    filler = disk / "filler"
    space = os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, space.f_bavail * space.f_bsize - free))
    return filler


@contextlib.contextmanager
def limited(size: int):
    """No file grows beyond some bytes, as where the disk is full."""
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    write = files.write_atomically

    def write_limited(path: Path, content: bytes) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, unlimited[1]))
        try:
            write(path, content)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)

    with pytest.MonkeyPatch.context() as patch:
        for module in (files, checkpoints):
            patch.setattr(module, "write_atomically", write_limited)
        yield


def assert_one_sentence(capfd, code: int, reason: str) -> None:
    """Exit code 2, and one line that says what to do."""
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("cifarlib:")]
    assert (code, len(said)) == (2, 1)
    assert reason in said[0]
    assert "with --out" in said[0]


@pytest.mark.usefixtures("inline")
def test_a_file_that_finds_no_room_gets_one_sentence(tmp_path, undisturbed, conditions, capfd):
    """A record or a checkpoint stops somewhere in the middle; then there is room again."""
    folder = tiny_store(tmp_path / ODD).folder
    record = len(files.encode(make_record(conditions[0])))
    checkpoint = 4 * 3 * 4_800_000  # at least: weights, momenta and the best weights
    with open_fault("Limit on the size of a file") as fault:
        for number in range(FEW):
            every, size = ("0", record) if number % 2 else ("1", checkpoint)
            with fault.attempt():
                with limited(fault.random.randrange(size // 2)):
                    code = run_command(folder, "--checkpoint-every", every)
                assert_one_sentence(capfd, code, "File too large")
                assert run_command(folder) == 0
                check(folder, undisturbed)


@pytest.mark.usefixtures("inline")
def test_a_read_only_folder_gets_one_sentence(disk, undisturbed, capfd):
    """From the start, or from a moment on while a run is being trained."""
    folder = tiny_store(disk / ODD).folder

    def protect() -> None:  # by a mount over it: below, a lock is open for writing
        subprocess.run(["mount", "--bind", str(disk), str(disk)], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", str(disk)], check=True)

    with open_fault("Folder read-only") as fault:
        for number in range(FEW):
            with fault.attempt():
                with pytest.MonkeyPatch.context() as patch:
                    if number % 2 == 0:
                        spoil_checkpoint(patch, fault.random.randint(1, 4), protect)
                    else:
                        protect()
                    code = run_command(folder)
                assert_one_sentence(capfd, code, "Read-only file system")
                subprocess.run(["umount", "--lazy", str(disk)], check=True)
                assert run_command(folder) == 0
                check(folder, undisturbed)


def spoil_checkpoint(patch: pytest.MonkeyPatch, number: int, spoil) -> None:
    """Have something happen right before the n-th checkpoint is written, once."""
    write, count = checkpoints.write_checkpoint, iter(range(1, 1000))

    def spoilt(*arguments) -> None:
        if next(count) == number:
            spoil()
        write(*arguments)

    patch.setattr(worker, "write_checkpoint", spoilt)


# ---------------------------------------------------------------------------------------------
# Damaged
# ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("inline")
def test_a_damaged_checkpoint_is_set_aside(tmp_path, undisturbed, capfd):
    """Its run is trained from the start, and ends with the same bits."""
    folder = tiny_store(tmp_path / ODD).folder
    foreign = tmp_path / "0123456789abcdef.pt"
    checkpoints.write_checkpoint(foreign, {"history": {"learning_rate": [None, 0.1]}})
    with open_fault("Checkpoint damaged", "or a folder, or of another run") as fault:
        for _ in range(max(2, FEW)):
            with fault.attempt():
                with pytest.MonkeyPatch.context() as patch:
                    spoil_checkpoint(patch, fault.random.choice([2, 4]), interrupt)
                    assert run_command(folder) == 130
                (path,) = folder.glob("state/*.pt")
                content = damage(path.read_bytes(), foreign.read_bytes(), fault.random)
                path.unlink()
                path.mkdir() if fault.random.random() < 0.2 else path.write_bytes(content)
                capfd.readouterr()
                assert run_command(folder) == 0
                said = capfd.readouterr().err
                assert "the checkpoint is damaged and was set aside as" in said
                assert "Traceback" not in said
                assert (folder / "damaged" / f"{path.name}.reason.txt").is_file()
                shutil.rmtree(folder / "damaged")
                check(folder, undisturbed)


# ---------------------------------------------------------------------------------------------
# Clocks and places
# ---------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("inline")
def test_a_clock_that_goes_back_decides_nothing(tmp_path, undisturbed):
    """Every look at it shows an earlier day, and all files are from the future."""
    folder = tiny_store(tmp_path / ODD).folder
    with open_fault("Clock set back, files from the future") as fault:
        for _ in range(FEW):
            with fault.attempt(), pytest.MonkeyPatch.context() as patch:
                now = [time.time()]

                def earlier(now=now) -> float:
                    now[0] -= fault.random.uniform(0, 86400)
                    return now[0]

                patch.setattr(time, "time", earlier)
                spoil_checkpoint(patch, fault.random.randint(1, 4), interrupt)
                assert run_command(folder) == 130
                ahead = time.monotonic() + 4e9
                for path in folder.rglob("*"):
                    os.utime(path, (ahead, ahead))
                assert run_command(folder) == 0
                check(folder, undisturbed)


def interrupt() -> None:
    raise KeyboardInterrupt


@pytest.mark.usefixtures("inline")
def test_a_folder_that_is_moved_loses_nothing(tmp_path, undisturbed):
    """In the middle of a sweep: what was made before goes on at the new place."""
    with open_fault("Build folder moved in the middle") as fault:
        for number in range(FEW):
            old = tiny_store(tmp_path / f"{ODD} {number}").folder
            new = tmp_path / f"umbenannt {number}"
            with fault.attempt():
                with pytest.MonkeyPatch.context() as patch:
                    moment = fault.random.randint(1, 4)
                    spoil_checkpoint(patch, moment, lambda old=old, new=new: old.rename(new))
                    assert run_command(old) in (0, 2)
                assert cli.main(["merge", str(old), "--out", str(new), *SET_TINY]) == 0
                assert run_command(new) == 0
                for left in new.glob("state/*.lock"):  # held by nobody any more
                    left.unlink()
                check(new, undisturbed)


# ---------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------


def report_command(folder: Path) -> list[str]:
    return ["report", "--only", "07_cost", "--out", str(folder), *SET_TINY]


def report_files(folder: Path) -> dict[str, bytes]:
    """The page and the PDF of a part of the report."""
    names = ("report-cost.html", "report-cost.pdf")
    return {name: (folder / name).read_bytes() for name in names}


def test_reports_that_are_killed_leave_whole_ones(tmp_path, conditions):
    """A report of before or the new one, never a part; the same command then makes the new one."""
    store = tiny_store(tmp_path / ODD)
    command = [sys.executable, "-m", "cifarlib", *report_command(store.folder)]
    began = time.monotonic()
    subprocess.run(command, check=True, capture_output=True)
    took = time.monotonic() - began
    store.write(make_record(conditions[0]))
    old, found = report_files(store.folder), []
    with open_fault("SIGKILL of a report") as fault:
        for _ in range(REPETITIONS):
            for name, content in old.items():
                (store.folder / name).write_bytes(content)
            process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
            time.sleep(fault.random.uniform(0.3, took))
            kill_group(process)
            found.append(report_files(store.folder))
        with fault.attempt(REPETITIONS):
            subprocess.run(command, check=True, capture_output=True)
            new = report_files(store.folder)
            assert all(old[name] != new[name] for name in old)
            assert all(files[name] in (old[name], new[name]) for files in found for name in files)
            assert list(store.folder.rglob(".*")) == []


def test_damaged_notebooks_and_pages_are_made_anew(tmp_path, conditions):
    """With the bytes that they had."""
    store = tiny_store(tmp_path / ODD)
    store.write(make_record(conditions[0]))
    assert cli.main(report_command(store.folder)) == 0
    paths = [store.folder / name for name in report_files(store.folder)]
    paths.append(store.folder / "notebooks-cost" / "07_cost.ipynb")
    whole = [path.read_bytes() for path in paths]
    with open_fault(
        "Notebook or page damaged", "one notebook, the page and the PDF at once"
    ) as fault:
        for _ in range(FEW):
            with fault.attempt(len(paths)):
                for path, content in zip(paths, whole, strict=True):
                    path.write_bytes(damage(content, b"", fault.random))
                assert cli.main(report_command(store.folder)) == 0
                assert [path.read_bytes() for path in paths] == whole


@pytest.mark.usefixtures("inline")
def test_a_full_disk_gets_one_sentence_and_leaves_the_report_of_before(disk, conditions, capfd):
    store = tiny_store(disk / ODD)
    assert cli.main(report_command(store.folder)) == 0
    old = report_files(store.folder)
    store.write(make_record(conditions[0]))
    with open_fault("Disk full") as fault:
        for number in range(max(2, FEW)):
            command = ["sweep", "--out", str(store.folder), *COMMAND]
            with fault.attempt():
                filler = fill(disk, fault.random.randrange(20_000))
                capfd.readouterr()
                code = cli.main(command if number % 2 else report_command(store.folder))
                assert_one_sentence(capfd, code, "No space left on device")
                assert report_files(store.folder) == old
                filler.unlink()
        assert cli.main(report_command(store.folder)) == 0
        assert report_files(store.folder) != old
