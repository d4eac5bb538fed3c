"""What one process of a torchrun does in the tests: trainings, one after the other in one start.

Each argument is one of them, as JSON: changes to the tiny config and, under "faults", what happens
to which ranks ahead of which update. Every process notes which rows it has computed.
"""

import faulthandler
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tiny_run import train_quickly, without_plots

from system.process import run_command
from training import team
from training.learner import Learner
from training.run import Run

SECONDS = 100  # after which a process that hangs says where
RANK = int(os.environ.get("RANK", 0))


def raise_error(run: Run) -> None:
    raise LookupError("a bug of ours")


def freeze(run: Run) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def spoil(run: Run) -> None:
    next(run.learner.model.parameters()).register_hook(lambda gradient: gradient * math.nan)


def fill_memory(run: Run, place: str) -> None:
    """Once, torch's own error in a forward or a backward pass of this process, or in evaluation."""

    def hook(*_: Any) -> None:
        if place == "evaluation" and run.learner.model.training:
            return
        handle.remove()
        raise torch.OutOfMemoryError("simulated")

    block = run.learner.model.blocks[-1]
    handle = {
        "forward": block.register_forward_hook,
        "evaluation": block.register_forward_hook,
        "backward": next(block.parameters()).register_hook,
    }[place](hook)


FAULTS: dict[str, Callable[[Run], Any]] = {
    "kill": lambda run: os.kill(os.getpid(), signal.SIGKILL),
    "freeze": freeze,
    "raise": raise_error,
    "nan": spoil,
    **{
        f"full in {place}": partial(fill_memory, place=place)
        for place in ("forward", "backward", "evaluation")
    },
    "signal": lambda run: os.kill(os.getpid(), signal.SIGTERM),
    "signal launcher": lambda run: os.kill(os.getppid(), signal.SIGTERM) or time.sleep(1),
}


def with_faults(update: Callable[[Run], None], faults: list[dict]) -> Callable[[Run], None]:
    def faulty(run: Run) -> None:
        for fault in faults:
            is_due = run.step == fault["step"] and RANK in fault["ranks"]
            if is_due and not (fault.get("only_first") and run.team.is_started_again):
                FAULTS[fault["do"]](run)
        update(run)

    return faulty


def noting_rows(pieces: Callable, path: Path) -> Callable:
    """Appends to the file what the process computes in an update, a line each."""

    def noted(learner: Learner, *batch: Any) -> list:
        found = pieces(learner, *batch)
        with path.open("a") as file:  # an update that starts again is noted again
            file.write(json.dumps([row for x, *_ in found for row in x.tolist()]) + "\n")
        return found

    return noted


def lead(faults: Sequence[dict] = (), of_rank: Sequence[dict] = (), **changes: Any) -> None:
    """One training; afterwards everything is as it was."""
    changes |= of_rank[RANK] if of_rank else {}
    update, pieces = Run.update, Learner.pieces
    folder = Path(changes["output_dir"])
    folder.mkdir(exist_ok=True)
    Learner.pieces = noting_rows(pieces, folder / f"rows-{RANK}.log")
    Run.update = with_faults(update, faults)
    try:
        train_quickly(**changes)
    finally:
        Run.update, Learner.pieces = update, pieces


def main() -> None:
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    without_plots()
    torch.set_num_threads(1)
    team.TIMEOUT = timedelta(seconds=float(os.environ.get("TEST_TIMEOUT", 100)))
    for argument in sys.argv[1:]:
        lead(**json.loads(argument))


if __name__ == "__main__":
    run_command(main)
