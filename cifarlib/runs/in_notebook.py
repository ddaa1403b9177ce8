"""A sweep from a notebook's cell: its cost beforehand, a progress bar, and *Interrupt*."""

import contextlib
import io
from collections.abc import Iterable, Sequence

from tqdm.auto import tqdm

from cifarlib.errors import RunError
from cifarlib.formatting import say_count
from cifarlib.runs.checkpoints import checkpoint_epoch
from cifarlib.runs.progress import Prices, cores, duration, uses_cuda
from cifarlib.runs.schema import RunRecord
from cifarlib.runs.store import RecordStore
from cifarlib.runs.sweep import sweep
from cifarlib.runs.worker import Message
from cifarlib.study import Condition


class Stopped(KeyboardInterrupt):
    """Training was interrupted; a notebook shows the sentence instead of a traceback."""

    def _render_traceback_(self) -> list[str]:
        return [str(self)]


def say_cost(
    conditions: Sequence[Condition], records: Iterable[RunRecord], device: str = "auto"
) -> str:
    """What it costs to train some conditions, and what that is estimated from."""
    prices = Prices(records, device)
    seconds = sum(prices.seconds(c.config) for c in conditions)
    images = sum(c.config.epochs * c.config.data.train_size for c in conditions)
    kinds = {(c.config.model.name, c.config.precision) for c in conditions}
    known = kinds <= prices.rates.keys()
    source = "recorded runs" if known else "the usual speed of such a machine"
    return (
        f"{say_count(len(conditions), 'run')} to train, {images:,} images over all epochs: about "
        f"{duration(seconds)}, estimated from {source}."
    )


def sweep_with_bar(
    conditions: Sequence[Condition], store: RecordStore, device: str = "auto"
) -> None:
    """Train conditions behind a progress bar, as ``sweep`` does; one alone has every core.

    The bar counts images; beside it stand the last epoch that ended and its validation accuracy.
    Raises ``RunError`` where a run fails, and ``Stopped`` on *Interrupt*: checkpoints are kept.
    """

    def find_epochs() -> dict[str, int]:
        return {c.run_id: checkpoint_epoch(store.state / f"{c.run_id}.pt") for c in conditions}

    alone = len(conditions) == 1 and not uses_cuda(device)
    begun = find_epochs()
    bar = tqdm(
        desc=conditions[0].name if len(conditions) == 1 else say_count(len(conditions), "run"),
        total=sum(c.config.epochs * c.config.data.train_size for c in conditions),
        initial=sum(begun[c.run_id] * c.config.data.train_size for c in conditions),
        unit=" images",
    )
    bar.set_postfix_str("starting")

    def watch(message: Message) -> None:
        if message.kind == "images":
            bar.update(message.images)
        elif message.kind == "epoch":
            bar.set_postfix_str(f"epoch {message.epoch}, validation {message.accuracy:.1f} %")
        elif message.kind == "busy":
            bar.set_postfix_str("another process trains it; waiting for its record")
        elif message.text:
            bar.set_postfix_str(message.text)

    try:
        with bar, contextlib.redirect_stderr(io.StringIO()):  # the bar says what there is to say
            outcome = sweep(
                conditions,
                store,
                device=device,
                workers=1 if alone else None,
                threads=cores() if alone else None,
                watch=watch,
            )
    except KeyboardInterrupt:
        kept = ", ".join(str(epoch) for epoch in find_epochs().values() if epoch)
        kept = f"The checkpoint of epoch {kept} is kept. " if kept else ""
        raise Stopped(f"Stopped. {kept}Run the cell again to go on.") from None
    for name, reason in (outcome.failed | outcome.unavailable).items():
        raise RunError(f"{name} was not trained: {reason}")
