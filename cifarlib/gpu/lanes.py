"""Several runs at once on one CUDA device: lanes of one process that take turns.

A lane is a thread with a stream of its own. Handing in work takes the process's *turn*, which a
lane gives up whenever it waits: so the device has several lanes' work at any time, while Python
code, torch's global generator and the capture of graphs meet no other thread. (While a graph is
captured, torch allows no other CUDA work in the process.)
"""

import contextlib
import os
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Literal

import torch

from cifarlib.config import RunConfig, card_share
from cifarlib.errors import ConfigError
from cifarlib.gpu.cuda import LaneRun, Program, Work, kind_of, supports
from cifarlib.training import Inputs, Run

WARM_UP = 3  # times that a piece of work is done before it is captured
PROGRAMS = 4  # that a lane keeps: runs of one kind come one after the other
ROOM = 0.25  # of the device's memory that should be free before a capture

# ---------------------------------------------------------------------------------------------
# A lane
# ---------------------------------------------------------------------------------------------


class Lane:
    """Where the runs of one thread are carried out, one after the other.

    With ``graphs`` a piece of work is captured once it has been done ``WARM_UP`` times, and
    replayed from then on; these first times are steps of the run like any others.
    """

    def __init__(self, device: torch.device, turn: threading.Lock, *, graphs: bool):
        self.device, self.turn, self.graphs = device, turn, graphs
        self.programs: OrderedDict[tuple[Any, ...], Program] = OrderedDict()
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.together = 1  # runs on the card when this lane's began

    @contextmanager
    def working(self) -> Iterator["Lane"]:
        """Have the turn, and the lane's stream as torch's own."""
        with self.turn, torch.cuda.stream(self.stream):
            try:
                yield self
            except BaseException:
                self.programs.clear()  # a program that was interrupted may be half of one
                raise

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Give the turn to other lanes, for what needs no device."""
        self.turn.release()
        try:
            yield
        finally:
            self.turn.acquire()

    def wait(self) -> None:
        """Until the device has done this lane's work."""
        if self.stream is None:
            with self.aside():
                time.sleep(0)
            return
        done = torch.cuda.Event(blocking=True)
        done.record(self.stream)
        with self.aside():
            done.synchronize()

    def begin(self, config: RunConfig, inputs: Inputs, device: torch.device) -> Run:
        """A run in this lane, for ``training.fit``; step by step where no program can do it."""
        kind = LaneRun if supports(config) else EagerRun
        return kind(config, inputs, device, self)

    def execution(self, config: RunConfig) -> Literal["eager", "graph"]:
        """How this lane carries out a run, as its record says it."""
        return "graph" if self.graphs and supports(config) else "eager"

    def program(self, config: RunConfig, inputs: Inputs, make: Callable[[], Program]) -> Program:
        """The program for a run of this kind, the lane's own where it has one."""
        sets = (inputs.train, inputs.validation, inputs.test)
        images = tuple(s.images.data_ptr() for s in sets)  # kept alive by the program
        key = (kind_of(config), *images, inputs.mean, inputs.std)
        program = self.programs.pop(key, None) or make()
        self.programs[key] = program
        while len(self.programs) > PROGRAMS:
            self.programs.popitem(last=False)
        return program

    def carry_out(self, program: Program, work: Work) -> None:
        """Have a program's next piece carried out, replayed where that is possible."""
        if work not in program.graphs:
            if not self.graphs or program.carried_out[work] < WARM_UP:
                program.carry_out(work)
                program.carried_out[work] += 1
                return
            program.graphs[work] = self.capture(program, work)
        program.graphs[work].replay()

    def capture(self, program: Program, work: Work) -> Any:
        """A graph of a piece of work, which is not carried out by that.

        ``torch.cuda.graph`` would wait for the whole device, and take back memory that other lanes
        are about to use again. To wait for one's own stream is enough.
        """
        assert self.stream is not None
        graph = torch.cuda.CUDAGraph()
        # All graphs of a lane share their memory, since no two of them are ever under way at
        # once and nothing that outlives a replay lies in it.
        others = [g for p in self.programs.values() for g in p.graphs.values()]
        pool = [others[0].pool()] if others else []
        self.stream.synchronize()
        free, all_of_it = torch.cuda.mem_get_info(self.device)
        if free < ROOM * all_of_it:  # a capture takes new memory, not what torch keeps for reuse
            torch.cuda.empty_cache()
        # Other lanes may be waiting for an event meanwhile, which only this mode allows.
        graph.capture_begin(*pool, capture_error_mode="thread_local")
        try:
            program.carry_out(work)
        except BaseException:
            with contextlib.suppress(RuntimeError):  # what broke the capture says more
                graph.capture_end()
            raise
        graph.capture_end()
        return graph


