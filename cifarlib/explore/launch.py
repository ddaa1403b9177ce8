"""One run, trained beside the program that asked for it, watched while it trains, and stoppable.

The run is trained by a sweep of one condition, in a process of its own: with the sweep's locks,
checkpoints and records, so that nothing is lost and nothing is trained twice. Ctrl-C there is what
stops it; the next launch of the same run goes on from its checkpoint.
"""

import contextlib
import io
import multiprocessing
import os
import signal
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

from cifarlib.config import RunConfig, run_id
from cifarlib.errors import CifarlibError
from cifarlib.progress import cores
from cifarlib.records import RecordStore
from cifarlib.study import Condition
from cifarlib.sweep import sweep
from cifarlib.sweep.executors import Outcome
from cifarlib.sweep.worker import Message

State = Literal["starting", "training", "done", "stopped", "failed"]


@dataclass
class Progress:
    """How far a run is, as far as was heard."""

    state: State = "starting"
    images: int = 0  # trained in this launch
    epoch: int = 0  # trained and evaluated
    accuracies: dict[int, float] = field(default_factory=dict)  # validation top-1 by epoch, %
    sentence: str = ""  # why it failed, or a note

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.state in ("done", "stopped", "failed")

    def hear(self, said: Message | Outcome | str | None) -> None:
        """Take in what a launch's process says: a message of the worker, or how it ended.

        It ends with the sweep's outcome, with the sentence of an error, or with None: stopped.
        """
        match said:
            case Message(kind="images"):
                self.state = "training"
                self.images += said.images
            case Message(kind="epoch"):
                self.epoch = said.epoch
                self.accuracies[said.epoch] = said.accuracy
            case Message(kind="note"):
                self.sentence = said.text
            case Message(kind="busy"):
                self.sentence = "another sweep is training this run; waiting for its record"
            case Outcome():
                wrong = [*said.failed.values(), *said.unavailable.values()]
                self.state = "failed" if wrong else "done"
                self.sentence = wrong[0] if wrong else ""
            case str():
                self.state, self.sentence = "failed", said
            case None:
                self.state = "stopped"


class Launch:
    """A run in training, from the moment it is made."""

    def __init__(self, config: RunConfig, store: RecordStore, name: str, device: str = "auto"):
        self.run_id = run_id(config)
        self.progress = Progress()
        condition = Condition("own", None, {}, {}, config, self.run_id, name)
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe(duplex=False)
        arguments = (theirs, condition, store.folder, device)
        self.process = context.Process(target=_train, args=arguments, name=name)
        self.process.start()
        theirs.close()

    def poll(self, seconds: float = 0.0) -> Progress:
        """Hear what has come, waiting for something at most so long."""
        try:
            while not self.progress.ended and self.connection.poll(seconds):
                self.progress.hear(self.connection.recv())
                seconds = 0.0
        except (EOFError, OSError):  # it ended without a word
            self.process.join()
            stopped = self.process.exitcode in (-signal.SIGTERM, -signal.SIGINT)
            self.progress.state = "stopped" if stopped else "failed"
            if not stopped:
                self.progress.sentence = (
                    f"the training process ended with code {self.process.exitcode}; start it again"
                )
        if self.progress.ended:
            self.process.join()
        return self.progress

    def stop(self) -> None:
        """Ask it to stop, as Ctrl-C does; ``poll`` hears when it has."""
        if self.process.is_alive() and self.process.pid:
            if self.progress.state == "starting":  # there is nothing to be kept
                self.process.terminate()
            else:
                os.kill(self.process.pid, signal.SIGINT)


def _train(connection: Connection, condition: Condition, folder: Path, device: str) -> None:
    """A launch's process: sends the worker's messages as they come, then how it ended."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the parent does about it
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # the form shows what there is to say
            outcome = sweep(
                [condition],
                RecordStore(folder),
                device=device,
                workers=1,
                threads=cores(),
                watch=connection.send,
            )
        connection.send(outcome)
    except CifarlibError as error:
        connection.send(str(error))
    except KeyboardInterrupt:
        connection.send(None)
