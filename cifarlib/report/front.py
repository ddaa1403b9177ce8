"""What the title pages of page and PDF and the provenance say, in words, from the records."""

import typing
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cifarlib import __version__, paper
from cifarlib.analysis.judges import JUDGED
from cifarlib.analysis.statistics import ALPHA
from cifarlib.config import DATASETS, ENGINE, IMAGE_SIZE, SPLITS
from cifarlib.formatting import say_count
from cifarlib.report import run_details
from cifarlib.report.tables import link_csv
from cifarlib.report.verdicts import SIGNS, correct, put_clearest_first
from cifarlib.runs import mixed_provenance, other_studies, provenance
from cifarlib.runs.progress import duration, status
from cifarlib.runs.results import Results
from cifarlib.runs.schema import RunRecord

if typing.TYPE_CHECKING:
    import pandas as pd

SHOWN = 3  # claims of a verdict on the title page

QUESTION = (
    "{author} ({year}, “{title}”) trained a small residual network on CIFAR-10 under many "
    "conditions of optimiser, learning rate, weight decay, batch size, augmentation, dropout and "
    "length of training. They are trained again here, and each result stands beside the "
    "published one. {terms}"
)
TERMS = (
    "DAA-1 is its augmentation by random crops and flips, DAA-2 that with rotations as well. Runs "
    "are numbered as in its tables; if nothing else is said, runs 9 and 13 are those of Table VII "
    "(AdamW, DAA-1), and run 26 that of Table VI (AdamW, no augmentation)."
)


def describe(
    results: Results,
    options: str,
    shown: "pd.DataFrame | None" = None,
    parts: Sequence[str] = (),
    others: Mapping[str, Results] | None = None,
) -> dict[str, Any]:
    """What the title page and the section on provenance say of a build folder's records.

    ``options`` are the command line options that name the records, ``shown`` the claims and doubts
    that the executed chapters show (``read_verdicts``), of which none counts on data that are not
    CIFAR-10; ``parts`` are the chapters of a partial report, none of the whole one. ``others`` are
    other studies whose runs are listed, too (see ``other_studies``).
    """
    done, total = len(results.every_record), len({c.run_id for c in results.known})
    scale_title = f"{results.scale_name[:1].upper()}{results.scale_name[1:]} scale"
    kind, short, banner = _budget_banner(results)
    label = f"{scale_title}: {short}"
    if parts:
        label = f"Only {', '.join(parts)} · {label}"
    stages = run_details.describe_all(results, options)
    for name, other in (others or {}).items():
        stages += run_details.describe_all(other, f"{options} --study {name}")
    everything = other_studies.join(results, others or {})
    if (own := results.own_budget) is not results and (known := own.every_record):
        recorded = [condition for condition in own.known if condition.run_id in known]
        own = replace(own, conditions=recorded, paper=())
        everything = other_studies.join(everything, {"full": own})
        stages += [
            stage | {"title": f"At the paper's own budget: {stage['title']}"}
            for stage in run_details.describe_all(own, "--scale full")
        ]
    only = "" if "--study " in options else "".join(f" --only {part}" for part in parts)
    return {
        "label": f"{label} · {done} of {total} runs",
        "print_label": _css_text(f"{label} · {done} of {total} runs"),
        "kind": kind,
        "banner_title": label,
        "banner": banner,
        "counts": _count_runs(done, total),
        "paper": paper.source,
        "terms": TERMS,
        "best": paper.table("XV")["test_top1"].iloc[0],
        "facts": _facts(results),
        **_count_shown(shown, results.real),
        "faults": everything.faults,
        "mixed": [*mixed_provenance.find_mixtures(everything).values()],
        "stages": _stage_rows(results),
        "budget": _budget(results),
        "protocol_name": results.protocol,
        "protocol": [
            (title, words[getattr(results.scale.protocol, name)])
            for name, (title, words) in run_details.PROTOCOL.items()
        ],
        "provenance": _provenance(results, everything),
        "command": f"cifarlib report {options}{only}",
        "sweep_command": f"cifarlib sweep {options}",
        "need_weights": _count_unweighted(results),
        "run_stages": stages,
        "runs": [run for stage in stages for run in stage["runs"]],
        "runs_csv": _link_runs_csv(stages),
        "done": done,
        "total": total,
        "shared": len(results.known) > total,
    }


