"""What a run has measured: a record of every update, the evaluations, the pace."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from typing import Any

import numpy as np
import torch

UNITS = {"days": 86_400, "hours": 3600, "minutes": 60, "s": 1}


@dataclass(frozen=True)
class UpdateRecord:
    """One update of the weights: mean loss in nats a token, norm of the gradient, what it took."""

    loss: float
    grad_norm: float
    learning_rate: float
    num_tokens: int
    seconds: float
    memory_bytes: int
    is_applied: bool  # False where a float16 gradient overflowed


@dataclass(frozen=True)
class Evaluation:
    """The model on the validation part after `step` updates; the loss is in nats a token.

    Where weights are averaged, it is the lower of two, and the other one stands beside it.
    """

    step: int
    tokens_seen: int
    loss: float
    bits_per_byte: float
    other_loss: float | None = None
    is_averaged: bool = False  # the loss is that of the averages

    @property
    def perplexity(self) -> float:
        """exp(loss), inf where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@dataclass
class History:
    """What a run has measured so far: three numbers of every update, and the evaluations."""

    train_losses: list[float] = field(default_factory=list)  # of update 0, 1, ...
    num_tokens: list[int] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    num_skipped: int = 0  # updates left out because a float16 gradient overflowed
    num_of_other_text: int = 0  # evaluations on the text before this one
    # Bits a byte of what needs no network, as far as they are known; a file has no need of them.
    baselines: dict[str, float] = field(default_factory=dict, compare=False)

    def add(self, record: UpdateRecord) -> None:
        self.train_losses.append(record.loss)
        self.num_tokens.append(record.num_tokens)
        self.learning_rates.append(record.learning_rate)
        self.num_skipped += not record.is_applied

    @property
    def judged(self) -> list[Evaluation]:
        """The evaluations that can be compared: those on the present text."""
        return self.evaluations[self.num_of_other_text :]

    @property
    def best(self) -> Evaluation:
        """The evaluation with the lowest loss, the first of equals; one on this text, if any."""
        return min(self.judged or self.evaluations, key=lambda evaluation: evaluation.loss)

    def num_no_better(self, tolerance: float = 0.0, *, after: int = -1) -> int:
        """How many of the evaluations since the best come last and reach 1 + tolerance times it.

        Only those after that step count: the others are of another model.
        """
        own = [done for done in self.judged if done.step > after]
        if not own:
            return 0
        best = min(own, key=lambda done: done.loss)
        bound, latest_first = (1 + tolerance) * best.loss, reversed(own[own.index(best) + 1 :])
        return len(list(takewhile(lambda done: done.loss >= bound, latest_first)))

    def report(self) -> str:
        """The latest evaluation and the mean training loss since the one before, in one line.

        The gap between them grows as soon as the model learns its text by heart.
        """
        latest = self.evaluations[-1]
        since = self.evaluations[-2].step if len(self.evaluations) > 1 else 0
        losses = self.train_losses[since:]
        train_loss = f"{np.mean(losses):.3f}" if losses else "  -  "
        gap = f"  gap {latest.loss - np.mean(losses):.3f}" if losses else ""
        other = "not averaged" if latest.is_averaged else "averaged"
        others = ", ".join(f"{name} {bits:.2f}" for name, bits in self.baselines.items())
        return (
            f"step {latest.step:>6,}  train {train_loss}  val {latest.loss:.3f}  "
            f"ppl {latest.perplexity:,.1f}  bits/byte {latest.bits_per_byte:.3f}"
            + (f" ({others})" if others else "")
            + gap
            + (f"  {other} {latest.other_loss:.3f}" if latest.other_loss is not None else "")
            + (f"  {self.num_skipped} skipped" if self.num_skipped else "")
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        return {
            "train_losses": torch.tensor(self.train_losses, dtype=torch.float64),
            "num_tokens": torch.tensor(self.num_tokens, dtype=torch.int64),
            "learning_rates": torch.tensor(self.learning_rates, dtype=torch.float64),
            "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
            "num_skipped": self.num_skipped,
            "num_of_other_text": self.num_of_other_text,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "History":
        """The history of a checkpoint; earlier versions have not noted tokens and rates."""
        none = torch.zeros(0)
        return cls(
            state["train_losses"].tolist(),
            state.get("num_tokens", none).tolist(),
            state.get("learning_rates", none).tolist(),
            [Evaluation(**evaluation) for evaluation in state["evaluations"]],
            state["num_skipped"],
            state.get("num_of_other_text", 0),
        )


def pace_of(recent: Sequence[UpdateRecord]) -> str:
    """The latest update in one line, with the speed of all of these; "" before the first."""
    if not recent:
        return ""
    latest = recent[-1]
    speed = sum(record.num_tokens for record in recent) / sum(record.seconds for record in recent)
    return (
        f"loss {latest.loss:.3f}  lr {latest.learning_rate:.1e}  norm {latest.grad_norm:.2f}  "
        f"{speed:,.0f} tok/s  {latest.memory_bytes / 1e9:.1f} GB"
    )


def in_time(seconds: float) -> str:
    """In a unit that suits: in_time(90) is 1.5 minutes."""
    unit = next((unit for unit, size in UNITS.items() if seconds >= size), "s")
    return f"{seconds / UNITS[unit]:.2g} {unit}"
