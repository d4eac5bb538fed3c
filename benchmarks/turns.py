"""Contestants take turns, a step at a time, so that what slows the machine down slows all."""

import io
import math
import re
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from system.machine import Machine, choose_device
from system.process import describe, log
from training.ways import machine_for

REST_SECONDS = 0.2  # before a step, so that the threads of the one before have stopped waiting
Steps = Iterator[object]  # makes a step each time it is asked for the next; begins at the first
Numbers = dict[str, float | list[float]]
Rows = dict[str, Numbers]  # what was measured, by row and column


@dataclass(frozen=True)
class Task:
    """What a contestant does: the model, the batch, the text's tokens, and how it is run."""

    batch_size: int = 8
    seq_len: int = 128
    embedding_dim: int = 256
    num_layers: int = 4
    num_heads: int = 8
    ffn_hidden_dim: int = 1024
    dropout: float = 0.1
    vocab_size: int = 50257
    num_used: int = 5178  # different tokens, as in the first megabyte of TinyStories
    seed: int = 0
    steps: int = 12
    device: str = "auto"
    precision: str = "auto"
    is_shared: bool = field(default=False, repr=False)  # the unused tokens share a row
    compiled: bool = field(default=False, repr=False)
    max_seconds: float = field(default=math.inf, repr=False)  # who is not done then is left out
    only: str = field(default="", repr=False)  # those whose names this pattern finds
    processes: bool = field(default=False, repr=False)  # as many as cores, of one thread each
    nanogpt: Path | None = field(default=None, repr=False)  # a checkout that takes part
    prompt_tokens: int = field(default=0, repr=False)  # that each row of the batch continues
    new_tokens: int = field(default=0, repr=False)

    def machine(self) -> Machine:
        return machine_for(asdict(self), self.num_rows)

    @property
    def num_tokens(self) -> int:
        """In a step: those written, or else those trained on."""
        return self.batch_size * (self.new_tokens or self.seq_len)

    @property
    def num_rows(self) -> int:
        """Of the embedding; the tokens in use are the first ones, so each is its own row."""
        return min(self.num_used + 1, self.vocab_size) if self.is_shared else self.vocab_size

    @property
    def flops(self) -> float:
        """Of a training step's matrix products, 2 a multiply-add; attention as a full square."""
        C, T = self.embedding_dim, self.seq_len
        layer = 4 * C * C + 2 * C * self.ffn_hidden_dim + 2 * T * C
        return 6.0 * self.batch_size * T * (self.num_layers * layer + C * self.num_rows)

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) of step `number`."""
        shape = (self.batch_size, self.seq_len + 1)
        windows = np.random.default_rng([self.seed, number]).integers(self.num_used, size=shape)
        return torch.from_numpy(windows[:, :-1]), torch.from_numpy(windows[:, 1:])


@dataclass
class Contestant:
    """Who takes part, all of it picklable, and what its steps took or why it is left out."""

    name: str
    task: Task
    build: Callable[[Task, Machine], Steps]
    seconds: list[float] = field(default_factory=list)
    first_seconds: float = math.nan  # of the very first step, compiling included
    values: list[float] = field(default_factory=list)  # the loss of each step, where it has one
    memory_bytes: int = 0  # at the peak, torch and all
    failure: str = ""

    @property
    def median_seconds(self) -> float:
        return float(np.median(self.seconds))

    @property
    def gflops(self) -> float:
        return self.task.flops / self.median_seconds / 1e9

    def numbers(self) -> Numbers:
        """What a table says of the median step, and of the middle half of them all."""
        fast, slow = self.task.num_tokens / np.quantile(self.seconds, [0.25, 0.75])
        return {
            "tokens/s": self.task.num_tokens / self.median_seconds,
            "middle half": [float(slow), float(fast)],
            "milliseconds": 1e3 * self.median_seconds,
            "first step, s": self.first_seconds,
            "peak memory, GB": self.memory_bytes / 1e9,
            "GFLOP/s": self.gflops,
        }


def take_turns(
    contestants: Sequence[Contestant], *, num_warm_ups: int = 2, together: bool | None = None
) -> list[Contestant]:
    """Those that could run, with the steps that follow their warm-ups; the others are named.

    On a CPU they run side by side. A GPU, whose memory they would share, has one at a time.
    """
    task = contestants[0].task
    contestants = [one for one in contestants if re.search(task.only, one.name)]
    if together is None:
        together = choose_device(task.device)[0].type == "cpu"
    deadline = time.monotonic() + task.max_seconds
    for group in [contestants] if together else [[contestant] for contestant in contestants]:
        run_group(group, num_warm_ups, deadline)
    return [contestant for contestant in contestants if not contestant.failure]


def run_group(contestants: Sequence[Contestant], num_warm_ups: int, deadline: float) -> None:
    """Each in a process of its own: nobody shares settings, caches or peak memory."""
    context, pairs = get_context("spawn"), []
    with ExitStack() as stack:
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: this process ends them
        for contestant in contestants:
            connection, other_end = context.Pipe()
            process = context.Process(target=serve, args=(contestant, other_end), daemon=True)
            process.start()
            other_end.close()
            stack.callback(process.join)
            stack.callback(process.kill)
            pairs.append((contestant, connection))
        signal.signal(signal.SIGINT, previous)
        turns = product(range(num_warm_ups + contestants[0].task.steps), pairs)
        for turn, (contestant, connection) in tqdm([*turns], leave=False, disable=None):
            if contestant.failure:
                continue
            time.sleep(REST_SECONDS * (len(contestants) > 1))
            ask(contestant, connection, deadline, is_counted=turn >= num_warm_ups)
            if contestant.failure:
                log(f"left out: {contestant.name}: {contestant.failure}")


def ask(
    contestant: Contestant, connection: Connection, deadline: float, *, is_counted: bool
) -> None:
    """Has the contestant make a step, and takes down what it says of it."""
    with suppress(OSError):  # one that has ended already may have said why
        connection.send(True)
    try:
        left = deadline - time.monotonic()
        if not connection.poll(None if left == math.inf else max(0.0, left)):
            contestant.failure = f"not done within {contestant.task.max_seconds:g} seconds"
            return
        seconds, value, contestant.memory_bytes, contestant.failure = connection.recv()
    except (EOFError, OSError):
        contestant.failure = "its process was killed"
        return
    if not contestant.values:
        contestant.first_seconds = seconds
    contestant.values.append(value)
    contestant.seconds += [seconds] * is_counted


def serve(contestant: Contestant, connection: Connection) -> None:
    """The contestant's process: a step for each question; answers with what it took, and gave."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Windows lets none inherit that
    try:
        with redirect_stdout(io.StringIO()):  # some peers greet
            machine = contestant.task.machine()
            steps = contestant.build(contestant.task, machine)
            while connection.recv():
                start = time.perf_counter()
                result = next(steps)
                torch.get_device_module(machine.device).synchronize()
                seconds = time.perf_counter() - start
                value = result if isinstance(result, float) else math.nan
                connection.send((seconds, value, machine.memory_in_use(), ""))
    except Exception as error:  # a peer that does not run here is a row less, not the end
        connection.send((0.0, math.nan, 0, describe(error)))