def _count_unweighted(results: Results) -> int:
    """How many runs wait for ImageNet weights, which no sweep brings."""
    known = results.every_record
    waiting = (c for c in results.known if c.run_id not in known)
    return len({c.run_id for c in waiting if c.config.model.initialization == "imagenet"})


def _link_runs_csv(stages: Sequence[dict[str, Any]]) -> str:
    columns = ["run_id", "done", "test", "chosen", "epochs", "seconds", "device", "commit"]
    rows = [
        ["; ".join(run["names"]), *(str(run.get(column, "")) for column in columns)]
        for stage in stages
        for run in stage["runs"]
    ]
    return link_csv([["names", *columns], *rows], "runs", "Runs")


def _facts(results: Results) -> list[tuple[str, str]]:
    """(what, how much) of what was run, for one line of the title page."""
    scale, records = results.scale, results.every_record.values()
    paper = {c.name for c in results.paper}
    own = {c.name for c in results.known} - paper
    counts = [f"{len(paper)}"] * bool(paper) + [f"{len(own)} of your own"] * bool(own)
    seeds = say_count(len({c.config.seed for c in results.known}), "seed")
    images = DATASETS[scale.data.name].sizes["train"]
    size = _either(c.config.data.train_size for c in results.known)
    theirs = f" (paper: {_span(scale.epochs)})" if paper else ""
    facts = [
        ("Runs done", f"{len(records)} of {len({c.run_id for c in results.known})}"),
        ("Conditions", f"{' and '.join(counts) or 'none'}, {seeds} each"),
        ("Training images", f"{size} of {images:,}"),
        ("Epochs", _span({c.config.epochs for c in results.known}) + theirs),
    ]
    if records:
        devices = sorted({r.provenance.device for r in records})
        machine = devices[0] if len(devices) == 1 else f"{len(devices)} devices"
        seconds = sum(r.seconds for r in records)
        facts.append(("Machine time", f"{duration(seconds)} on {machine}"))
    return facts


def _either(numbers: Iterable[int]) -> str:
    """“9,000”, or “4,500 or 9,000”."""
    return " or ".join(f"{number:,}" for number in sorted(set(numbers)))


def _span(numbers: Collection[int]) -> str:
    low, high = min(numbers), max(numbers)
    return f"{low}–{high}" if low < high else str(low)


def _count_shown(shown: "pd.DataFrame | None", real: bool) -> dict[str, Any]:
    """What the title page says of answers, claims and doubts."""
    if shown is None:
        return {"answers": [], "verdicts": [], "pending": "", "audit": ""}
    answers, claims, doubts = (shown[shown["kind"] == k] for k in ("answer", "claim", "doubt"))
    answers = answers.sort_values("id", key=lambda i: i.str.removeprefix("answer-").astype(int))
    return {
        "answers": answers[["id", "topic", "text"]].to_dict("records"),
        "verdicts": _sum_up(claims),
        "pending": _count_open(claims),
        "audit": _count_doubts(doubts) if real else "",
    }


def _sum_up(claims: "pd.DataFrame") -> list[dict[str, Any]]:
    """Held, did not hold, not distinguishable: how many claims, and the clearest of them.

    Nothing where no claim is judged.
    """
    if not claims["verdict"].isin(JUDGED).any():
        return []
    groups, ordered, holm = [], put_clearest_first(claims), correct(claims)["holm"]
    for verdict in JUDGED:
        undecided = verdict == "not distinguishable"
        members = claims if undecided else ordered
        members = members[members["verdict"] == verdict]
        first = members.head(SHOWN)[["id", "text", "where", "paper", "ours"]].copy()
        lost = holm.reindex(first.index).ge(ALPHA) & (not undecided)
        first["ours"] += lost.map({True: " (not after correction for several tests)", False: ""})
        title = f"Undecided ({verdict})" if undecided else verdict.capitalize()
        group: dict[str, Any] = {"verdict": verdict, "count": len(members)}
        group |= {"title": title, "sign": SIGNS[verdict]}
        groups.append(group | {"claims": first.replace({"paper": {"": "–"}}).to_dict("records")})
    return groups


