"""The command line: a skin over library calls.

Exit codes: 0 all well, 1 some run failed or something differs, 2 something that the user can mend,
130 Ctrl-C, 141 the reader of the output went before a command that makes something had ended.
"""

import argparse
import contextlib
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cifarlib import STARTED, __version__, extras, paths
from cifarlib.checking import cut, expand_folder, parse_value
from cifarlib.config import DATASETS, ENGINE, RunConfig, flatten
from cifarlib.errors import CifarlibError, ConfigError, DataError, UnavailableError
from cifarlib.runs.results import Results, open_results
from cifarlib.runs.schema import RunRecord
from cifarlib.study import STUDIES, Condition, kept_studies

Options = argparse.Namespace

EXAMPLES = """\
examples:
  cifarlib data --download                      fetch CIFAR-10 and check it
  cifarlib sweep --scale lite                   make every missing record of a scale
  cifarlib sweep --stage stage1-daa1            ... of one stage only
  cifarlib sweep --run stage1-base/26           ... of one condition only, or of several
  cifarlib sweep --scale lite --budget 9m       ... as far as nine minutes go
  cifarlib sweep --executor ray                 ... on the nodes of a Ray cluster
  cifarlib merge other/lite --scale lite        take records that were made elsewhere
  cifarlib run stage1-daa1/13 --scale lite      one condition
  cifarlib status --scale lite                  what is done, and the estimated remaining time
  cifarlib report --scale lite                  notebooks, report.html and report.pdf
  cifarlib verify --scale lite --sample 3       train three runs again, compare to the bit
  cifarlib generalise --scale lite              what kept weights make of CIFAR-10.1
  cifarlib diff build/lite other/lite           what differs between two builds
  cifarlib export --scale lite                  records, report and program in one zip
  cifarlib sweep --set data.name=cifar10 --set data.train_size=2000
  cifarlib sweep --study beyond --stage recipe  what the paper did not try
  cifarlib sweep --from stage1-daa1/13 --grid dropout=0,0.3  a grid of your own
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, call one function, print; the exit code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who called us, as `>&-` does
            nowhere = os.fdopen(os.open(os.devnull, os.O_WRONLY), "w")
            os.set_inheritable(nowhere.fileno(), True)  # lest a worker's file gets its number
            setattr(sys, name, nowhere)
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show ends no command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        code = options.call(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # the reader of our output is gone, such as `head`
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return 0 if options.call in (_data, _merge, _diff, _status, _check_study, _why) else 141
    except KeyboardInterrupt:
        _tell("cifarlib: stopped; the same command goes on from here")
        return 130
    except CifarlibError as error:
        said: object = error
    except ModuleNotFoundError as error:
        if not (said := extras.explain(error)):
            raise
    except OSError as error:
        said = f"{error.filename or 'the system'}: {error.strerror or error}"
    _tell(f"cifarlib: {said}")
    return 2


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


# ---------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------


def _data(options: Options) -> int:
    from cifarlib import data

    if options.root:
        if not DATASETS[options.name].real:
            raise ConfigError("--root is for CIFAR-10; the stand-in set is made in data/")
        options.root = expand_folder(options.root, "--root ")
        os.environ["CIFAR10_ROOT"] = str(options.root)
    if options.download:
        data.download(options.name, root=options.root)
    folder = data.find(options.name)
    if options.root and not folder.is_relative_to(options.root):
        raise DataError(f"CIFAR-10 was not found in {options.root}; --download fetches it")
    train, test = data.load(options.name)
    mean, std = data.channel_statistics(train.images)
    print(f"{DATASETS[options.name].title} in {folder}: every MD5 is right")
    print(f"{len(train.labels)} training and {len(test.labels)} test images of 32×32 pixels")
    for name, values in (("mean", mean), ("std", std)):
        print(f"{name:5}" + "".join(f"  {c} {v:.8f}" for c, v in zip("RGB", values, strict=True)))
    return 0


def _run(options: Options) -> int:
    from cifarlib.runs.progress import cores

    results = _open(options)
    chosen = _find(results, options.condition)
    options.threads = options.threads or cores()
    code = _sweep_conditions(options, results, chosen)
    records, _ = results.store.read_runs(c.run_id for c in chosen)
    if not records:
        code = code or 2  # what it waits for has been said
    for record in records.values():
        print(_describe(record))
        print(results.store.run_path(record.run_id))
    return code


def _sweep(options: Options) -> int:
    from cifarlib.runs.progress import parse_budget

    deadline = None
    if options.budget is not None:
        deadline = STARTED + parse_budget(options.budget, "--budget")
    results = _open_grid(options)
    for name in options.stage:
        if name not in results.study.stages:
            known = ", ".join(results.study.stages)
            raise ConfigError(f"there is no stage {name!r}; the study has {known}")
    chosen = [condition for text in options.run for condition in _find(results, text)]
    chosen += [c for c in results.conditions if c.stage in options.stage]
    if not (options.run or options.stage):
        chosen = results.conditions
    code = _sweep_conditions(options, results, chosen, deadline)
    if options.study not in STUDIES:
        _tell(f"to see them: cifarlib report {results.options} --study {options.study}")
    return code


def _open_grid(options: Options) -> Results:
    """The study to be swept; one of one's own is kept in the build folder under its name."""
    from cifarlib.runs import grids

    results = _open(options)
    if not options.from_:
        if options.grid or options.seeds or options.name:
            raise ConfigError("--grid, --seeds and --name vary a condition; name it with --from")
        options.study = grids.keep(options.study, results)
        return results
    if options.run or options.stage:
        raise ConfigError("--from makes a grid and trains all of it; leave out --run and --stage")
    seeds = parse_value(f"[{options.seeds}]", "--seeds")
    varied = grids.parse_grid(options.grid)
    options.study = grids.make_grid(results, options.from_, varied, seeds, options.name)
    path = grids.place(results.store.folder, options.study)
    _tell(f"the grid is the study {options.study}, kept in {path}")
    return _open(options)


