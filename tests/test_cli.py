"""The command line: what a user is told, in one line, and the exit codes that scripts rely on."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
from conftest import GOOD, SET_TINY, TINY, make_record, tiny_conditions, tiny_store, write_records

from cifarlib import __main__, __version__, cli, data, paths
from cifarlib.config import DATASETS, ENGINE, run_id
from cifarlib.errors import ConfigError
from cifarlib.runs.grids import make_grid
from cifarlib.runs.results import open_results
from cifarlib.runs.store import RecordStore

COMMANDS = (
    *("data", "run", "sweep", "report", "status"),
    *("why", "verify", "generalise", "diff", "export", "study"),
)


@pytest.fixture
def command(capfd):
    """Run a command in this process: exit code, and the lines on both channels."""

    def run(*arguments: str) -> tuple[int, list[str], list[str]]:
        capfd.readouterr()
        try:
            code = cli.main(list(arguments))
        except SystemExit as error:  # argparse
            code = error.code
        captured = capfd.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out.splitlines(), captured.err.splitlines()

    return run


@pytest.fixture
def refused(command):
    """Run a command that the user must mend: the one line that says so."""

    def run(*arguments: str) -> str:
        code, out, err = command(*arguments)
        assert (code, out, len(err)) == (2, [], 1), err
        assert err[0].startswith("cifarlib: ")
        return err[0]

    return run


# ---------------------------------------------------------------------------------------------
# Another study
# ---------------------------------------------------------------------------------------------


def test_a_study_past_the_paper_is_a_choice(command, tmp_path):
    epochs = ("--set", "epochs={10: 1, 30: 1, 200: 1}")
    options = ("--study", "beyond", *epochs, "--out", str(tmp_path))
    code, out, _ = command("status", "--json", *options)
    assert code == 0
    stages = json.loads("\n".join(out))
    assert stages["noise-floor"]["pending"] == stages["noise-floor"]["conditions"] == 20
    code, out, _ = command("why", "protocol-ablation/1,shuffled", *options)
    assert code == 0
    assert len(out) == 5  # a line for each seed
    code, _, err = command("status", "--study", "beyon")
    assert code == 2
    assert "there is no study 'beyon' in build/smoke; did you mean 'beyond'?" in err[-1]


# ---------------------------------------------------------------------------------------------
# Help
# ---------------------------------------------------------------------------------------------


def test_help_names_every_command_with_an_example_that_can_be_parsed(command):
    _, out, _ = command("--help")
    examples = {line.strip().partition("  ")[0] for line in cli.EXAMPLES.splitlines()[1:]}
    assert out[out.index("examples:") + 1].strip().partition("  ")[0] in examples
    for name in COMMANDS:
        assert any(line.split()[:1] == [name] for line in out)
        code, said, err = command(name, "--help")
        assert (code, err) == (0, [])
        example = said[said.index("example:") + 1].strip()
        assert example.startswith(f"cifarlib {name}")
        examples.add(example)
    for example in examples:
        assert cli._parser().parse_args(example.split()[1:]).call


def test_windows_is_refused_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "win32")
    assert __main__.main() == 2
    assert capsys.readouterr().err.startswith("cifarlib: this runs on Linux and macOS; ")


def test_version(command):
    assert command("--version") == (0, [f"cifarlib {__version__}"], [])


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["bake"],
        ["run"],
        ["sweep", "--workers", "0"],
        ["sweep", "--workers", "1000000000"],
        ["sweep", "--threads", "1000000000"],
        ["run", "stage1-base/1", "--threads", "9" * 5000],
        ["sweep", "--device", "tpu"],
    ],
)
def test_a_command_that_is_none_shows_the_usage(command, arguments):
    code, out, err = command(*arguments)
    assert (code, out) == (2, [])
    assert err[0].startswith("usage: cifarlib")
    assert "error: " in err[-1]


# ---------------------------------------------------------------------------------------------
# What the user can mend
# ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["status", "--scale", "smoek"], "did you mean 'smoke'?"),
        (["status", "--set", "data.trian_size=20"], "did you mean 'train_size'?"),
        (["status", "--set", "data.train_size"], "write key=value"),
        (["sweep", "--stage", "stage1-bse"], "the study has stage1-base, "),
        (["sweep", "--run", "stage1-base/26", "--run", "stage1/26"], "no condition 'stage1/26'"),
        (["run", "stage1-daa1/33"], "no condition 'stage1-daa1/33'"),
        (["why", "stage1-daa1/33"], "no condition 'stage1-daa1/33'"),
        (["report", "--parameter", "treshold=60.0"], "did you mean 'threshold'?"),
        (["report", "--parameter", "threshold=high"], "give a float, such as 0.0"),
        (["report", "--parameter", "scale=lite"], "has an option of its own"),
        (["report", "--parameter", "threshold"], "write NAME=VALUE"),
        (["report", "--only", "stgae1"], "--only stgae1: there is no such chapter; did you mean"),
    ],
)
def test_a_mistyped_command_is_one_line(refused, tmp_path, arguments, told):
    assert told in refused(*arguments, "--out", str(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_good_data_are_described(command):
    code, out, err = command("data", "--name", "synthetic")
    assert (code, err) == (0, [])
    assert out[0] == f"a generated stand-in set in {data.find('synthetic')}: every MD5 is right"
    assert out[1] == "10000 training and 2000 test images of 32×32 pixels"
    assert [line.split()[0] for line in out[2:]] == ["mean", "std"]


@pytest.mark.usefixtures("forked")
def test_cuda_without_a_gpu_is_said(command, tmp_path):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    arguments = ("run", "stage1-daa1/13", "--device", "cuda", "--out", str(tmp_path), *SET_TINY)
    code, out, err = command(*arguments)
    assert (code, out) == (2, [])
    assert [line for line in err if line.startswith("cifarlib: ")] == err[-1:]
    assert "use --device cpu" in err[-1]
    assert list((tmp_path / "runs").iterdir()) == []


def test_a_place_that_cannot_be_written_is_one_line(refused, tmp_path):
    (tmp_path / "file").write_text("")
    told = refused("sweep", "--out", str(tmp_path / "file" / "build"))
    assert str(tmp_path / "file" / "build") in told
    assert "cannot be written" in told
    assert "--out" in told


def test_a_damaged_record_is_said_by_status_and_why(command, refused, tmp_path):
    store = tiny_store(tmp_path)
    (condition,) = tiny_conditions("stage1-daa1/13")
    path = store.write(make_record(condition))
    path.write_text("{")
    code, _, err = command("status", "--out", str(tmp_path), *SET_TINY)
    assert (code, len(err)) == (0, 1)
    assert err[0].startswith(f"cifarlib: {path} is truncated")
    assert err[0].endswith("it counts as missing")
    assert "truncated" in refused("why", "stage1-daa1/13", "--out", str(tmp_path), *SET_TINY)


def test_a_build_folder_that_was_named_and_is_not_there_is_no_empty_one(refused, tmp_path):
    nowhere = ("--out", str(tmp_path / "bild"))
    for arguments in (["status"], ["why", "stage1-daa1/13"]):
        assert f"there is no build folder {tmp_path / 'bild'}; " in refused(*arguments, *nowhere)


def test_a_folder_of_another_scale_is_not_reported_as_an_empty_one(refused, tmp_path):
    store = tiny_store(tmp_path)
    store.write(make_record(tiny_conditions("stage1-daa1/13")[0]))
    said = refused("report", "--scale", "lite", "--out", str(tmp_path))
    assert "holds 1 run, none of them of scale lite; name theirs with --scale and --set" in said


def test_a_grid_without_what_was_changed_for_it_does_not_replace_its_page(refused, tmp_path):
    results = open_results("smoke", TINY, tmp_path)
    tiny_store(tmp_path).write(make_record(tiny_conditions("stage1-daa1/13")[0]))
    name = make_grid(results, "stage1-daa1/13", {"dropout": [0.0]})
    said = refused("report", "--study", name, "--out", str(tmp_path))
    assert "holds 1 run, none of them of scale smoke; name theirs with --scale and --set" in said


@pytest.mark.integration
def test_a_terminal_that_knows_ascii_only_is_no_error():
    command = [sys.executable, "-m", "cifarlib", "data", "--name", "synthetic"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("LC_", "LANG"))}
    environment |= {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"test images of 32?32 pixels" in done.stdout


@pytest.mark.integration
def test_outside_a_checkout_it_is_said_what_to_do(tmp_path):
    """An installed package has no study beside it, and writes nothing there."""
    shutil.copytree(paths.PACKAGE, tmp_path / "site/cifarlib")
    (tmp_path / "elsewhere").mkdir()
    for arguments in (["status"], ["report"], ["sweep", "--study", "beyond"]):
        done = subprocess.run(
            [sys.executable, "-m", "cifarlib", *arguments],
            capture_output=True,
            text=True,
            cwd=tmp_path / "elsewhere",
            env=os.environ | {"PYTHONPATH": str(tmp_path / "site")},
        )
        assert done.returncode == 2
        (said,) = done.stderr.splitlines()
        assert f"{tmp_path}/elsewhere/params is missing" in said
        assert "clone it" in said
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["cifarlib"]
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.integration
@pytest.mark.parametrize(("name", "code"), [("status", 0), ("sweep", 141)])
def test_a_closed_pipe_is_an_error_of_what_trains_alone(name, code, tmp_path):
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "cifarlib", name, "--out", str(tmp_path), *SET_TINY]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    done = subprocess.run(command, stdout=write, stderr=write, env=environment)
    os.close(write)
    assert done.returncode == code


@pytest.mark.integration
def test_closed_streams_are_no_error(tmp_path):
    command = [sys.executable, "-m", "cifarlib", "status", "--out", str(tmp_path)]
    done = subprocess.run(["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command])
    assert done.returncode == 0


def test_the_beginning_of_several_run_ids_names_them():
    one, other = tiny_conditions("stage1-base/1", "stage1-base/2")
    known = [replace(one, run_id="abcd1"), replace(other, run_id="abcd2")]
    results = SimpleNamespace(known=known)
    assert cli._find(results, "abcd2") == known[1:]
    with pytest.raises(ConfigError, match=r"abcd2 \(.*/2, seed 42\), abcd1 \(.*; write more of"):
        cli._find(results, "abcd")


def test_a_root_of_data_is_expanded_and_of_cifar10_only(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CIFAR10_ROOT", "")
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    assert f"was not found at {tmp_path}/mine or " in refused("data", "--root=~/mine")
    monkeypatch.setattr(data, "find", lambda name: paths.DATA)  # where a copy is
    assert "CIFAR-10 was not found in " in refused("data", "--root=~/mine")
    assert "--root is for CIFAR-10" in refused("data", "--name", "synthetic", "--root=~/mine")


# ---------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------


def test_status_for_scripts(command, tmp_path):
    store = RecordStore(tmp_path)
    write_records(store, tiny_conditions("stage1-base/1", "stage1-long/9"))
    code, out, err = command("status", "--json", "--out", str(tmp_path), *SET_TINY)
    assert (code, err) == (0, [])
    stages = json.loads("\n".join(out))
    base = stages["stage1-base"]
    assert base.pop("seconds_left") > 0
    assert base == {"conditions": 36, "done": 1, "running": 0, "pending": 35}
    assert stages["stage1-long"]["done"] == 1
    assert sum(stage["conditions"] for stage in stages.values()) == 120


def test_status_of_a_fresh_clone_needs_no_data(command, tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "BUILD", tmp_path / "build")
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path / "nowhere"))
    for scale in ("smoke", "lite", "full"):
        code, out, err = command("status", "--scale", scale)
        assert (code, err) == (0, [])
        assert out[1].split()[:5] == ["stage1-base", "36", "0", "0", "36"]
        assert out[-1].split()[:5] == ["all", "120", "0", "0", "120"]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("inline")
def test_run_trains_one_condition_and_shows_its_record(command, tmp_path):
    store = tiny_store(tmp_path)
    (condition,) = tiny_conditions("stage1-daa1/13")
    arguments = ("run", condition.name, "--out", str(tmp_path), "--device", "cpu", *SET_TINY)
    code, out, err = command(*arguments)
    assert code == 0
    record = store.read_run(condition.run_id)
    assert store.run_ids() == [condition.run_id]
    assert out == [
        f"run {condition.run_id}: after epoch 1 of 1, test {record.accuracy('test'):.2f} %, "
        f"validation {record.accuracy('validation'):.2f} %",
        str(store.run_path(condition.run_id)),
    ]
    assert err[-1].startswith(f"[1/1] {condition.name}: test ")
    by_id = command("run", condition.run_id[:6], *arguments[2:])
    assert by_id == (0, out, ["nothing is missing"])


def test_sweep_of_a_stage_leaves_the_others(command, made_up, tmp_path):
    store = tiny_store(tmp_path)
    arguments = ("sweep", "--out", str(tmp_path), *SET_TINY, "--set", f"seeds=[{GOOD}]")
    code, out, err = command(*arguments, "--stage", "stage1-long", "--stage", "stage2-improved")
    assert (code, out) == (0, [])
    assert err[0].startswith("0 of 3 runs are recorded; 3 to go")
    assert len(store.run_ids()) == 3


NAMED = ("--run", "stage1-daa1/13", "--run", "stage1-base/26")


def names_in_order(lines):
    """Names of the runs that a sweep says it has made, in its order."""
    return [line.split("] ")[1].partition(":")[0] for line in lines if line.startswith("[")]


@pytest.mark.parametrize(
    ("more", "trained"),
    [
        ([], []),
        (
            ["--stage", "stage1-long", "--run", "stage1-long/13"],
            ["stage1-long/13", "stage1-long/9"],
        ),
    ],
    ids=["alone", "and a stage"],
)
def test_named_runs_are_trained_in_their_order(command, made_up, tmp_path, more, trained):
    arguments = ("sweep", "--out", str(tmp_path), *SET_TINY, "--set", f"seeds=[{GOOD}]")
    tiny_store(tmp_path)
    code, out, err = command(*arguments, *NAMED, *more, "--budget", "9h", "--workers", "1")
    assert (code, out) == (0, [])
    assert names_in_order(err) == ["stage1-daa1/13", "stage1-base/26", *trained]


def test_why_says_where_a_run_is_recorded(command, tmp_path):
    (condition,) = tiny_conditions("stage1-daa1/13")
    path = RecordStore(tmp_path).write(make_record(condition))
    expected = f"stage1-daa1/13 (seed 42) is run {condition.run_id}: recorded in {path}"
    for name in (condition.name, condition.run_id, condition.run_id[:8]):
        assert command("why", name, "--out", str(tmp_path), *SET_TINY) == (0, [expected], [])


def test_why_names_the_study_of_a_condition(refused, tmp_path):
    said = refused("why", "splits/1,data.split_seed=42", "--out", str(tmp_path), *SET_TINY)
    assert "is of the study beyond; add --study beyond" in said


def test_why_names_what_differs_from_the_nearest_record(command, tmp_path):
    store = RecordStore(tmp_path)
    near, far = tiny_conditions("stage1-daa1/13", "stage1-base/1")
    store.write(make_record(near))
    store.write(make_record(far))
    more = ["--set", "epochs.30=2", "--set", "seeds=[7]"]
    code, out, err = command("why", "stage1-daa1/13", "--out", str(tmp_path), *SET_TINY, *more)
    assert (code, err) == (0, [])
    assert out[0].startswith("stage1-daa1/13 (seed 7) is run ")
    nearest = {c.name: c for c in (near, far)}["stage1-daa1/13"].run_id
    assert out[0].endswith(f": not recorded; the nearest record, {nearest}, differs in")
    assert out[1:] == ["  epochs: 1 there, 2 here", "  seed: 42 there, 7 here"]


def test_why_names_the_weights_that_are_missing(command, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("CIFARLIB_WEIGHTS", str(tmp_path))
    RecordStore(tmp_path).write(make_record(*tiny_conditions("stage3/1")))
    code, out, err = command("why", "stage3/2", "--out", str(tmp_path), *SET_TINY)
    assert (code, len(out), err) == (0, 1, [])
    assert "cannot be trained here: resnet18: weights not available offline; download" in out[0]


def test_why_names_engine_and_data(command, tmp_path):
    store = RecordStore(tmp_path)
    (condition,) = tiny_conditions("stage1-daa1/13")
    old = replace(condition, run_id=run_id(condition.config, ENGINE - 1))
    store.write(make_record(old).model_copy(update={"engine": ENGINE - 1}))
    arguments = ("why", condition.name, "--out", str(tmp_path), *SET_TINY)
    assert command(*arguments)[1][1:] == [f"  engine: {ENGINE - 1} there, {ENGINE} here"]
    store.run_path(old.run_id).unlink()
    other = make_record(replace(condition, run_id=run_id(condition.config, data="1" * 12)))
    store.write(other.model_copy(update={"data_fingerprint": "1" * 12}))
    here = DATASETS["synthetic"].fingerprint
    told = command(*arguments)[1][1:]
    assert told == [f"  data fingerprint: {'1' * 12} there, {here} here"]


def test_why_without_any_record(command, tmp_path):
    code, out, _ = command("why", "stage1-daa1/13", "--out", str(tmp_path))
    assert code == 0
    assert out[0].endswith(f"{tmp_path / 'runs'} holds no record to compare it with")