def _count_open(claims: "pd.DataFrame") -> str:
    """How many claims are pending or not tested, and whether verdicts are provisional.

    Or that no claim is judged, and why.
    """
    counts = claims["verdict"].value_counts()
    if "not judged" in counts:
        return f"None of the {len(claims)} claims is judged: these data are not CIFAR-10."
    judged = claims[claims["verdict"].isin(JUDGED)]
    provisional = int(judged["provisional"].sum())
    parts = []
    if pending := counts.get("pending", 0):
        parts.append(f"{say_count(pending, 'claim')} of {len(claims)} cannot be judged yet.")
    if untested := counts.get("not tested", 0):
        parts.append(f"{say_count(untested, 'claim')} could not be tested.")
    if provisional and provisional == len(judged):
        parts.append("Every verdict is provisional.")
    elif provisional:
        verb = "is" if provisional == 1 else "are"
        parts.append(f"{say_count(provisional, 'verdict')} {verb} provisional.")
    return " ".join(parts)


def _count_doubts(doubts: "pd.DataFrame") -> str:
    """How many doubts about the paper were confirmed, refuted, and so on, in one sentence."""
    count = Counter(doubts["verdict"])
    order = [v for v in ("confirmed", "refuted", "undecidable", "pending") if count[v]]
    told = ", ".join(f"{count[verdict]} {verdict}" for verdict in order)
    return f"{len(doubts)} doubts examined: {told}" if told else ""


def _css_text(text: str) -> str:
    return "".join(c if c.isalnum() or c == " " else f"\\{ord(c):x} " for c in text)


def _count_runs(done: int, total: int) -> str:
    if done == total:
        return f"All {total} runs are recorded."
    missing = "Everything else" if done else "Everything"
    return (
        f"{done or 'None'} of {total} runs {'is' if done == 1 else 'are'} recorded. "
        f"{missing} is marked pending."
    )


def _budget_banner(results: Results) -> tuple[str, str, str]:
    """(kind, short label, sentence): what the numbers of this report can stand for."""
    info = DATASETS[results.scale.data.name]
    if not info.real:
        return (
            "standin",
            "generated stand-in set, not CIFAR-10",
            "The images are generated and only look a little like CIFAR-10. These numbers show "
            "that the machinery works; they say nothing about the paper.",
        )
    if results.reduced:
        return (
            "reduced",
            f"reduced budget on {info.title}, not the paper's",
            "Fewer images or epochs, or smaller images, than in the paper. Effects may point the "
            "same way; absolute accuracies are not comparable with the paper's.",
        )
    return (
        "full",
        f"the paper's budget on {info.title}",
        "Data, epochs and image sizes as published.",
    )


def _stage_rows(results: Results) -> list[dict[str, Any]]:
    return [
        {
            "title": results.title(row.stage),
            "conditions": row.conditions,
            "done": row.done,
            "pending": row.conditions - row.done,
            "cost": f"about {duration(row.seconds_left)}" if row.conditions > row.done else "–",
        }
        for row in status(results.known, results.store)
    ]


def _budget(results: Results) -> list[tuple[str, str]]:
    """How much is run: of a study past the paper what its conditions say, not the scale alone."""
    scale, configs = results.scale, [c.config for c in results.known]
    info = DATASETS[scale.data.name]
    train, validation, test = (
        f"{_either(getattr(c.data, f'{split}_size') for c in configs)} of {info.sizes[split]:,}"
        for split in SPLITS
    )
    images = f"{train} training, {validation} validation and {test} test images"
    epochs = [
        f"{published}, as published" if ours == published else f"{ours} for the paper's {published}"
        for published, ours in scale.epochs.items()
    ]
    if not results.paper:
        epochs = [_either(c.epochs for c in configs)]
    paper = "as published" if scale.image_size == IMAGE_SIZE else f"the paper: {IMAGE_SIZE}"
    precision = {"fp32": "32-bit floating point", "bf16": "bfloat16 (autocast)"}[scale.precision]
    rows = [
        ("Data", f"{info.title}: {images}"),
        ("Epochs", "; ".join(epochs)),
        ("Stage 3 images", f"{scale.image_size} pixels square after the crop ({paper})"),
        ("Seeds", ", ".join(map(str, sorted({c.seed for c in configs})))),
        ("Precision", precision),
    ]
    by_hand = ", ".join(results.overrides)
    return rows + ([("Changed by hand", by_hand)] if by_hand else [])


