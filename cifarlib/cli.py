"""The command line: a skin over library calls.

Exit codes: 0 all well, 1 some run failed or something differs, 2 something that the user can mend,
130 Ctrl-C.
"""

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cifarlib import STARTED, __version__, extras, paths
from cifarlib.checking import cut, parse_value
from cifarlib.config import DATASETS, ENGINE, flatten
from cifarlib.errors import CifarlibError, ConfigError, UnavailableError
from cifarlib.runs.results import Results, open_results
from cifarlib.runs.schema import RunRecord
from cifarlib.study import STUDIES, Condition, kept_studies

if TYPE_CHECKING:
    from cifarlib.runs.executors import Executor

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
  cifarlib status --scale lite                  what is done, and what is left to pay
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
    for stream in (sys.stdout, sys.stderr):  # what a terminal cannot show ends no command
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace" if stream is sys.stdout else "backslashreplace")
    options = _parser().parse_args(arguments)
    try:
        code = options.call(options)
        sys.stdout.flush()
        return code
    except CifarlibError as error:
        print(f"cifarlib: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if not (missing := extras.explain(error)):
            raise
        print(f"cifarlib: {missing}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("cifarlib: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output is gone, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        print(f"cifarlib: {error.filename or 'the system'}: {error.strerror}", file=sys.stderr)
        return 2


# ---------------------------------------------------------------------------------------------
# Commands
# ---------------------------------------------------------------------------------------------


def _data(options: argparse.Namespace) -> int:
    from cifarlib import data

    if options.download:
        data.download(options.name, root=options.root)
    if options.root:
        os.environ["CIFAR10_ROOT"] = str(options.root)
    folder = data.find(options.name, reread=True)
    train, test = data.load(options.name)
    mean, std = data.channel_statistics(train.images)
    print(f"{DATASETS[options.name].title} in {folder}: every MD5 is right")
    print(f"{len(train.labels)} training and {len(test.labels)} test images of 32×32 pixels")
    for name, values in (("mean", mean), ("std", std)):
        print(f"{name:5}" + "".join(f"  {c} {v:.8f}" for c, v in zip("RGB", values, strict=True)))
    return 0


def _run(options: argparse.Namespace) -> int:
    from cifarlib.runs.progress import cores

    results = _open(options)
    chosen = _find(results, options.condition)
    code = _sweep_conditions(
        options, results, chosen, workers=1, threads=options.threads or cores()
    )
    records, _ = results.store.read_runs(c.run_id for c in chosen)
    for record in records.values():
        print(_describe(record))
        print(results.store.run_path(record.run_id))
    return code


def _sweep(options: argparse.Namespace) -> int:
    from cifarlib.runs.progress import parse_budget

    budget = parse_budget(options.budget, "--budget") if options.budget is not None else None
    results = _open_grid(options)
    code = _sweep_conditions(
        options,
        results,
        _choose_conditions(results, options.run, options.stage),
        options.workers,
        options.threads,
        budget,
        _choose_executor(options),
    )
    if options.study not in STUDIES:
        from cifarlib.report import name_records

        named = name_records(options.scale, options.set, options.out)
        print(f"to see them: cifarlib report {named} --study {options.study}", file=sys.stderr)
    return code


def _open_grid(options: argparse.Namespace) -> Results:
    """The study to be swept; one of one's own is kept in the build folder under its name."""
    from cifarlib.runs import grids

    if not options.from_:
        if options.grid or options.seeds or options.name:
            raise ConfigError("--grid, --seeds and --name vary a condition; name it with --from")
        results = _open(options)
        options.study = grids.keep(options.study, results.store.folder)
        return results
    if options.run or options.stage:
        raise ConfigError("--from makes a grid and trains all of it; leave out --run and --stage")
    seeds = parse_value(f"[{options.seeds}]", "--seeds")
    results, varied = _open(options), grids.parse_grid(options.grid)
    options.study = grids.make_grid(results, options.from_, varied, seeds, options.name)
    path = grids.place(results.store.folder, options.study)
    print(f"the grid is the study {options.study}, kept in {path}", file=sys.stderr)
    return _open(options)


def _check_study(options: argparse.Namespace) -> int:
    from cifarlib.runs.progress import Prices, duration

    results = open_results(options.scale, options.set, options.out, options.study)
    records = results.store.read_runs(results.store.run_ids())[0].values()
    prices = Prices(records)
    for stage in results.study.stages:
        members = {c.run_id: c for c in results.conditions if c.stage == stage}
        print(f"{stage}: {results.title(stage)}")
        for condition in members.values():
            done = "recorded" if condition.run_id in results.every_record else ""
            cost = done or f"about {duration(prices.seconds(condition.config))}"
            print(f"  {condition.name}, seed {condition.config.seed}: {cost}")
    runs = {c.run_id: c.config for c in results.conditions}
    missing = [config for name, config in runs.items() if name not in results.every_record]
    left = duration(sum(map(prices.seconds, missing)))
    print(f"{len(runs)} runs, {len(missing)} of them to train: about {left}")
    return 0


def _choose_conditions(
    results: Results, runs: Sequence[str], stages: Sequence[str]
) -> list[Condition]:
    """The named conditions in the order named, then those of the stages; without names, all."""
    for name in stages:
        if name not in results.study.stages:
            known = ", ".join(results.study.stages)
            raise ConfigError(f"there is no stage {name!r}; the study has {known}")
    if not runs and not stages:
        return results.conditions
    named = [condition for text in runs for condition in _find(results, text)]
    return named + [c for c in results.conditions if c.stage in stages]


def _choose_executor(options: argparse.Namespace) -> "Callable[..., Executor] | None":
    """What makes the executor that was asked for, None for the local one."""
    if options.executor == "local":
        if options.address:
            raise ConfigError("--address is of a Ray cluster; add --executor ray")
        return None
    from cifarlib.runs.ray_executor import RayExecutor

    return partial(RayExecutor, address=options.address)


def _sweep_conditions(
    options: argparse.Namespace,
    results: Results,
    conditions: list[Condition],
    workers: int | None,
    threads: int | None,
    budget: float | None = None,
    executor: "Callable[..., Executor] | None" = None,
) -> int:
    from cifarlib.runs.sweep import sweep

    outcome = sweep(
        conditions,
        results.store,
        device=options.device,
        workers=workers,
        threads=threads,
        checkpoint_every=options.checkpoint_every,
        deadline=None if budget is None else STARTED + budget,
        executor=executor,
        keep_weights=options.keep_weights,
    )
    if options.keep_weights:
        _tell_weights(results, conditions)
    if outcome.stopped or outcome.left:
        print(
            f"{outcome.say_left(options.budget)}; the same command goes on from here",
            file=sys.stderr,
        )
    if outcome.unavailable:
        print(f"{len(outcome.unavailable)} runs stay pending (see above)", file=sys.stderr)
    if outcome.retried:
        print(
            f"{len(outcome.retried)} runs lost their worker and were tried once more (see above)",
            file=sys.stderr,
        )
    if outcome.failed:
        for name, reason in outcome.failed.items():
            print(f"cifarlib: {name}: {reason}", file=sys.stderr)
        logs = results.store.state / "*.error.txt"
        print(f"cifarlib: {len(outcome.failed)} runs failed; their errors: {logs}", file=sys.stderr)
    return 1 if outcome.failed else 0


def _tell_weights(results: Results, conditions: list[Condition]) -> None:
    """How many recorded runs have no kept weights, and how they get them."""
    store = results.store
    lacking = {
        c.run_id
        for c in conditions
        if store.run_path(c.run_id).exists() and not store.weights_path(c.run_id).exists()
    }
    if lacking:
        print(
            f"{len(lacking)} runs were recorded without their weights; cifarlib verify "
            "--keep-weights --run NAME trains one again and keeps them if it comes out the same",
            file=sys.stderr,
        )


def _merge(options: argparse.Namespace) -> int:
    from cifarlib.runs.merge import merge

    merged = merge(_open(options), options.folders, prefer=options.prefer)
    for line in merged.lines():
        print(line)
    if merged.damaged:
        print(
            f"cifarlib: damaged and not taken: {len(merged.damaged)} of the files (see above); "
            "make them again where they come from, and merge once more",
            file=sys.stderr,
        )
        return 2
    return 1 if merged.conflicts else 0


def _report(options: argparse.Namespace) -> int:
    from cifarlib.report.notebooks import plain_matplotlib

    parameters = dict(_parse_parameter(text) for text in options.parameter)
    if options.budget is not None and not options.train:
        raise ConfigError("--budget is for training; add --train")
    with plain_matplotlib():  # before matplotlib is imported
        from cifarlib import report

        page = report.render(
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
        print("only a part; the whole report is left as it was", file=sys.stderr)
    return 0


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parse_parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise ConfigError(f"--parameter {text}: write NAME=VALUE, such as threshold=60.0")
    return name, parse_value(value, f"--parameter {cut(text)}")


def _verify(options: argparse.Namespace) -> int:
    from cifarlib.runs import verify

    results = _open(options)
    chosen = [condition for text in options.run for condition in _find(results, text)]
    if not chosen or options.sample:
        chosen += verify.sample(results, options.sample or SAMPLE, options.seed)
    checked = verify.verify(
        results,
        chosen,
        device=options.device,
        workers=options.workers,
        keep_weights=options.keep_weights,
    )
    for line in verify.tell(checked):
        print(line)
    if options.keep_weights:
        kept = sum(one.verdict == "identical" for one in checked)
        print(f"weights kept of {kept} runs; only identical ones are the recorded runs' own")
    return 0 if all(one.verdict in ("identical", "within noise") for one in checked) else 1


SAMPLE = 3  # runs that are verified unless it is said how many


def _generalise(options: argparse.Namespace) -> int:
    from cifarlib.runs import shift

    results = _open(options)
    for fault in results.faults:
        print(f"cifarlib: {fault}; it counts as missing", file=sys.stderr)
    folder = shift.find_folder(options.folder)
    shift.read_images(folder)  # before torch is waited for
    from cifarlib.runs.evaluate import generalise

    for line in generalise(results, folder, device=options.device):
        print(line)
    return 0


def _diff(options: argparse.Namespace) -> int:
    from cifarlib.report import difference

    first, second = map(difference.read, (options.first, options.second))
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
            print(f"{place} has no report.html: only records are compared", file=sys.stderr)
    return 1 if changes else 0


def _export(options: argparse.Namespace) -> int:
    from cifarlib.report import archive

    print(archive.export(options.scale, options.set, options.out, options.to))
    return 0


def _bench(options: argparse.Namespace) -> int:
    from cifarlib.bench import measurements
    from cifarlib.bench import throughput as bench

    device = bench.choose_device(options.device)
    if device == "cuda":
        from cifarlib.bench import cuda as bench_cuda

        if options.part:
            raise ConfigError("--part is for --device cpu; on a GPU, --seconds limits the time")
        for line in bench_cuda.run(options.seconds or 600, options.out):
            print(line, file=sys.stderr, flush=True)
    else:
        if options.seconds:
            raise ConfigError("--seconds is for --device cuda; on a processor, choose a --part")
        for part in options.part or bench.PARTS:
            found = bench.measure(part, options.images, options.repeats)
            measurements.write_bench({part: found}, device, options.out)
            print(f"{part}: measured", file=sys.stderr)
    print((options.out / f"{device}.md").read_text(encoding="utf-8"))
    return 0


def _status(options: argparse.Namespace) -> int:
    from cifarlib.runs.progress import duration, status

    results = _open(options)
    for fault in results.faults:
        print(f"cifarlib: {fault}; it counts as missing", file=sys.stderr)
    rows = status(results.conditions, results.store)
    if options.json:
        content = {
            row.stage: {
                "conditions": row.conditions,
                "done": row.done,
                "running": row.running,
                "pending": row.pending,
                "seconds_left": round(row.seconds_left, 1),
            }
            for row in rows
        }
        print(json.dumps(content, indent=2))
        return 0
    print(
        f"{'stage':<18}{'conditions':>12}{'done':>8}{'running':>9}{'pending':>9}{'time left':>12}"
    )
    for row in rows:
        counts = f"{row.conditions:>12}{row.done:>8}{row.running:>9}{row.pending:>9}"
        print(f"{row.stage:<18}{counts}{duration(row.seconds_left):>12}")
    total = sum(row.conditions for row in rows), sum(row.done for row in rows)
    running, pending = sum(row.running for row in rows), sum(row.pending for row in rows)
    left = duration(sum(row.seconds_left for row in rows))
    print(f"{'all':<18}{total[0]:>12}{total[1]:>8}{running:>9}{pending:>9}{left:>12}")
    if options.study in STUDIES and (kept := kept_studies(results.store.folder)):
        print(f"studies of your own (--study NAME): {', '.join(kept)}", file=sys.stderr)
    return 0


def _why(options: argparse.Namespace) -> int:
    results = _open(options)
    for condition in _find(results, options.run):
        print(_explain(condition, results))
    return 0


def _explain(condition: Condition, results: Results) -> str:
    """Whether a condition has its record, else in what the nearest record differs."""
    title = f"{condition.name} (seed {condition.config.seed}) is run {condition.run_id}"
    if results.store.read_run(condition.run_id):
        return f"{title}: recorded in {results.store.run_path(condition.run_id)}"
    if lacking := _lacking_weights(condition):
        return f"{title}: not recorded, for it cannot be trained here: {lacking}"
    wanted = flatten(condition.config.model_dump(mode="json"))
    wanted |= {
        "data fingerprint": DATASETS[condition.config.data.name].fingerprint,
        "engine": ENGINE,
    }
    records, _ = results.store.read_runs(results.store.run_ids())
    differences = []
    for record in records.values():
        there = flatten(record.config.model_dump(mode="json"))
        there |= {"data fingerprint": record.data_fingerprint, "engine": record.engine}
        keys = dict.fromkeys([*wanted, *there])
        differ = [k for k in keys if wanted.get(k) != there.get(k)]
        differences.append((len(differ), record.run_id, differ, there))
    if not differences:
        return f"{title}: not recorded, and {results.store.runs} holds no record to compare it with"
    _, nearest, differ, there = min(differences, key=lambda item: item[:2])
    lines = [f"{title}: not recorded; the nearest record, {nearest}, differs in"]
    lines += [f"  {key}: {there.get(key)} there, {wanted.get(key)} here" for key in differ]
    return "\n".join(lines)


def _lacking_weights(condition: Condition) -> str:
    """What a condition that starts from pre-trained weights waits for; nothing where it can run."""
    if condition.config.model.initialization != "imagenet":
        return ""
    from cifarlib.models import require_imagenet_weights

    try:
        require_imagenet_weights(condition.config.model.name)
    except UnavailableError as error:
        return str(error)
    return ""


# ---------------------------------------------------------------------------------------------
# Helpers
# ---------------------------------------------------------------------------------------------


def _open(options: argparse.Namespace) -> Results:
    return open_results(options.scale, options.set, options.out, options.study)


def _find(results: Results, text: str) -> list[Condition]:
    """Conditions by name (every seed) or by the beginning of a run id.

    The paper's are always there, even if the study has been edited and leaves them out.
    """
    by_name = [c for c in results.known if c.name == text]
    by_id = [c for c in results.known if len(text) >= 4 and c.run_id.startswith(text)]
    if not (by_name or by_id):
        raise ConfigError(
            f"the study has no condition {text!r} at this scale; name one like stage1-daa1/13 or "
            "stage2-dropout/9,dropout=0.5, or a run id"
        )
    return by_name or by_id[:1]


def _describe(record: RunRecord) -> str:
    epochs = record.result.history.epochs
    if record.result.diverged:
        return f"run {record.run_id}: diverged in epoch {epochs}"
    test, validation = record.accuracy("test"), record.accuracy("validation")
    return (
        f"run {record.run_id}: after epoch {record.reported_epoch} of {epochs}, "
        f"test {test:.2f} %, validation {validation:.2f} %"
    )


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def _count(text: str) -> int:
    number = int(text)
    if number < 0:
        raise ValueError
    return number


MOST_AT_ONCE = 1024  # of threads or processes: torch hangs or dies of more than a system starts


def _some(text: str) -> int:
    number = _positive(text)
    if number > MOST_AT_ONCE:
        raise ValueError
    return number


_count.__name__ = "whole number"
_positive.__name__ = "positive whole number"  # argparse names the type in its message
_some.__name__ = f"positive whole number up to {MOST_AT_ONCE}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cifarlib",
        description="What decides the accuracy of a small residual network on CIFAR-10?",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cifarlib {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, call, help: str, example: str) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name,
            help=help,
            description=help[0].upper() + help[1:] + ".",
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(call=call)
        return command

    def study(command: argparse.ArgumentParser, choice: bool = True) -> None:
        if choice:
            command.add_argument(
                "--study",
                default="study",
                metavar="NAME",
                help="study: the paper's conditions; beyond: those past them; one of your own: its "
                "name in the build folder, or a YAML file",
            )
        command.add_argument("--scale", default="smoke", help="smoke, lite, full, or a YAML file")
        command.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="override the scale"
        )
        command.add_argument("--out", default="", metavar="DIR", help="build folder (build/SCALE)")

    def machine(command: argparse.ArgumentParser) -> None:
        command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
        command.add_argument("--threads", type=_some, help="threads of each worker")
        command.add_argument(
            "--checkpoint-every",
            type=_count,
            metavar="N",
            help="epochs, 0: never (every epoch, unless the last is not 5 s old)",
        )
        keep_weights(command)

    def keep_weights(command: argparse.ArgumentParser) -> None:
        command.add_argument(
            "--keep-weights",
            action="store_true",
            help="keep each run's weights for cifarlib generalise, about 20 MB a run",
        )

    command = add("data", _data, "find, check or download a data set", "cifarlib data --download")
    command.add_argument("--download", action="store_true", help="fetch it if it is missing")
    command.add_argument("--name", default="cifar10", choices=tuple(DATASETS))
    command.add_argument("--root", type=Path, metavar="DIR", help="folder to look in (data/)")

    command = add("run", _run, "train one condition", "cifarlib run stage1-daa1/13 --scale lite")
    command.add_argument("condition", help="its name, or its run id")
    study(command)
    machine(command)

    command = add("sweep", _sweep, "make the missing records", "cifarlib sweep --scale lite")
    study(command)
    machine(command)
    command.add_argument(
        "--run",
        action="append",
        default=[],
        metavar="NAME",
        help="only this condition, by name or run id (may be repeated; runs are trained in the "
        "order named, before those of any --stage)",
    )
    command.add_argument(
        "--stage", action="append", default=[], help="only this stage (may be repeated)"
    )
    command.add_argument(
        "--from",
        dest="from_",
        metavar="CONDITION",
        help="make a grid of your own, kept as a study: this condition with other settings",
    )
    command.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=VALUES",
        help="a setting to vary, dropout=0,0.3 (may be repeated: every combination is trained)",
    )
    command.add_argument("--seeds", default="", metavar="SEEDS", help="of a grid, 42,43,44")
    command.add_argument("--name", default="", help="of a grid (made of its settings)")
    command.add_argument("--workers", type=_some, help="processes (one a core)")
    command.add_argument(
        "--budget",
        metavar="TIME",
        help="end within 540s, 9m or 2h: the most valuable runs first, long ones in slices",
    )
    command.add_argument(
        "--executor", default="local", choices=("local", "ray"), help="this machine, or a cluster"
    )
    command.add_argument(
        "--address", metavar="HOST:PORT", help="of the Ray cluster (this machine's own)"
    )

    command = add(
        "merge", _merge, "take records that other build folders hold", "cifarlib merge other/smoke"
    )
    command.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="a build folder")
    study(command)
    command.add_argument(
        "--prefer",
        choices=("ours", "theirs"),
        help="which record to keep where two of one run differ (neither is changed otherwise)",
    )

    command = add("report", _report, "render the report", "cifarlib report --scale lite")
    study(command, choice=False)
    command.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="CHAPTER",
        help="only this chapter, such as stage1, as a page of its own (may be repeated)",
    )
    command.add_argument(
        "--study",
        default="",
        metavar="NAME",
        help="only this study of your own, by its name in the build folder or its YAML file",
    )
    command.add_argument(
        "--appendix", default="", metavar="NAME", help="end the report with such a study"
    )
    command.add_argument(
        "-p",
        "--parameter",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a notebook's parameter",
    )
    command.add_argument(
        "--train", action="store_true", help="first train the runs that its chapters lack"
    )
    command.add_argument("--budget", metavar="TIME", help="stop that training after 540s, 9m or 2h")

    command = add(
        "verify", _verify, "train stored runs again and compare", "cifarlib verify --sample 3"
    )
    study(command)
    command.add_argument("--sample", type=_positive, metavar="K", help="runs by chance (3)")
    command.add_argument("--seed", type=_count, default=0, help="of the chance (0)")
    command.add_argument(
        "--run", action="append", default=[], help="this one, by name or id (may be repeated)"
    )
    command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    command.add_argument("--workers", type=_some, help="processes (one a core)")
    keep_weights(command)

    command = add(
        "generalise",
        _generalise,
        "evaluate kept weights on CIFAR-10.1",
        "cifarlib generalise --scale lite --folder data/cifar-10.1",
    )
    study(command)
    command.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="that holds its two files, version 6 (CIFAR10_1_ROOT, else data/cifar-10.1)",
    )
    command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))

    command = add(
        "diff",
        _diff,
        "say what differs between two builds",
        "cifarlib diff build/lite other/lite",
    )
    command.add_argument("first", type=Path, help="a build folder, or a report.html")
    command.add_argument("second", type=Path, help="another")
    command.add_argument("--all", action="store_true", help="every change, not the first dozen")

    command = add(
        "export",
        _export,
        "pack records, report and program into one RO-Crate zip",
        "cifarlib export --scale lite --to study.zip",
    )
    study(command, choice=False)
    command.add_argument("--to", type=Path, metavar="FILE.zip", help="(cifarlib-SCALE.zip there)")

    command = add("bench", _bench, "measure how fast it is", "cifarlib bench --part throughput")
    command.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    command.add_argument("--part", action="append", help="only this part (may be repeated)")
    command.add_argument("--images", type=_positive, default=6300, help="in each measurement")
    command.add_argument("--repeats", type=_positive, default=3, help="the median counts")
    command.add_argument(
        "--seconds", type=_positive, metavar="N", help="time to measure a GPU for (default: 600)"
    )
    command.add_argument("--out", type=Path, default=paths.BENCH, metavar="DIR", help="build/bench")

    command = add("status", _status, "say what is done and left", "cifarlib status --json")
    study(command)
    command.add_argument("--json", action="store_true", help="for scripts")

    command = add(
        "study", _check_study, "check a study of your own", "cifarlib study check my.yaml"
    )
    command.add_argument("action", choices=["check"], help="list its conditions and their cost")
    command.add_argument("study", metavar="FILE", help="a YAML file, or a study's name")
    study(command, choice=False)

    command = add("why", _why, "say why a run is not recorded", "cifarlib why stage1-daa1/13")
    command.add_argument("run", help="a condition's name, or a run id")
    study(command)
    return parser


if __name__ == "__main__":
    sys.exit(main())
