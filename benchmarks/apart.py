"""Competitors that take turns, each in a process of its own.

In one process the threads of onnxruntime and OpenVINO spin beside PyTorch's and slow them tenfold.
The processes live through all rounds and wait, without work, while another one has its turn.
"""

import multiprocessing
import resource
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from .timing import Found, Progress, summarize, time_call


@dataclass(frozen=True)
class Way:
    """How a process makes what it is to time."""

    make: Callable[..., Callable[[], Any]]
    """A function of a module, which is found by its name; it gives the call that is timed."""
    arguments: tuple[Any, ...] = ()


def measure_apart(
    ways: Mapping[str, Way], rounds: int, progress: Progress, baseline: str, warmup: int = 1
) -> dict[str, Found]:
    """Time ways in turn, each in a process of its own with as many threads as this one.

    Args:
        ways: by name.
        rounds: how often each is timed, those of an earlier call included.
        progress: its rounds are not measured again, and each new one is kept.
        baseline: the way that ratios are to.
        warmup: how often each is called before it is timed.

    Returns:
        by name what :func:`~benchmarks.timing.summarize` gives, "loading": seconds until the call
        could be made, and "memory": most bytes that the process had.

    Raises:
        RuntimeError: a process ended; it has written why to standard error.
    """
    earlier = {name: list(progress.found.get(name, {}).get("seconds", [])) for name in ways}
    done = min(map(len, earlier.values()))  # an interrupted round begins again
    if done >= rounds:
        return progress.found
    seconds = {name: values[:done] for name, values in earlier.items()}
    with ExitStack() as stack:
        started = {n: stack.enter_context(_Process(n, w, warmup)) for n, w in ways.items()}
        for _ in range(done, rounds):
            facts = {}
            for name, process in started.items():
                taken, facts[name] = process.run()
                seconds[name].append(taken)
            summary = summarize(seconds, baseline)
            found = {name: {**summary[name], **facts[name]} for name in ways}
            progress.keep(found)
    return found


class _Process:
    """A process that has made its call, and times it whenever it is asked to."""

    def __init__(self, name: str, way: Way, warmup: int) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")  # a forked one has threads that are stuck
        self.connection, theirs = context.Pipe()
        given = (theirs, way, warmup, torch.get_num_threads())
        self.process = context.Process(target=_serve, args=given, daemon=True)
        self.process.start()
        theirs.close()

    def __enter__(self) -> "_Process":
        self._receive()
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self.process.join()

    def run(self) -> tuple[float, Found]:
        """Seconds of a call, and facts about the process."""
        self.connection.send(None)
        return self._receive()

    def _receive(self) -> Any:
        try:
            return self.connection.recv()
        except EOFError:
            raise RuntimeError(f"the process of {self.name!r} ended") from None


def _serve(connection: Connection, way: Way, warmup: int, threads: int) -> None:
    torch.set_num_threads(threads)
    start = time.perf_counter()
    run = way.make(*way.arguments)
    facts = {"loading": time.perf_counter() - start}
    for _ in range(warmup):
        run()
    connection.send(None)
    while True:
        try:
            connection.recv()
        except EOFError:  # no more rounds
            return
        seconds = time_call(run)
        facts["memory"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        connection.send((seconds, facts))
