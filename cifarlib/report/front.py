"""What the report's title page and its section on provenance say, in words, from the records."""

import typing
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cifarlib import __version__, paper
from cifarlib.config import DATASETS, ENGINE, IMAGE_SIZE
from cifarlib.paper.tables import read_table
from cifarlib.report import run_folds
from cifarlib.report.tables import link_csv
from cifarlib.runs import further, mixture, provenance
from cifarlib.runs.progress import duration, status
from cifarlib.runs.results import Results
from cifarlib.runs.schema import RunRecord
from cifarlib.study import Scale

if typing.TYPE_CHECKING:
    import pandas as pd

VERDICTS = {  # verdict: (what stands above its claims on the title page, its sign)
    "held": ("Held", "✓"),
    "did not hold": ("Did not hold", "✗"),
    "not distinguishable": ("Not distinguishable", "≈"),
}
JUDGED = list(VERDICTS)
SHOWN = 3  # claims of a verdict on the title page


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
    further studies whose runs are listed, too (see ``further``).
    """
    done, total = len(results.every_record), len({c.run_id for c in results.known})
    scale_title = f"{results.scale_name[:1].upper()}{results.scale_name[1:]} scale"
    kind, short, banner = _budget_banner(results)
    label = f"{scale_title}: {short}" if short else scale_title
    if parts:
        label = f"Only {', '.join(parts)} · {label}"
    stages = run_folds.describe_all(results, options)
    for name, other in (others or {}).items():
        stages += run_folds.describe_all(other, f"{options} --study {name}")
    if (own := results.own_budget) is not results and (known := own.every_record):
        recorded = [condition for condition in own.known if condition.run_id in known]
        own = replace(own, conditions=recorded, paper=())
        stages += [
            stage | {"title": f"At the paper's own budget: {stage['title']}"}
            for stage in run_folds.describe_all(own, "--scale full")
        ]
    everything = further.join(results, others or {})
    only = "" if "--study " in options else "".join(f" --only {part}" for part in parts)
    return {
        "label": f"{label} · {done} of {total} runs",
        "print_label": _css_text(f"{label} · {done} of {total} runs"),
        "kind": kind,
        "banner_title": label,
        "banner": banner,
        "counts": _count_runs(done, total),
        "paper": paper.source,
        "best": read_table(15)["test_top1"].iloc[0],
        "facts": _facts(results),
        **_count_shown(shown, results.real),
        "faults": everything.faults,
        "mixed": [found.sentence for found in mixture.find_mixtures(everything)],
        "stages": _stage_rows(results),
        "budget": _budget(results.scale, results.overrides),
        "protocol_name": _protocol_name(results),
        "protocol": _protocol(results.scale),
        "provenance": _provenance(results, everything),
        "command": f"cifarlib report {options}{only}",
        "sweep_command": f"cifarlib sweep {options}",
        "run_stages": stages,
        "runs": [run for stage in stages for run in stage["runs"]],
        "runs_csv": _link_runs_csv(stages),
        "done": done,
        "total": total,
        "shared": len(results.known) > total,
    }


def _link_runs_csv(stages: Sequence[dict[str, Any]]) -> str:
    columns = ["run_id", "done", "test", "chosen", "epochs", "seconds", "device", "commit"]
    rows = [
        ["; ".join(run["names"]), *(str(run.get(column, "")) for column in columns)]
        for stage in stages
        for run in stage["runs"]
    ]
    return link_csv([["names", *columns], *rows], "runs", "All runs")


def _facts(results: Results) -> list[tuple[str, str]]:
    """(what, how much) of what was run, for one line of the title page."""
    scale, records = results.scale, results.every_record.values()
    paper = {c.name for c in results.paper}
    own = {c.name for c in results.known} - paper
    counts = [f"{len(paper)}"] * bool(paper) + [f"{len(own)} of your own"] * bool(own)
    seeds = len({c.config.seed for c in results.known})
    runs = len({c.run_id for c in results.known})
    info = DATASETS[scale.data.name]
    seconds = sum(r.seconds for r in records)
    facts = [
        ("Runs done", f"{len(records)} of {runs}"),
        ("Conditions", f"{' and '.join(counts) or 'none'}, {_count(seeds, 'seed')} each"),
        (
            "Training images",
            f"{scale.data.train_size:,} of {info.train_images - info.train_images // 10:,}",
        ),
        ("Epochs", f"{_span(scale.epochs.values())} (paper: {_span(scale.epochs)})"),
    ]
    if records:
        devices = sorted({r.provenance.device for r in records})
        machine = devices[0] if len(devices) == 1 else f"{len(devices)} devices"
        facts.append(("Machine time", f"{duration(seconds)} on {machine}"))
    return facts


def _span(numbers: Iterable[int]) -> str:
    numbers = sorted(numbers)
    return f"{numbers[0]}–{numbers[-1]}" if numbers[0] < numbers[-1] else str(numbers[0])


def _count(number: int, noun: str) -> str:
    return f"{'one' if number == 1 else number} {noun}{'' if number == 1 else 's'}"


def _count_shown(shown: "pd.DataFrame | None", real: bool) -> dict[str, Any]:
    """What the title page says of answers, claims and doubts."""
    if shown is None:
        return {"answers": [], "verdicts": [], "pending": "", "audit": ""}
    answers, claims, doubts = (shown[shown["kind"] == k] for k in ("answer", "claim", "doubt"))
    return {
        "answers": answers.sort_values("id")[["id", "text"]].to_dict("records"),
        "verdicts": _sum_up(claims),
        "pending": _count_open(claims),
        "audit": _count_doubts(doubts) if real else "",
    }


def _sum_up(claims: "pd.DataFrame") -> list[dict[str, Any]]:
    """Held, did not hold, not distinguishable: how many claims, and the first of them.

    Nothing where no claim is judged.
    """
    if not claims["verdict"].isin(JUDGED).any():
        return []
    groups = []
    for verdict, (title, sign) in VERDICTS.items():
        members = claims[claims["verdict"] == verdict]
        shown = [
            {
                "text": claim.text,
                "where": claim.where,
                "paper": claim.paper or "–",
                "ours": claim.ours,
                "anchor": f"claim-{claim.id}",
            }
            for claim in members.head(SHOWN).itertuples()
        ]
        groups.append(
            {
                "verdict": verdict,
                "title": title,
                "sign": sign,
                "count": len(members),
                "more": max(0, len(members) - SHOWN),
                "claims": shown,
            }
        )
    return groups


def _count_open(claims: "pd.DataFrame") -> str:
    """How many claims are pending or not tested, and whether verdicts are provisional.

    Or that no claim is judged, and why.
    """
    if claims["verdict"].eq("not judged").any():
        return f"None of the {len(claims)} claims is judged: these data are not CIFAR-10."
    counts = claims["verdict"].value_counts()
    parts = []
    if pending := counts.get("pending", 0):
        parts.append(
            f"{_count(pending, 'claim').capitalize()} of {len(claims)} cannot be judged yet."
        )
    if untested := counts.get("not tested", 0):
        parts.append(f"{_count(untested, 'claim').capitalize()} could not be tested.")
    judged = claims[claims["verdict"].isin(JUDGED)]
    if provisional := int(judged["provisional"].sum()):
        every = provisional == len(judged)
        some = (
            f"{_count(provisional, 'verdict').capitalize()} {'is' if provisional == 1 else 'are'}"
        )
        parts.append("Every verdict is provisional." if every else f"{some} provisional.")
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
    if results.scale.reduced:
        return (
            "reduced",
            f"reduced budget on {info.title}, not the paper's",
            "Fewer images or epochs, or smaller images, than in the paper. Effects may point the "
            "same way; accuracies must not be compared with the paper's as if they were equal.",
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


def _budget(scale: Scale, overrides: Iterable[str]) -> list[tuple[str, str]]:
    info = DATASETS[scale.data.name]
    held_out = info.train_images // 10
    train, validation, test = (
        f"{ours:,} of {available:,} {name}"
        for ours, available, name in (
            (scale.data.train_size, info.train_images - held_out, "training"),
            (scale.data.validation_size, held_out, "validation"),
            (scale.data.test_size, info.test_images, "test"),
        )
    )
    epochs = [
        f"{published}, as published" if ours == published else f"{ours} for the paper's {published}"
        for published, ours in scale.epochs.items()
    ]
    paper = "as published" if scale.image_size == IMAGE_SIZE else f"the paper: {IMAGE_SIZE}"
    rows = [
        ("Data", f"{info.title}: {train}, {validation} and {test} images"),
        ("Epochs", "; ".join(epochs)),
        ("Stage 3 images", f"{scale.image_size} pixels square after the crop ({paper})"),
        ("Seeds", ", ".join(map(str, scale.seeds))),
        (
            "Precision",
            {"fp32": "32-bit floating point", "bf16": "bfloat16 (autocast)"}[scale.precision],
        ),
    ]
    if settings := ", ".join(overrides):
        rows.append(("Changed by hand", settings))
    return rows


def _protocol_name(results: Results) -> str:
    used = results.scale.protocol.model_dump()
    for name, settings in results.study.presets.get("protocol", {}).items():
        if settings == used:
            return name
    return "custom"


def _protocol(scale: Scale) -> list[tuple[str, str]]:
    """The protocol in words; where it departs from the paper's listings, it says so."""
    used = scale.protocol
    return [
        (
            "Training order",
            "images shuffled anew in every epoch (the paper's listing never shuffles)"
            if used.shuffle
            else "images in one fixed order, never shuffled, as in the paper's listing",
        ),
        (
            "Evaluation",
            "validation and test images augmented like training images, as in the paper's listing"
            if used.augmented_evaluation
            else "on clean images (the paper's listing augments validation and test images, too)",
        ),
        (
            "Chosen epoch",
            "the best on the test set, as in the paper's listing"
            if used.selection == "test"
            else "the best on the validation set (the paper's listing: the best on the test set)",
        ),
        (
            "Weights",
            "predictions from the last epoch's weights, as in the paper's listing"
            if used.checkpoint == "last"
            else "predictions from the chosen epoch's weights (the listing keeps the last epoch's)",
        ),
        (
            "Normalisation",
            "the constants of the paper's listing"
            if used.normalization == "published"
            else "channel statistics computed from the training images",
        ),
        (
            "Loss shown",
            "sum of batch means divided by the number of images, as in the paper's listing"
            if used.loss == "batch_means"
            else "mean cross-entropy per image",
        ),
    ]