def _sweep_conditions(
    options: Options,
    results: Results,
    conditions: list[Condition],
    deadline: float | None = None,
) -> int:
    from cifarlib.runs.sweep import sweep

    executor = None
    if options.executor == "ray":
        from cifarlib.runs.ray_executor import RayExecutor

        executor = partial(RayExecutor, address=options.address)
    elif options.address:
        raise ConfigError("--address is of a Ray cluster; add --executor ray")
    outcome = sweep(
        conditions,
        results.store,
        device=options.device,
        workers=options.workers,
        threads=options.threads,
        checkpoint_every=options.checkpoint_every,
        deadline=deadline,
        executor=executor,
        keep_weights=options.keep_weights,
    )
    if options.keep_weights:
        _tell_weights(results, conditions)
    if left := outcome.say_left(options.budget, "the same command goes on from here"):
        _tell(left)
    if outcome.unavailable:
        _tell(f"{len(outcome.unavailable)} runs stay pending (see above)")
    if outcome.retried:
        lost = len(outcome.retried)
        _tell(f"{lost} runs lost their worker and were tried once more (see above)")
    for name, reason in outcome.failed.items():
        _tell(f"cifarlib: {name}: {reason}")
    if outcome.failed:
        logs = results.store.state / "*.error.txt"
        _tell(f"cifarlib: {len(outcome.failed)} runs failed; their errors: {logs}")
    return 1 if outcome.failed else 0


def _tell_weights(results: Results, conditions: list[Condition]) -> None:
    """How many recorded runs have no kept weights, and how they get them."""
    store = results.store
    ids = {c.run_id for c in conditions}
    lacking = [i for i in ids if store.run_path(i).exists() and not store.weights_path(i).exists()]
    if lacking:
        _tell(
            f"{len(lacking)} runs were recorded without their weights; cifarlib verify "
            "--keep-weights --run NAME trains one again and keeps them if it comes out the same"
        )


def _verify(options: Options) -> int:
    from cifarlib.runs import verify

    results = _open_and_tell(options)
    chosen = [condition for text in options.run for condition in _find(results, text)]
    if not chosen or options.sample:
        chosen += verify.sample(results, options.sample or 3, options.seed)
    checked = verify.verify(
        results,
        chosen,
        device=options.device,
        workers=options.workers,
        keep_weights=options.keep_weights,
    )
    print("\n".join(verify.tell(checked)))
    if options.keep_weights:
        kept = sum(one.verdict == "identical" for one in checked)
        print(f"weights kept of {kept} runs; only identical ones are the recorded runs' own")
    return 0 if all(one.verdict in ("identical", "within noise") for one in checked) else 1


def _generalise(options: Options) -> int:
    from cifarlib.runs import cifar10_1

    results = _open_and_tell(options)
    folder = cifar10_1.find_folder(options.folder)
    cifar10_1.read_images(folder)  # before torch is waited for
    from cifarlib.runs.evaluate import generalise

    for line in generalise(results, folder, device=options.device):
        print(line)
    return 0