class EagerRun(Run):
    """A run taken step by step in a lane, which gives up its turn after each epoch."""

    def __init__(self, config: RunConfig, inputs: Inputs, device: torch.device, lane: Lane):
        super().__init__(config, inputs, device)
        self.lane = lane

    def train_epoch(self, epoch: int, on_batch: Callable[[int], None] | None) -> float:
        loss = super().train_epoch(epoch, on_batch)
        self.lane.wait()
        return loss


# ---------------------------------------------------------------------------------------------
# The card
# ---------------------------------------------------------------------------------------------


class Card:
    """What the lanes of a process share: the turn, and the room on the device."""

    def __init__(self, device: torch.device, memory: float, *, graphs: bool):
        self.device, self.memory, self.graphs = device, memory, graphs
        self.turn = threading.Lock()
        self.mine = threading.local()
        self.queue: deque[object] = deque()
        self.used: list[float] = []  # shares of the runs on the card
        self.changed = threading.Condition()

    @contextmanager
    def lane(self, config: RunConfig) -> Iterator[Lane]:
        """This thread's lane, once there is room for a run: first come, first served."""
        if not hasattr(self.mine, "lane"):
            self.mine.lane = Lane(self.device, self.turn, graphs=self.graphs)
        lane: Lane = self.mine.lane
        with self.room(card_share(config, self.memory)) as lane.together:
            yield lane

    @contextmanager
    def room(self, part: float) -> Iterator[int]:
        """Wait for room for a part of the card; how many have some then, oneself included."""
        ticket = object()
        with self.changed:
            self.queue.append(ticket)
            self.changed.wait_for(
                lambda: (
                    self.queue[0] is ticket and (not self.used or sum(self.used) + part <= 1 + 1e-9)
                )
            )
            self.queue.popleft()
            self.used.append(part)
            together = len(self.used)
            self.changed.notify_all()
        try:
            yield together
        finally:
            with self.changed:
                self.used.remove(part)
                self.changed.notify_all()

    def works(self) -> bool:
        """Whether the device still answers: some errors leave a process without it for good."""
        try:
            with self.turn:
                torch.cuda.synchronize(self.device)
        except RuntimeError:
            return False
        return True


_making = threading.Lock()


def card(device: torch.device) -> Card:
    """The one card of this process, whichever lane asks first."""
    with _making:
        return _make_card(device)


@lru_cache(maxsize=1)
def _make_card(device: torch.device) -> Card:
    _, memory = torch.cuda.mem_get_info(device)
    return Card(device, 0.9 * memory, graphs=graphs_are_wanted())


def graphs_are_wanted() -> bool:
    """Whether steps are captured: yes, unless ``CIFARLIB_GRAPHS`` is 0, for where that fails."""
    wanted = os.environ.get("CIFARLIB_GRAPHS") or "1"
    if wanted not in ("0", "1"):
        raise ConfigError(
            f"CIFARLIB_GRAPHS is {wanted!r}; set it to 0 to train without CUDA graphs, or to 1"
        )
    return wanted == "1"
