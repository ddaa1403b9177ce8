"""What the PDF says besides the notebooks: title, summary, and the list of all runs."""

from collections import Counter
from datetime import UTC, datetime
from typing import Any

from cifarlib.config import SPLITS
from cifarlib.runs.progress import duration
from cifarlib.runs.results import Results
from cifarlib.runs.schema import RunRecord

QUESTION = (
    "{author} ({year}, “{title}”) trained a small residual network on CIFAR-10 under many "
    "conditions of optimiser, learning rate, weight decay, batch size, augmentation, dropout and "
    "length of training. Every condition is run again here, and each result stands beside the "
    "published one."
)


def describe_paper(results: Results, front: dict[str, Any], title: str) -> dict[str, Any]:
    """The title page and the appendix, from what ``front.describe`` says and from the records."""
    last = _last_record(results)
    when = f"{last.day} {last:%B %Y}" if last else ""
    kept = ("label", "kind", "banner_title", "banner", "counts", "faults", "stages", "budget")
    kept += ("mixed", "protocol_name", "protocol", "provenance", "command", "shared")
    return {name: front[name] for name in kept} | {
        "title": title,
        "short": f"records up to {when}" if last else "",
        "subtitle": f"A reproduction. Last record: {when}" if last else "A reproduction",
        "timestamp": int(last.timestamp()) if last else 0,
        "date": [last.year, last.month, last.day] if last else [1970, 1, 1],
        "budget": [[term, [text]] for term, text in front["budget"]],
        "protocol": [[term, [text]] for term, text in front["protocol"]],
        "verdicts": front.get("verdicts", []),
        "summary": _summarise(front),
        "device": _only_device(results),
        "runs": list_runs(results),
    }


def _summarise(front: dict[str, Any]) -> list[str]:
    """The question, its answers, and in one paragraph what came out of claims and audit."""
    told = [front.get("pending", "")]
    if audit := front.get("audit"):
        told.append(f"The paper against itself and the data: {audit}.")
    question = front.get("lead") or QUESTION.format(**front["paper"])
    answers = [answer["text"] for answer in front.get("answers", [])]
    return [text for text in (question, *answers, " ".join(filter(None, told))) if text]


def _last_record(results: Results) -> datetime | None:
    finished = [record.provenance.finished for record in results.every_record.values()]
    if results.data:
        finished.append(results.data.provenance.finished)
    return max((datetime.fromisoformat(text).astimezone(UTC) for text in finished), default=None)


def _only_device(results: Results) -> str | None:
    devices = {record.provenance.device for record in results.every_record.values()}
    return devices.pop() if len(devices) == 1 else None


def list_runs(results: Results) -> list[dict[str, Any]]:
    """Every run of the study once, with the names of its conditions, done or pending."""
    names: dict[str, list[str]] = {}
    for condition in results.known:
        names.setdefault(condition.run_id, []).append(condition.name)
    several = Counter(condition.name for condition in results.known)
    seeds = {c.run_id: f" (seed {c.config.seed})" for c in results.known}
    return [
        {
            "id": run_id,
            "names": [n + (seeds[run_id] if several[n] > 1 else "") for n in dict.fromkeys(names)],
            **_outcome(results.every_record.get(run_id)),
        }
        for run_id, names in names.items()
    ]


def _outcome(record: RunRecord | None) -> dict[str, Any]:
    if record is None:
        return {"done": False}
    origin = record.provenance
    accuracies = [record.accuracy(split) for split in SPLITS]
    return {
        "done": True,
        "epochs": record.result.history.epochs,
        "chosen": record.reported_epoch,
        "accuracies": ["–" if value is None else f"{value:.2f}" for value in accuracies],
        "time": duration(record.seconds),
        "device": origin.device,
        "commit": (origin.commit or "–")[:8] + ("*" if origin.dirty else ""),
    }