def _bench(options: Options) -> int:
    from cifarlib.bench import measurements
    from cifarlib.bench import throughput as bench
    from cifarlib.training import resolve_device

    device = resolve_device(options.device).type
    if device == "cuda":
        from cifarlib.bench import cuda as bench_cuda

        if options.part:
            raise ConfigError("--part is for --device cpu; on a GPU, --seconds limits the time")
        for line in bench_cuda.run(options.seconds or 600, options.out):
            _tell(line)
    else:
        if options.seconds:
            raise ConfigError("--seconds is for --device cuda; on a processor, choose a --part")
        for part in options.part or bench.PARTS:
            found = bench.measure(part, options.images, options.repeats)
            measurements.write_bench({part: found}, device, options.out)
            _tell(f"{part}: measured")
    print((options.out / f"{device}.md").read_text(encoding="utf-8"))
    return 0


# ---------------------------------------------------------------------------------------------
# Records and reports
# ---------------------------------------------------------------------------------------------


def _merge(options: Options) -> int:
    from cifarlib.runs import grids
    from cifarlib.runs.merge import merge

    theirs = (kept_studies(folder).get(options.study) for folder in options.folders)
    options.study = str(next(filter(None, theirs), options.study))
    results = _open(options)
    merged = merge(results, options.folders, prefer=options.prefer)
    print("\n".join(merged.lines()))
    grids.keep(options.study, results)
    if merged.damaged:
        _tell(
            f"cifarlib: damaged and not taken: {len(merged.damaged)} of the files (see above); "
            "make them again where they come from, and merge once more"
        )
        return 2
    return 1 if merged.conflicts else 0


def _report(options: Options) -> int:
    from cifarlib.report.notebooks import plain_matplotlib

    parameters = {}
    for text in options.parameter:
        name, equals, value = text.partition("=")
        if not equals or not name:
            raise ConfigError(f"--parameter {text}: write NAME=VALUE, such as threshold=60.0")
        parameters[name] = parse_value(value, f"--parameter {cut(text)}")
    if options.budget is not None and not options.train:
        raise ConfigError("--budget is for training; add --train")
    with plain_matplotlib():  # before matplotlib is imported
        from cifarlib.report.assembly import render

        page = render(
            options.scale,
            options.set,
            options.out,
            parameters,
            options.only,
            _tell,
            train=options.train,
            budget=options.budget or "",
            study=options.study,
            appendix=options.appendix,
        )
        print(page)
    if options.only or options.study:
        _tell("only a part; the whole report is left as it was")
    return 0


def _diff(options: Options) -> int:
    from cifarlib.report import difference

    first, second = (difference.read(p, _tell) for p in (options.first, options.second))
    changes = difference.compare(first, second)
    lines = difference.tell(changes, 0 if options.all else difference.LISTED)
    if summary := difference.sum_up(first, second):
        lines.append("In short")
        lines += [
            f"  {chapter or 'in all'}: {s}"
            for chapter, said in sorted(summary.items())
            for s in said
        ]
    print("\n".join(lines))
    for place, shown in ((options.first, first), (options.second, second)):
        if not shown.page:
            _tell(f"{place} has no report.html: only records are compared")
    return 1 if changes else 0


def _export(options: Options) -> int:
    from cifarlib.report import archive

    print(archive.export(options.scale, options.set, options.out, options.to))
    return 0


def _status(options: Options) -> int:
    from cifarlib.runs.progress import duration, status

    results = _open_and_tell(options)
    _require_folder(options, results)
    table = {
        row.stage: [row.conditions, row.done, row.running, row.pending, round(row.seconds_left, 1)]
        for row in status(results.conditions, results.store)
    }
    names = ("conditions", "done", "running", "pending")
    if options.json:
        keys = (*names, "seconds_left")
        rows = {stage: dict(zip(keys, row, strict=True)) for stage, row in table.items()}
        print(json.dumps(rows, indent=2))
        return 0
    table["all"] = [sum(column) for column in zip(*table.values(), strict=True)] or [0] * 5
    width = max(18, *(len(stage) + 1 for stage in table))
    form = f"{{:<{width}}}{{:>12}}{{:>8}}{{:>9}}{{:>9}}{{:>12}}".format
    print(form("stage", *names, "time left"))
    for stage, (*counts, seconds) in table.items():
        print(form(stage, *counts, duration(seconds)))
    if options.study in STUDIES and (kept := kept_studies(results.store.folder)):
        _tell(f"studies of your own (--study NAME): {', '.join(kept)}")
    return 0


