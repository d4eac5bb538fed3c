"""`history.jsonl`: what a run has measured, a JSON object a line, for people and other tools.

The first line has the config and the environment. Each other line is a report: one every LOG_FREQ
updates and one at each evaluation.
"""

import errno
import json
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reports.history import History, UpdateRecord
from system.files import write_durably

LOG_FREQ = 10  # updates from line to line: a long run's file stays small
Line = dict[str, Any]


def line_of(
    history: History,
    start: int,
    stop: int,
    *,
    recent: Sequence[UpdateRecord] = (),
    sample: str = "",
) -> Line:
    """The report on the updates start to stop (not included) and on an evaluation after them.

    Losses are means in nats a token. What is not known is None, as are numbers that are not finite.
    """
    past = next(done for done in reversed(history.evaluations) if done.step <= stop)
    evaluation = past if past.step == stop else None
    new = list(recent)[-(stop - start) :] if stop > start else []
    rates, seconds = history.learning_rates[start:stop], sum(record.seconds for record in new)
    line = {
        "step": stop,
        "tokens": past.tokens_seen + sum(history.num_tokens[past.step : stop]),
        "train_loss": mean(history.train_losses[start:stop]),
        "val_loss": evaluation and evaluation.loss,
        "perplexity": evaluation and evaluation.perplexity,
        "bits_per_byte": evaluation and evaluation.bits_per_byte,
        **history.baselines,
        "learning_rate": rates[-1] if rates else None,
        "grad_norm": mean([record.grad_norm for record in new]),
        "tokens_per_second": sum(record.num_tokens for record in new) / seconds if new else None,
        "memory_bytes": new[-1].memory_bytes if new else None,
        "skipped": history.num_skipped,
        "sample": sample or None,
    }
    return {name: value if is_plain(value) else None for name, value in line.items()}


def mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if len(values) else None


def is_plain(value: Any) -> bool:
    """Whether JSON has it: not for inf, nan."""
    return not isinstance(value, float) or math.isfinite(value)


def lines_of(history: History, start: int, stop: int) -> Iterator[Line]:
    """The reports on the updates start to stop as far as a checkpoint's history tells them."""
    evaluated = {done.step for done in history.evaluations}
    regular = range(0, stop, LOG_FREQ)
    steps = sorted({*regular[1:], *evaluated} & {*range(start, stop)})
    for before, step in zip([start, *steps], steps, strict=False):
        yield line_of(history, before, step)


class HistoryFile:
    """A file of whole lines; each is there once, however often the run was stopped or killed.

    A run that goes on keeps its lines up to the step of its checkpoint. What the file lacks, after
    a full disk or in another folder, comes from the history at the next evaluation.
    """

    def __init__(self, path: Path, about: Callable[[], Line]) -> None:
        self.path, self.about = path, about
        self.start = time.monotonic()
        self.is_complete, self.has_failed = False, False

    def __call__(self, history: History, line: Line) -> None:
        """Adds the line of the history's last step."""
        if self.has_failed and line["val_loss"] is None:
            return  # that was said already; the next evaluation tries again
        try:
            if not self.is_complete:
                self.begin(history, line["step"])
            append(self.path, line | {"seconds": round(time.monotonic() - self.start, 3)})
        except BaseException:
            self.is_complete, self.has_failed = False, True
            raise
        self.is_complete, self.has_failed = True, False

    def begin(self, history: History, step: int) -> None:
        """Writes the head and the lines of the steps before this one."""
        about = self.about()
        head, lines = read(self.path)
        if not head and self.path.exists():
            raise FileExistsError(errno.EEXIST, "No history of a run", str(self.path))
        is_ours = head.get("run_id") == about["run_id"]
        lines = [line for line in lines if is_ours and line["step"] < step]
        told = lines[-1] if lines else {"step": -1}
        self.start = min(self.start, time.monotonic() - (told.get("seconds") or 0))
        rewrite(self.path, [about, *lines, *lines_of(history, told["step"] + 1, step)])

    def finish(self, history: History) -> None:
        """Writes what the run has found since its start into the first line."""
        about = self.about()
        head, lines = read(self.path)
        if head.get("run_id") == about["run_id"]:
            rewrite(self.path, [about, *lines])


def rewrite(path: Path, lines: Sequence[Line]) -> None:
    content = b"".join(map(as_bytes, lines))
    write_durably(path, lambda file: file.write(content))


def as_bytes(line: Line) -> bytes:
    """A line of ASCII, in which no character commands a terminal."""
    return json.dumps(line, allow_nan=False).replace("\x7f", "\\u007f").encode() + b"\n"


def append(path: Path, line: Line) -> None:
    """Adds a line to a file that is there, whole or not at all."""
    content = as_bytes(line)
    with path.open("r+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if file.write(content) < len(content):  # the disk has room for a part of it
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def read(path: Path) -> tuple[Line, list[Line]]:
    """The head and the reports of a file; {} and none of one that is missing or no history.

    Lines that a power cut has torn count for nothing.
    """
    try:
        rows = path.read_bytes().splitlines()
    except FileNotFoundError:
        rows = []
    found = [row for row in map(parsed, rows) if isinstance(row, dict)]
    head = found[0] if found and "run_id" in found[0] else {}
    reports = [row for row in found[1:] if isinstance(row.get("step"), int) and "tokens" in row]
    return head, reports if head else []


def parsed(row: bytes) -> Any:
    try:
        return json.loads(row)
    except ValueError:
        return None
