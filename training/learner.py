"""What learns: one update of the weights, and how good the model is on other text."""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from model import Transformer, evaluation_mode
from reports.history import UpdateRecord
from system.errors import NonFiniteError
from system.machine import Machine
from training.loss import NextTokenLoss
from training.optim import build_optimizer, clip_gradients, set_learning_rate


class Learner:
    """A model with what teaches it; it knows no files, no schedule and no text."""

    def __init__(
        self, model: Transformer, machine: Machine, config: dict[str, Any], *, num_shared: int = 1
    ) -> None:
        self.model, self.machine = model, machine
        self.config = config
        is_cpu = machine.device.type == "cpu"
        model.use_attention("written" if is_cpu else "torch")
        chunk_size = 1024 if is_cpu else 4096
        objective = NextTokenLoss(model, num_shared=num_shared, chunk_size=chunk_size)
        self.objective = machine.compiled(objective, config["compile"])
        self.optimizer = build_optimizer(
            model, config["optimizer"], weight_decay=config["weight_decay"]
        )
        self.scaler = machine.gradient_scaler()

    def update(self, inputs: Tensor, targets: Tensor, learning_rate: float) -> UpdateRecord:
        """Learns from rows of the table (B, T); NonFiniteError leaves the weights as they were."""
        start = time.perf_counter()
        set_learning_rate(self.optimizer, learning_rate)
        loss = self.accumulate_gradients(inputs, targets)
        self.scaler.unscale_(self.optimizer)
        norm = clip_gradients(self.model.parameters(), self.config["max_grad_norm"])
        loss, norm = torch.stack([loss, norm]).tolist()  # the only wait for a GPU in an update
        is_applied = math.isfinite(norm)
        is_scaled = self.scaler.is_enabled() and self.scaler.get_scale() >= 1  # perhaps too much
        if not math.isfinite(loss) or not (is_applied or is_scaled):
            raise NonFiniteError(f"loss {loss}, gradient norm {norm}")
        if is_applied:
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

    def accumulate_gradients(self, inputs: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of the whole batch; its gradient is summed up micro-batch by micro-batch."""
        micro_size = self.config["batch_size"]
        total = torch.zeros((), device=inputs.device)
        for x, y in zip(inputs.split(micro_size), targets.split(micro_size), strict=True):
            with self.machine.autocast():
                loss = self.objective(x, y, num_tokens=targets.numel())
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    def mean_loss(self, ids: Tensor) -> float:
        """Mean next-token loss over ids (N,), in nats: all but the first are predicted once."""
        total, sizes = 0.0, (self.config["seq_len"], self.config["batch_size"])
        with evaluation_mode(self.objective), self.machine.autocast():
            for inputs, targets in evaluation_batches(ids, *sizes):
                total += self.objective(inputs, targets, num_tokens=1).item()
        return total / (len(ids) - 1)


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