def _check_study(options: Options) -> int:
    from cifarlib.runs.grids import place
    from cifarlib.runs.progress import duration, learn_prices

    results = _open(options)
    if str(options.study).endswith((".yaml", ".yml")):
        place(results.store.folder, Path(options.study).stem, "rename the file")
    prices = learn_prices(results.every_record.values(), results.store)
    for stage in results.study.stages:
        print(f"{stage}: {results.title(stage)}")
        for condition in {c.run_id: c for c in results.conditions if c.stage == stage}.values():
            done = "recorded" if condition.run_id in results.every_record else ""
            left = prices.left({condition.run_id: condition.config}, results.store)
            cost = done or f"about {duration(left)}"
            print(f"  {condition.name}, seed {condition.config.seed}: {cost}")
    runs = {c.run_id: c.config for c in results.conditions}
    missing = {name: c for name, c in runs.items() if name not in results.every_record}
    left = prices.left(missing, results.store)
    print(f"{len(runs)} runs, {len(missing)} of them to train: about {duration(left)}")
    return 0


def _why(options: Options) -> int:
    results = _open(options)
    _require_folder(options, results)
    for condition in _find(results, options.run):
        print(_explain(condition, results))
    return 0


def _explain(condition: Condition, results: Results) -> str:
    """Whether a condition has its record, else in what the nearest record differs."""
    title = f"{condition.seeded_name} is run {condition.run_id}"
    if results.store.read_run(condition.run_id):
        return f"{title}: recorded in {results.store.run_path(condition.run_id)}"
    if condition.config.model.initialization == "imagenet":
        from cifarlib.models import require_imagenet_weights

        try:
            require_imagenet_weights(condition.config.model.name)
        except UnavailableError as error:
            return f"{title}: not recorded, for it cannot be trained here: {error}"
    fingerprint = DATASETS[condition.config.data.name].fingerprint
    here = _list_settings(condition.config, fingerprint, ENGINE)
    records, _ = results.store.read_runs(results.store.run_ids())
    differences = []
    for record in records.values():
        there = _list_settings(record.config, record.data_fingerprint, record.engine)
        keys = [k for k in here | there if here.get(k) != there.get(k)]
        lines = [f"  {key}: {there.get(key)} there, {here.get(key)} here" for key in keys]
        differences.append((len(lines), record.run_id, lines))
    if not differences:
        return f"{title}: not recorded, and {results.store.runs} holds no record to compare it with"
    _, nearest, lines = min(differences)
    return "\n".join([f"{title}: not recorded; the nearest record, {nearest}, differs in", *lines])


def _list_settings(config: RunConfig, fingerprint: str, engine: int) -> dict[str, object]:
    """Everything that decides a run's id, by dotted key."""
    settings = flatten(config.model_dump(mode="json"))
    return settings | {"data fingerprint": fingerprint, "engine": engine}


# ---------------------------------------------------------------------------------------------
# Helpers
# ---------------------------------------------------------------------------------------------


def _open(options: Options) -> Results:
    return open_results(options.scale, options.set, options.out, options.study)


def _open_and_tell(options: Options) -> Results:
    """The same, and say which records are damaged."""
    results = _open(options)
    for fault in results.faults:
        _tell(f"cifarlib: {fault}; it counts as missing")
    return results


def _require_folder(options: Options, results: Results) -> None:
    """``ConfigError`` for a folder that was named and is not there, as by a slip of the keys."""
    if options.out and not results.store.folder.is_dir():
        raise ConfigError(
            f"there is no build folder {results.store.folder}; name one that is there"
        )


def _find(results: Results, text: str) -> list[Condition]:
    """Conditions by name (every seed) or by the beginning of a run id.

    The paper's are always there, even if the study has been edited and leaves them out; so are
    recorded runs that no study has.
    """
    by_name, by_id = _match(results.known, text)
    if not (by_name or by_id):
        if name := _find_study(results, text):
            raise ConfigError(f"{text!r} is of the study {name}; add --study {name}")
        from cifarlib.explore.collection import list_own

        by_name, by_id = _match(list_own(results), text)
    if not (by_name or by_id):
        raise ConfigError(
            f"the study has no condition {text!r} at this scale; name one like stage1-daa1/13 or "
            "stage2-dropout/9,dropout=0.5, or a run id"
        )
    runs = {c.run_id: f"{c.run_id} ({c.name}, seed {c.config.seed})" for c in reversed(by_id)}
    if not by_name and len(runs) > 1:
        raise ConfigError(
            f"{text!r} begins the ids of {len(runs)} runs: {', '.join(runs.values())}; "
            "write more of one"
        )
    return by_name or by_id[:1]


