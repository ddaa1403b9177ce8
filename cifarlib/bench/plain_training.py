"""The simple alternative to concurrent runs in one process: several processes that share nothing.

Each trains the residual network on its own with AdamW in bf16, on random images. They measure what
``lanes`` must be worth: whatever several ordinary training loops reach side by side on one GPU.
"""

import multiprocessing
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cifarlib import transforms
from cifarlib.errors import RunError
from cifarlib.models import ResidualNetwork

Mode = Literal["eager", "compile", "graph"]
"""A step launched kernel by kernel, compiled by torch (reduce-overhead), or captured as a whole."""

IMAGES = 20_000  # of each process: enough that batches differ
WARM_UP = 20  # steps


def measure_processes(
    mode: Mode,
    processes: int,
    batch_size: int,
    steps: int,
    device: torch.device,
    patience: float = 300.0,
    images: int = IMAGES,
) -> float:
    """Images/s of all processes together, from the first one's start to the last one's end.

    Raises ``RunError`` where a process fails, or does not end within ``patience`` seconds.
    """
    context = multiprocessing.get_context("spawn")
    barrier, times = context.Barrier(processes), context.SimpleQueue()
    arguments = (mode, batch_size, steps, device, images, barrier, times)
    started = [context.Process(target=_train, args=arguments) for _ in range(processes)]
    end = time.monotonic() + patience
    try:
        for process in started:
            process.start()
        waiting: dict[Any, Any] = {process.sentinel: process for process in started}
        while waiting:
            ended = wait(list(waiting), timeout=max(0.0, end - time.monotonic()))
            if not ended:
                raise RunError(f"{mode}: no end within {patience:.0f} s")
            for sentinel in ended:
                process = waiting.pop(sentinel)
                process.join()
                if process.exitcode:
                    raise RunError(f"{mode}: one of {processes} processes failed")
    finally:
        for process in started:
            if process.is_alive():
                process.kill()
    spans = [times.get() for _ in started]
    seconds = max(last for _, last in spans) - min(first for first, _ in spans)
    return processes * batch_size * steps / seconds


def _train(
    mode: Mode,
    batch_size: int,
    steps: int,
    device: torch.device,
    images: int,
    barrier: Any,
    times: Any,
) -> None:
    torch.set_num_threads(1)
    with torch.cuda.stream(torch.cuda.Stream() if device.type == "cuda" else None):
        step = _make_step(mode, batch_size, device, images)
        for _ in range(WARM_UP if device.type == "cuda" else 1):
            step()
        _wait_for(device)
        barrier.wait()
        first = time.time()  # which all processes share
        for number in range(steps):
            step()
            if number % 64 == 63:  # so that no queue of launches grows
                _wait_for(device)
        _wait_for(device)
        times.put((first, time.time()))


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.current_stream().synchronize()


def _make_step(
    mode: Mode, batch_size: int, device: torch.device, count: int
) -> Callable[[], object]:
    """One training step, as a function: draw a batch, augment it as DAA-1 does, and update."""
    cuda = device.type == "cuda"
    images = torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, device=device)
    labels = torch.randint(0, 10, (count,), device=device)
    model = ResidualNetwork().to(device).to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=torch.tensor(1e-3, device=device),
        weight_decay=1e-3,
        fused=True,
        capturable=cuda,
    )

    def loss_of(x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16):
            return nn.functional.cross_entropy(model(x), y)

    compute = torch.compile(loss_of, mode="reduce-overhead") if mode == "compile" else loss_of

    def step() -> None:
        if mode == "compile":
            torch.compiler.cudagraph_mark_step_begin()
        where = torch.randint(count, (batch_size,), device=device)
        top, left = torch.randint(9, (2, batch_size), device=device)
        flip = torch.rand(batch_size, device=device) < 0.5
        angles = torch.zeros(batch_size, device=device)
        draws = transforms.Draws(angles, top, left, flip, rotated=False)
        x = transforms.augment(images[where], draws, padding=4)
        x = transforms.normalize(x, (0.5,) * 3, (0.25,) * 3, channels_last=True)
        optimizer.zero_grad()
        compute(x, labels[where]).backward()
        optimizer.step()

    if mode != "graph" or not cuda:
        return step
    for _ in range(5):  # a capture needs everything to have been made already
        step()
    optimizer.zero_grad()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        step()
    return graph.replay
