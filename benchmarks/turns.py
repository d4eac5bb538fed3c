"""Contestants that take turns, a step at a time, each in a process of its own.

What slows the machine down for a while slows all of them; and the settings, the caches and the
peak memory of one are no other's.
"""

import io
import multiprocessing
import os
import platform
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from system.machine import Machine
from system.process import describe

REST_SECONDS = 0.2  # before a step, so that the threads of the one before have stopped waiting
CPU_INFO = Path("/proc/cpuinfo")
Step = Callable[[int], None]  # makes step number i


@dataclass(frozen=True)
class Contestant:
    """Who takes part: `build(machine)` gives the step; all of it must be picklable."""

    name: str
    build: Callable[[Machine], Step]
    num_tokens: int  # in a step
    flops: float = 0.0  # of a step's matrix products
    device: str = "auto"
    precision: str = "auto"


@dataclass
class Result:
    """What a contestant's steps took, or why it is left out."""

    contestant: Contestant
    seconds: list[float] = field(default_factory=list)
    memory_bytes: int = 0  # at the peak, torch and all
    failure: str = ""

    @property
    def median_seconds(self) -> float:
        return float(np.median(self.seconds))

    @property
    def tokens_per_second(self) -> float:
        return self.contestant.num_tokens / self.median_seconds

    @property
    def flops_per_second(self) -> float:
        return self.contestant.flops / self.median_seconds

    def middle_half(self) -> tuple[float, float]:
        """The seconds that a quarter and three quarters of the steps stayed below."""
        low, high = np.quantile(self.seconds, [0.25, 0.75])
        return float(low), float(high)

    def speed_cells(self) -> list[str]:
        """Name, median and middle half of the tokens per second."""
        slow, fast = (self.contestant.num_tokens / s for s in reversed(self.middle_half()))
        return [self.contestant.name, f"{self.tokens_per_second:,.0f}", f"{slow:,.0f}-{fast:,.0f}"]


def take_turns(
    contestants: Sequence[Contestant], num_steps: int, num_warm_ups: int
) -> list[Result]:
    """`num_steps` measured steps of every contestant; in each turn all of them make one.

    The first turns, in which programs compile and allocate, are not counted.
    """
    results = [Result(contestant) for contestant in contestants]
    num_turns = num_warm_ups + num_steps
    with ExitStack() as stack, tqdm(total=num_turns, leave=False, disable=None) as bar:
        connections = [stack.enter_context(started(contestant)) for contestant in contestants]
        for turn in range(num_turns):
            for result, connection in zip(results, connections, strict=True):
                take_turn(result, connection, turn, is_counted=turn >= num_warm_ups)
            bar.update()
    return results


def take_turn(result: Result, connection: Connection, turn: int, *, is_counted: bool) -> None:
    """Has step number `turn` made, and adds what it took to the result; a failed one is out."""
    if result.failure:
        return
    time.sleep(REST_SECONDS)
    try:
        connection.send(turn)
        answer = connection.recv()
    except (EOFError, OSError):
        answer = "its process was killed"
    if isinstance(answer, str):
        result.failure = answer
        return
    seconds, result.memory_bytes = answer
    if is_counted:
        result.seconds.append(seconds)


@contextmanager
def started(contestant: Contestant) -> Iterator[Connection]:
    """The connection to the contestant's process, which ends with the context."""
    context = multiprocessing.get_context("spawn")  # a fresh process, as a user's own would be
    connection, other_end = context.Pipe()
    process = context.Process(target=serve, args=(contestant, other_end), daemon=True)
    process.start()
    other_end.close()
    try:
        yield connection
    finally:
        process.terminate()
        process.join()


def serve(contestant: Contestant, connection: Connection) -> None:
    """The contestant's process: a number comes in, its step is made, (seconds, bytes) goes out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends it
    try:
        with redirect_stdout(io.StringIO()):  # some peers greet
            machine = Machine.choose(contestant.device, contestant.precision)
            step = contestant.build(machine)
            while True:
                connection.send(timed(step, connection.recv(), machine))
    except Exception as error:  # a peer that does not run here is a row less, not the end
        connection.send(describe(error))


def timed(step: Step, number: int, machine: Machine) -> tuple[float, int]:
    """Seconds of one step, and the bytes that the process needed so far."""
    start = time.perf_counter()
    step(number)
    if machine.device.type != "cpu":
        torch.accelerator.synchronize()
    return time.perf_counter() - start, machine.memory_in_use()


def device_line(machine: Machine) -> str:
    """The hardware and software that the numbers belong to."""
    lines = CPU_INFO.read_text().splitlines() if CPU_INFO.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    processor = models[0] if models else platform.processor()
    return f"{processor}, {os.cpu_count()} processors; {machine}; torch {torch.__version__}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown, padded so that it reads well as it is: the first column left, numbers right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]
        for row in (header, rule, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