def _match(conditions: list[Condition], text: str) -> tuple[list[Condition], list[Condition]]:
    """The conditions of a name, and those whose run's id begins with it."""
    by_id = [c for c in conditions if len(text) >= 4 and c.run_id.startswith(text)]
    return [c for c in conditions if c.name == text], by_id


def _find_study(results: Results, text: str) -> str:
    """The study that has a condition of this name, or a run of this id; empty where none has."""
    from cifarlib.runs import grids

    for name in [*STUDIES, *kept_studies(results.store.folder)]:
        with contextlib.suppress(ConfigError):
            other = grids.open_study(results, name)
            if any(_match(other.conditions, text)):
                return name
    return ""


def _describe(record: RunRecord) -> str:
    epochs = record.result.history.epochs
    if record.result.diverged:
        return f"run {record.run_id}: diverged in epoch {epochs}"
    test, validation = record.accuracy("test"), record.accuracy("validation")
    return (
        f"run {record.run_id}: after epoch {record.reported_epoch} of {epochs}, "
        f"test {test:.2f} %, validation {validation:.2f} %"
    )


# ---------------------------------------------------------------------------------------------
# Options
# ---------------------------------------------------------------------------------------------


MOST_AT_ONCE = 1024  # of threads or processes: torch hangs or dies of more than a system starts


def _whole(least: int, most: int = sys.maxsize) -> Callable[[str], int]:
    """What reads a whole number between two."""

    def read(text: str) -> int:
        if not least <= (number := int(text)) <= most:
            raise ValueError
        return number

    until = "" if most == sys.maxsize else f" up to {most}"
    read.__name__ = f"{'positive ' if least else ''}whole number{until}"  # argparse names it so
    return read