def _provenance(results: Results, everything: Results) -> list[tuple[str, list[str]]]:
    """(what, its distinct values): where page, records and data come from.

    ``everything`` has the records of other studies with the paper's.
    """
    records = list(everything.records.values())
    info = DATASETS[results.scale.data.name]

    def distinct(value: Callable[[RunRecord], Any]) -> list[str]:
        count = Counter(str(value(record)) for record in records)
        if len(count) < 2:
            return [*count] or ["no run is recorded yet"]
        return [f"{text} ({say_count(n, 'run')})" for text, n in sorted(count.items())]

    def one_line(value: Callable[[RunRecord], Any]) -> list[str]:
        return [", ".join(distinct(value))]

    def of(package: str) -> str:
        return ", ".join(sorted({r.provenance.versions.get(package, "–") for r in records}))

    done, total = len(results.every_record), len({c.run_id for c in results.known})
    more = len(records) - done
    packages = list(dict.fromkeys(name for r in records for name in r.provenance.versions))
    described = "described in the records" if results.data else "not yet described in the records"
    return [
        # No commit: the page stands in one with its records, and must come out of it again.
        ("Code of this page", [f"cifarlib {__version__}"]),
        (
            "Code of the runs",
            one_line(lambda r: provenance.name_commit(r.provenance.commit, r.provenance.dirty)),
        ),
        ("Engine", distinct(lambda r: r.engine) if records else [str(ENGINE)]),
        ("Data set", [f"{info.title}, fingerprint {info.fingerprint}, {described}"]),
        ("Versions", [f"{name} {of(name)}" for name in packages] or ["no run is recorded yet"]),
        ("Devices", distinct(lambda r: f"{r.provenance.device} ({r.provenance.device_class})")),
        ("Threads of a run", distinct(lambda r: r.provenance.threads)),
        ("Trained again", [REPRODUCIBLE]),
        ("Precision", distinct(lambda r: r.config.precision)),
        ("Seeds", one_line(lambda r: r.config.seed)),
        ("Runs", [f"{done} of {total}", *[f"{more} more, {MORE}"] * bool(more)]),
        ("Training and evaluation", [f"{duration(sum(r.seconds for r in records))} in all"]),
        ("Last record", [max((r.provenance.finished for r in records), default="none")]),
    ]


MORE = "beyond the paper's study or at the paper's own budget"
REPRODUCIBLE = (
    "to the same bits on the same kind of processor with the same versions and threads; elsewhere, "
    "and on GPUs, within noise (cifarlib verify)"
)


KEPT = (
    "label", "kind", "banner_title", "banner", "counts", "faults", "stages", "budget", "mixed",
    "protocol_name", "protocol", "provenance", "command", "shared", "verdicts",
)  # fmt: skip
OF_A_RUN = ("run_id", "names", "done", "epochs", "chosen", "time", "device", "commit")


def describe_paper(results: Results, front: dict[str, Any], title: str) -> dict[str, Any]:
    """The PDF's title page and appendix, from what ``describe`` says and from the records."""
    finished = [record.provenance.finished for record in results.every_record.values()]
    if results.data:
        finished.append(results.data.provenance.finished)
    last = max((datetime.fromisoformat(text).astimezone(UTC) for text in finished), default=None)
    when = f"{last.day} {last:%B %Y}" if last else ""
    told = [front["pending"]] if front["pending"] else []
    if audit := front["audit"]:
        told.append(f"The paper is also checked against itself and the data. {audit}.")
    question = front.get("lead") or QUESTION.format(**front["paper"], terms=TERMS)
    answers = [(answer["topic"], answer["text"]) for answer in front["answers"]]
    devices = {run["device"] for run in front["runs"] if run["done"]}
    runs = []
    for run in front["runs"]:
        reported = [row["values"] for row in run.get("accuracies", []) if row["reported"]]
        kept = {key: run[key] for key in OF_A_RUN if key in run}
        runs.append(kept | {"accuracies": [*reported, ["–"] * len(SPLITS)][0]})
    return {name: front[name] for name in KEPT} | {
        "title": title,
        "short": f"records up to {when}" if last else "",
        "subtitle": f"A reproduction. Last record: {when}" if last else "A reproduction",
        "timestamp": int(last.timestamp()) if last else 0,
        "date": [last.year, last.month, last.day] if last else [1970, 1, 1],
        "summary": [said for said in (("", question), *answers, ("", " ".join(told))) if said[1]],
        "device": devices.pop() if len(devices) == 1 else None,
        "runs": runs,
    }