def _provenance(results: Results, everything: Results) -> list[tuple[str, list[str]]]:
    """(what, its distinct values): where page, records and data come from.

    ``everything`` has the records of further studies with the paper's.
    """
    records = list(everything.records.values())
    info = DATASETS[results.scale.data.name]

    def distinct(value: Callable[[RunRecord], Any]) -> list[str]:
        count = Counter(str(value(record)) for record in records)
        many = len(count) > 1
        return [
            f"{text} ({n} {'run' if n == 1 else 'runs'})" if many else text
            for text, n in sorted(count.items())
        ] or ["no run is recorded yet"]

    seconds = sum(r.seconds for r in records)

    def of(package: str) -> str:
        return ", ".join(sorted({r.provenance.versions.get(package, "–") for r in records}))

    packages = list(dict.fromkeys(name for r in records for name in r.provenance.versions))
    described = "described in the records" if results.data else "not yet described in the records"
    return [
        # No commit: the page stands in one with its records, and must come out of it again.
        ("Code of this page", [f"cifarlib {__version__}"]),
        (
            "Code of the runs",
            distinct(lambda r: provenance.name_commit(r.provenance.commit, r.provenance.dirty)),
        ),
        ("Engine", distinct(lambda r: r.engine) if records else [str(ENGINE)]),
        ("Data set", [f"{info.title}, fingerprint {info.fingerprint}, {described}"]),
        ("Versions", [f"{name} {of(name)}" for name in packages] or ["no run is recorded yet"]),
        ("Devices", distinct(lambda r: f"{r.provenance.device} ({r.provenance.device_class})")),
        ("Threads of a run", distinct(lambda r: r.provenance.threads)),
        ("Trained again", [REPRODUCIBLE]),
        ("Precision", distinct(lambda r: r.config.precision)),
        ("Seeds", distinct(lambda r: r.config.seed)),
        ("Runs", _count_recorded(results, len(records))),
        ("Training and evaluation", [f"{duration(seconds)} in all"]),
        ("Last record", [max((r.provenance.finished for r in records), default="none")]),
    ]


REPRODUCIBLE = (
    "to the same bits on the same kind of processor with the same versions and threads; elsewhere, "
    "and on GPUs, within noise (cifarlib verify)"
)


def _count_recorded(results: Results, recorded: int) -> list[str]:
    """How many runs there are of the study, and how many of others."""
    done, total = len(results.every_record), len({c.run_id for c in results.known})
    more = recorded - done
    return [f"{done} of {total}", *([f"{more} more past the paper's study"] if more else [])]