def _share(*names: str, **settings: Any) -> argparse.ArgumentParser:
    """An option that several commands have."""
    parent = argparse.ArgumentParser(add_help=False)
    parent.add_argument(*names, **settings)
    return parent


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cifarlib",
        description="What decides the accuracy of a small residual network on CIFAR-10?",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cifarlib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, call, help: str, example: str, *shared, **defaults) -> Callable[..., Any]:
        """A command; gives what adds options to it."""
        command = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            parents=shared,
        )
        command.set_defaults(call=call, **defaults)
        return command.add_argument

    several: Any = {"action": "append", "default": []}
    scale = (
        _share("--scale", default="smoke", help="smoke, lite, full, or a YAML file"),
        _share("--set", **several, metavar="KEY=VALUE", help="override the scale"),
        _share("--out", default="", metavar="DIR", help="build folder (build/SCALE)"),
    )
    study = _share(
        "--study",
        default="study",
        metavar="NAME",
        help="study: the paper's conditions; beyond: those past them; one of your own: its name in "
        "the build folder, or a YAML file",
    )
    device = _share("--device", default="auto", choices=("auto", "cpu", "cuda"))
    threads = _share("--threads", type=_whole(1, MOST_AT_ONCE), help="threads of each worker")
    workers = _share("--workers", type=_whole(1, MOST_AT_ONCE), help="processes (one a core)")
    checkpoints = _share(
        "--checkpoint-every",
        type=_whole(0),
        metavar="N",
        help="epochs, 0: never (every epoch, unless the last is not 5 s old)",
    )
    weights = _share(
        "--keep-weights",
        action="store_true",
        help="keep each run's weights for cifarlib generalise, about 20 MB a run",
    )
    machine = (device, threads, checkpoints, weights)

    option = add("data", _data, "find, check or download a data set", "cifarlib data --download")
    option("--download", action="store_true", help="fetch it if it is missing")
    option("--name", default="cifar10", choices=tuple(DATASETS))
    option("--root", metavar="DIR", help="folder to look in (data/)")

    example = "cifarlib run stage1-daa1/13 --scale lite"
    local = {"workers": 1, "budget": None, "executor": "local", "address": None}
    option = add("run", _run, "train one condition", example, study, *scale, *machine, **local)
    option("condition", help="its name, or its run id")

    example = "cifarlib sweep --scale lite"
    option = add(
        "sweep", _sweep, "make the missing records", example, study, *scale, *machine, workers
    )
    option(
        "--run",
        **several,
        metavar="NAME",
        help="only this condition, by name or run id (may be repeated; runs are trained in the "
        "order named, before those of any --stage)",
    )
    option("--stage", **several, help="only this stage (may be repeated)")
    option(
        "--from",
        dest="from_",
        metavar="CONDITION",
        help="make a grid of your own, kept as a study: this condition with other settings",
    )
    option(
        "--grid",
        **several,
        metavar="KEY=VALUES",
        help="a setting to vary, dropout=0,0.3 (may be repeated: every combination is trained)",
    )
    option("--seeds", default="", metavar="SEEDS", help="of a grid, 42,43,44")
    option("--name", default="", help="of a grid (made of its settings)")
    option(
        "--budget",
        metavar="TIME",
        help="end within 540s, 9m or 2h: the most valuable runs first, long ones in slices",
    )
    option(
        "--executor", default="local", choices=("local", "ray"), help="this machine, or a cluster"
    )
    option("--address", metavar="HOST:PORT", help="of the Ray cluster (this machine's own)")

    help = "take records that other build folders hold"
    option = add("merge", _merge, help, "cifarlib merge other/smoke", study, *scale)
    option("folders", nargs="+", type=Path, metavar="DIR", help="a build folder")
    option(
        "--prefer",
        choices=("ours", "theirs"),
        help="which record to keep where two of one run differ (neither is changed otherwise)",
    )

    option = add("report", _report, "render the report", "cifarlib report --scale lite", *scale)
    option(
        "--only",
        **several,
        metavar="CHAPTER",
        help="only this chapter, such as stage1, as a page of its own (may be repeated)",
    )
    option(
        "--study",
        default="",
        metavar="NAME",
        help="only this study of your own, by its name in the build folder or its YAML file",
    )
    option("--appendix", default="", metavar="NAME", help="end the report with such a study")
    option("-p", "--parameter", **several, metavar="NAME=VALUE", help="a notebook's parameter")
    option("--train", action="store_true", help="first train the runs that its chapters lack")
    option("--budget", metavar="TIME", help="stop that training after 540s, 9m or 2h")

    help, example = "train stored runs again and compare", "cifarlib verify --sample 3"
    option = add("verify", _verify, help, example, study, *scale, device, workers, weights)
    option("--sample", type=_whole(1), metavar="K", help="number of runs to sample (default: 3)")
    option("--seed", type=_whole(0), default=0, help="random seed for choosing runs (default: 0)")
    option("--run", **several, help="this one, by name or id (may be repeated)")

    help = "evaluate kept weights on CIFAR-10.1"
    example = "cifarlib generalise --scale lite --folder data/cifar-10.1"
    option = add("generalise", _generalise, help, example, study, *scale, device)
    option(
        "--folder",
        type=Path,
        metavar="DIR",
        help="that holds its two files, version 6 (CIFAR10_1_ROOT, else data/cifar-10.1)",
    )

    help = "say what differs between two builds"
    option = add("diff", _diff, help, "cifarlib diff build/lite other/lite")
    option("first", type=Path, help="a build folder, or a report.html")
    option("second", type=Path, help="another")
    option("--all", action="store_true", help="every change, not the first dozen")

    help = "pack records, report and program into one RO-Crate zip"
    option = add("export", _export, help, "cifarlib export --scale lite --to study.zip", *scale)
    option("--to", type=Path, metavar="FILE.zip", help="(cifarlib-SCALE.zip there)")

    help, example = "measure how fast it is", "cifarlib bench --part throughput"
    option = add("bench", _bench, help, example, device)
    option("--part", action="append", help="only this part (may be repeated)")
    option("--images", type=_whole(1), default=6300, help="in each measurement")
    option("--repeats", type=_whole(1), default=3, help="the median counts")
    option(
        "--seconds", type=_whole(1), metavar="N", help="time to measure a GPU for (default: 600)"
    )
    option("--out", type=Path, default=paths.BENCH, metavar="DIR", help="build/bench")

    help = "say what is done and left"
    option = add("status", _status, help, "cifarlib status --json", study, *scale)
    option("--json", action="store_true", help="for scripts")

    help = "check a study of your own"
    option = add("study", _check_study, help, "cifarlib study check my.yaml", *scale)
    option("action", choices=["check"], help="list its conditions and their cost")
    option("study", metavar="FILE", help="a YAML file, or a study's name")

    help = "say why a run is not recorded"
    option = add("why", _why, help, "cifarlib why stage1-daa1/13", study, *scale)
    option("run", help="a condition's name, or a run id")
    return parser
