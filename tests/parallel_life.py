"""What one process of a torchrun does in the tests: trainings, one after the other in one start.

Each argument is one of them, as JSON: changes to the tiny config and, under "faults", what happens
to which ranks ahead of which update. Every process notes which rows it has computed. Or it is no
training, but how to compute some "gradients", or updates with an "overflow".
"""

import faulthandler
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machines import plain_machine
from tiny_run import CONFIG, train_quickly, without_plots
from torch import Tensor, nn

from model import Transformer, build_transformer
from system.process import run_command
from training import team
from training.engines import whole
from training.learner import Learner, dropout_seeds
from training.loss import NextTokenLoss
from training.parallel import joined
from training.run import Run

SECONDS = 120  # of a training, after which a process that hangs says where
RANK = int(os.environ.get("RANK", 0))


def raise_error(run: Run) -> None:
    raise LookupError("a bug of ours")


def freeze(run: Run) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def spoil(run: Run) -> None:
    next(run.learner.model.parameters()).register_hook(lambda gradient: gradient * math.nan)


def fill_memory(run: Run, when: str, part: str = "blocks.0.feed_forward") -> None:
    """Once, torch's own error in a forward or a backward pass of this process, or in evaluation."""
    learner = run.learner

    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        if module.training == (when == "evaluation"):
            return
        handle.remove()
        output.register_hook(fail) if when == "backward" else fail()

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("simulated")

    def chunks(*factors: Tensor) -> Iterator:
        learner.loss._chunks = partial(NextTokenLoss._chunks, learner.loss)
        fail()
        yield

    if part == "loss":
        learner.loss._chunks = chunks
    else:
        handle = learner.model.get_submodule(part).register_forward_hook(hook)


FAULTS: dict[str, Callable[..., Any]] = {
    "kill": lambda run: os.kill(os.getpid(), signal.SIGKILL),
    "freeze": freeze,
    "raise": raise_error,
    "nan": spoil,
    "full": fill_memory,
    "signal": lambda run: os.kill(os.getpid(), signal.SIGTERM),
    "signal launcher": lambda run: os.kill(os.getppid(), signal.SIGTERM) or time.sleep(1),
}


def with_faults(update: Callable[[Run], None], faults: list[dict]) -> Callable[[Run], None]:
    def faulty(run: Run) -> None:
        for fault in faults:
            is_due = run.step == fault["step"] and RANK in fault["ranks"]
            if is_due and not (fault.get("only_first") and run.team.is_started_again):
                FAULTS[fault["do"]](run, **fault.get("how", {}))
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


def rows_and_model(num_rows: int) -> tuple[tuple[Tensor, ...], Transformer]:
    """Inputs, targets and seeds of rows, and a model of few weights: always the same."""
    torch.manual_seed(0)
    rows = torch.randint(53, (num_rows, 12))
    model = build_transformer(53, 11, 8, 2, 2, dropout=0.2, ffn_hidden_dim=12)
    return (rows[:, :-1], rows[:, 1:], dropout_seeds(1, 2, num_rows)), model


def save_gradients(path: str, parallel: str, cases: list[tuple[int, int]]) -> None:
    """The gradients by all processes for so many rows, of which so many are computed at once."""
    found = []
    with joined() as team:
        machine = plain_machine(team.start("cpu"))
        for num_rows, batch_size in cases:
            batch, model = rows_and_model(num_rows)
            config = {**CONFIG, "parallel": parallel, "batch_size": batch_size}
            Learner(model, machine, config, team=team).accumulate_gradients(*batch)
            found.append({name: whole(p.grad) for name, p in model.named_parameters()})
        if team.is_first:
            torch.save(found, path)
        team.part()


def save_overflow(path: str, parallel: str) -> None:
    """Notes what each process says of updates in float16; in one the last has an overflow.

    Of each the scale that follows, whether it was applied, and its loss.
    """
    said, (batch, model) = [], rows_and_model(5)
    with joined() as team:
        machine = plain_machine(team.start("cpu"), "float16")
        learner = Learner(model, machine, {**CONFIG, "parallel": parallel}, team=team)
        learner.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=2)
        forward = model.final_norm.forward
        for step in range(4):
            if step == 1 and team.rank == team.size - 1:
                model.final_norm.forward = lambda x: overflowing(forward(x))
            record = learner.update(*batch[:2], learning_rate=1e-3, seeds=batch[2])
            model.final_norm.forward = forward
            said.append([learner.scaler.get_scale(), record.is_applied, record.loss])
        told = team.gather(said)
        if team.is_first:
            Path(path).write_text(json.dumps(told))
        team.part()


def overflowing(x: Tensor) -> Tensor:
    """The same, though not its gradient."""
    x.register_hook(lambda gradient: gradient * 1e38)
    return x


def main() -> None:
    without_plots()
    torch.set_num_threads(1)
    team.TIMEOUT = timedelta(seconds=float(os.environ.get("TEST_TIMEOUT", 200)))
    for argument in sys.argv[1:]:
        faulthandler.dump_traceback_later(float(os.environ.get("TEST_SECONDS", SECONDS)), exit=True)
        case = json.loads(argument)
        special = {"gradients": save_gradients, "overflow": save_overflow}
        kind = next((kind for kind in special if kind in case), None)
        special[kind](**case[kind]) if kind else lead(**case)


if __name__ == "__main__":
    run_command(main)
