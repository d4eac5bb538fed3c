"""What learns: one update of the weights, and how good the model is on other text."""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from itertools import count
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor

from generation.decoding import evaluation_mode
from model import Transformer, hashed
from reports.history import UpdateRecord
from system.errors import NonFiniteError, OutOfRoomError
from system.machine import Machine
from system.process import log
from training.engines import engine_for
from training.loss import CHUNK_SIZE, NextTokenLoss
from training.memory import NO_ROOM, recompute_activations
from training.optim import (
    build_optimizer,
    clip_gradients,
    set_learning_rate,
    set_weight_decay,
)
from training.processes import ALONE, Processes
from training.settings import AUTO
from training.teacher import Teacher

GRADIENTS = ("exp_avg", "momentum")  # what optimizers call their mean of them
MOST_TRIES = 3
GENTLER = 0.5  # a teacher keeps from learning by heart: so much of the decay is enough
PIECE, EVALUATED, RECOMPUTED = "piece_size", "evaluation_size", "checkpoint_activations"


class Learner:
    """A model with what teaches it; it knows no files, no schedule and no text.

    In a team it computes its share of the rows; gradients and losses are those of all of them.
    """

    def __init__(
        self,
        model: Transformer,
        machine: Machine,
        config: dict[str, Any],
        *,
        num_shared: int = 1,
        separator: int | None = None,
        team: Processes = ALONE,
    ) -> None:
        self.model, self.machine, self.team = model, machine, team
        self.config = config
        model.use_attention(machine.ways.get("attention", "torch"))
        chunk_size = int(machine.ways.get("chunk_size", CHUNK_SIZE))
        self.loss = NextTokenLoss(
            model, num_shared=num_shared, chunk_size=chunk_size, separator=separator
        )
        self.memory = {PIECE: config["batch_size"], EVALUATED: config["batch_size"]}
        self.memory[RECOMPUTED] = config["checkpoint_activations"]
        if self.memory[RECOMPUTED]:
            recompute_activations(model)
        self.engine = engine_for(team, self.loss, machine, config)
        self.scaler = machine.gradient_scaler()
        self.forget_gradients()
        self.regularize(config)

    def learn_from(self, teacher: Teacher) -> None:
        """From now on part of each target is what the teacher expects; moments start anew."""
        teacher.model.use_attention(self.machine.ways.get("attention", "torch"))
        self.loss.teacher = teacher
        self.forget_gradients()
        self.regularize(self.config)

    def forget_gradients(self) -> None:
        """Gives the model an optimizer that has seen none."""
        self.optimizer = build_optimizer(self.model, self.config["optimizer"], weight_decay=0.0)

    def regularize(self, config: dict[str, Any]) -> None:
        """Has decay and the embedding's dropout be the config's from now on."""
        self.config = config
        decay = config["weight_decay"] * (GENTLER if self.loss.teacher else 1)
        set_weight_decay(self.optimizer, self.model, config["optimizer"], weight_decay=decay)
        if config["embedding_dropout"] != AUTO:  # else, outside of a run, it is as it was built
            self.model.positional_encoding.dropout.p = config["embedding_dropout"]

    def update(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        learning_rate: float,
        seeds: Tensor,
        share: float = 1.0,
    ) -> UpdateRecord:
        """Learns from rows of the table (B, T), whose dropout is a function of `seeds` (B,).

        The rate is for a whole batch, of which the rows are a `share`: each row counts as much as
        in another one. NonFiniteError leaves the weights as they were.
        """
        start = time.perf_counter()
        set_learning_rate(self.optimizer, learning_rate * share)
        loss = self.accumulate_gradients(inputs, targets, seeds)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.model.parameters(), self.config["max_grad_norm"])
        loss, norm = torch.stack([loss, norm]).tolist()  # the only wait for a GPU in an update
        is_applied = math.isfinite(norm)
        is_scaled = self.scaler.is_enabled() and self.scaler.get_scale() >= 1  # perhaps too much
        if not math.isfinite(loss) or not (is_applied or is_scaled):
            raise NonFiniteError(f"loss {loss}, gradient norm {norm}")
        if is_applied:
            with self.machine.autocast():  # an optimizer may have products too
                self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        return UpdateRecord(
            loss=loss,
            grad_norm=norm,
            learning_rate=learning_rate,
            num_tokens=targets.numel(),
            seconds=time.perf_counter() - start,
            memory_bytes=self.machine.memory_in_use(),
            is_applied=is_applied,
        )

    def seconds_per_update(
        self, inputs: Tensor, targets: Tensor, seeds: Tensor, *, measured: float
    ) -> float:
        """How long such an update takes: the median of some before the first, at a rate of 0.

        Few rows warm up, unless each shape is compiled; then there are as many updates as last
        `measured` seconds, but one at least. Nothing stays of them.
        """

        def timed(num_rows: int) -> float:
            start = time.perf_counter()
            x, y, own_seeds = (tensor[:num_rows] for tensor in (inputs, targets, seeds))
            with suppress(NonFiniteError):  # the first real one will say so
                self.update(x, y, learning_rate=0.0, seeds=own_seeds)
            self.optimizer.zero_grad()
            return time.perf_counter() - start

        scale, is_compiled = self.scaler.state_dict(), self.engine.objective is not self.loss
        timed(len(inputs) if is_compiled else self.team.size)
        seconds = [timed(len(inputs))]
        num_more = self.team.highest(round(measured / seconds[0]))
        seconds += [timed(len(inputs)) for _ in range(num_more)]
        self.optimizer.state.clear()
        self.scaler.load_state_dict(scale)
        return median(seconds)

    def accumulate_gradients(self, inputs: Tensor, targets: Tensor, seeds: Tensor) -> Tensor:
        """Mean loss of the whole batch (B, T); its gradient is summed up piece by piece."""
        most = -(-len(inputs) // self.team.size)  # rows of a process
        total = self.fitting(PIECE, most, partial(self.sum_over_pieces, inputs, targets, seeds))
        self.engine.synchronise(inputs, targets)
        return self.team.sum(total) / self.team.size

    def fitting(self, what: str, most: int, compute: Callable[[], Tensor]) -> Tensor:
        """What `compute` returns when the memory of all processes has room for it.

        Until then all of them start again, with fewer windows at once.
        """
        for num_tries in count(1):
            with self.engine.attempt() as tried:
                result = compute()
            if not self.team.highest(tried.has_failed):
                break
            self.optimizer.zero_grad()
            self.use_less_memory(what, most, num_tries)
        return result

    def sum_over_pieces(self, inputs: Tensor, targets: Tensor, seeds: Tensor) -> Tensor:
        """Loss of this process's rows, few at a time; their gradient is added to what there is."""
        num_tokens = max(1, self.loss.num_predicted(inputs, targets))
        num_tokens /= self.team.size  # an engine takes the mean over processes
        total = torch.zeros((), device=inputs.device)
        pieces = self.pieces(inputs, targets, seeds)
        for number, (x, y, own_seeds) in enumerate(pieces, 1):
            with self.engine.piece(is_last=number == len(pieces)):
                with self.machine.autocast():
                    loss = self.engine.trained(x, y, num_tokens=num_tokens, seeds=own_seeds)
                self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def pieces(self, *batch: Tensor) -> list[tuple[Tensor, ...]]:
        """This process's rows, as many pieces as in each process: the last may have no rows."""
        size = self.memory[PIECE]
        most = -(-len(batch[0]) // self.team.size)  # rows of a process
        rows = [self.team.share(tensor) for tensor in batch]
        starts = range(0, most, size)
        return [tuple(tensor[start : start + size] for tensor in rows) for start in starts]

    def mean_loss(self, ids: Tensor) -> float:
        """Mean next-token loss over ids (N,), in nats: all but the first are predicted once.

        With a separator the first one of each document is not predicted either.
        """
        total = self.fitting(EVALUATED, len(ids), partial(self.sum_over_windows, ids))
        return self.team.sum(total).item() / max(1, self.loss.num_predicted(ids[:-1], ids[1:]))

    def sum_over_windows(self, ids: Tensor) -> Tensor:
        """Loss of this process's share of the windows that ids (N,) are cut into."""
        batches = list(evaluation_batches(ids, self.config["seq_len"], self.memory[EVALUATED]))
        own = self.team.share(batches)
        most = -(-len(batches) // self.team.size)
        own += [(ids[:1, None][:0],) * 2] * (most - len(own))  # as many in each process
        total = torch.zeros((), dtype=torch.float64)
        with evaluation_mode(self.engine.objective), self.machine.autocast():
            for inputs, targets in own:
                total += self.engine.objective(inputs, targets, num_tokens=1).item()
        return total

    def use_less_memory(self, what: str, most: int, num_tries: int) -> None:
        """Halves how many windows are computed at once; at last keeps fewer activations."""
        size = min(self.memory[what], most)
        if size > 1:
            self.memory[what] = size // 2
            log(f"memory    full: {size // 2} windows at once from now on, batches as they were")
        elif what == PIECE and not self.memory[RECOMPUTED]:
            self.fit({RECOMPUTED: True})
            log("memory    full: activations are computed twice from now on, in place of kept")
        elif num_tries == MOST_TRIES:  # another program may have needed it for a moment
            raise OutOfRoomError(NO_ROOM)

    def fit(self, memory: dict[str, Any]) -> None:
        """Takes over how a run has come to fit into the memory."""
        for name in (PIECE, EVALUATED):
            self.memory[name] = min(self.memory[name], memory.get(name, self.memory[name]))
        if memory.get(RECOMPUTED) and not self.memory[RECOMPUTED]:
            self.memory[RECOMPUTED] = True
            recompute_activations(self.model)
            self.engine.renew(self.config)

    def tensors(self) -> dict[str, Tensor]:
        """Weights, and what the optimizer keeps of their gradients: a mean of the latest."""
        if self.engine.is_sharded:  # no process has all of them
            return {}
        named = dict(self.model.named_parameters())
        found = {f"weights/{name}": weight for name, weight in named.items()}
        for name, weight in named.items():
            kept = self.optimizer.state.get(weight, {})
            for gradient in (kept[key] for key in GRADIENTS if key in kept):
                found[f"gradients/{name}"] = gradient
        return found


def dropout_seeds(seed: int, step: int, num_rows: int) -> Tensor:
    """An int64 for each row (B,) of global batch `step`, a function of (seed, step, row)."""
    start = np.random.SeedSequence([seed, step]).generate_state(1, np.uint64).view(np.int64)
    return hashed(torch.from_numpy(start) + torch.arange(num_rows))


def evaluation_batches(
    ids: Tensor, seq_len: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets (B, T) that cover ids (N,) once; the last window may be shorter."""
    num_whole = (len(ids) - 1) // seq_len
    whole = num_whole * seq_len
    inputs = ids[:whole].view(num_whole, seq_len)
    targets = ids[1 : whole + 1].view(num_whole, seq_len)
    yield from zip(inputs.split(batch_size), targets.split(batch_size), strict=True)
    if whole < len(ids) - 1:
        yield ids[None, whole:-1], ids[None, whole + 1 :]
