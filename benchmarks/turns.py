"""Contestants take turns, a step at a time, so that what slows the machine down slows all."""

import io
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, redirect_stdout, suppress
from dataclasses import dataclass, field
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from system.machine import Machine
from system.process import describe, log

REST_SECONDS = 0.2  # before a step, so that the threads of the one before have stopped waiting
Steps = Iterator[object]  # makes a step each time it is asked for the next; begins at the first
Rows = dict[str, dict[str, str]]  # the cells of a table, by row and column


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
    nanogpt: Path | None = field(default=None, repr=False)  # a checkout that takes part
    prompt_tokens: int = field(default=0, repr=False)  # that each row of the batch continues
    new_tokens: int = field(default=0, repr=False)

    def machine(self) -> Machine:
        return Machine.choose(self.device, self.precision)

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
    memory_bytes: int = 0  # at the peak, torch and all
    failure: str = ""

    @property
    def median_seconds(self) -> float:
        return float(np.median(self.seconds))

    @property
    def gflops(self) -> float:
        return self.task.flops / self.median_seconds / 1e9

    def cells(self) -> dict[str, str]:
        """What a table says of the median step, and of the middle half of them all."""
        fast, slow = self.task.num_tokens / np.quantile(self.seconds, [0.25, 0.75])
        return {
            "tokens/s": f"{self.task.num_tokens / self.median_seconds:,.0f}",
            "middle half": f"{slow:,.0f}-{fast:,.0f}",
            "milliseconds": f"{1e3 * self.median_seconds:,.1f}",
            "peak memory": f"{self.memory_bytes / 1e9:.2f} GB",
            "GFLOP/s": f"{self.gflops:,.0f}",
        }


def take_turns(contestants: Sequence[Contestant], *, num_warm_ups: int = 2) -> list[Contestant]:
    """Those that could run, with the steps that follow their warm-ups; the others are named."""
    context, pairs = get_context("spawn"), []  # nobody shares settings, caches or peak memory
    with ExitStack() as stack:
        previous = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited: this process ends them
        for contestant in contestants:
            connection, other_end = context.Pipe()
            process = context.Process(target=serve, args=(contestant, other_end), daemon=True)
            process.start()
            other_end.close()
            stack.callback(process.join)
            stack.callback(process.terminate)
            pairs.append((contestant, connection))
        signal.signal(signal.SIGINT, previous)
        turns = product(range(num_warm_ups + contestants[0].task.steps), pairs)
        for turn, (contestant, connection) in tqdm([*turns], leave=False, disable=None):
            if contestant.failure:
                continue
            time.sleep(REST_SECONDS)
            try:
                with suppress(OSError):  # one that has ended already may have said why
                    connection.send(True)
                seconds, contestant.memory_bytes, contestant.failure = connection.recv()
                contestant.seconds += [seconds] * (turn >= num_warm_ups)
            except (EOFError, OSError):
                contestant.failure = "its process was killed"
            if contestant.failure:
                log(f"left out: {contestant.name}: {contestant.failure}")
    return [contestant for contestant in contestants if not contestant.failure]


def serve(contestant: Contestant, connection: Connection) -> None:
    """The contestant's process: asked for a step, it answers with seconds, bytes and failure."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Windows lets none inherit that
    try:
        with redirect_stdout(io.StringIO()):  # some peers greet
            machine = contestant.task.machine()
            steps = contestant.build(contestant.task, machine)
            while connection.recv():
                start = time.perf_counter()
                next(steps)
                torch.get_device_module(machine.device).synchronize()
                connection.send((time.perf_counter() - start, machine.memory_in_use(), ""))
    except Exception as error:  # a peer that does not run here is a row less, not the end
        connection.send((0.0, 0, describe(error)))


def table(rows: Rows, *, corner: str = "") -> str:
    """Markdown of the cells by row and column, padded so that it reads well as it is."""
    columns = dict.fromkeys(column for cells in rows.values() for column in cells)
    lines = [[corner, *columns]]
    lines += [[name, *(cells.get(key, "-") for key in columns)] for name, cells in rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
