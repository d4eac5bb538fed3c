"""Numbers about a run: the validation loss, the history of losses, the plot."""

import math
from collections import deque
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch


@dataclass(frozen=True)
class Evaluation:
    """The model on the validation part after `step` updates; the loss is in nats a token."""

    step: int
    tokens_seen: int
    loss: float
    bits_per_byte: float

    @property
    def perplexity(self) -> float:
        """exp(loss), inf where that overflows."""
        return math.exp(self.loss) if self.loss < 700 else math.inf


@dataclass
class History:
    """What a run has measured so far: the loss of every update, and the evaluations."""

    train_losses: list[float] = field(default_factory=list)  # of update 0, 1, ...
    evaluations: list[Evaluation] = field(default_factory=list)
    num_skipped: int = 0  # updates left out because a float16 gradient overflowed

    def is_evaluated(self, step: int) -> bool:
        return any(evaluation.step == step for evaluation in self.evaluations)

    @property
    def best(self) -> Evaluation:
        """The evaluation with the lowest loss, the first of equals."""
        return min(self.evaluations, key=lambda evaluation: evaluation.loss)

    @property
    def num_evaluations_since_best(self) -> int:
        return len(self.evaluations) - 1 - self.evaluations.index(self.best)

    def report(self) -> str:
        """The latest evaluation and the mean training loss since the one before, in one line."""
        latest = self.evaluations[-1]
        since = self.evaluations[-2].step if len(self.evaluations) > 1 else 0
        losses = self.train_losses[since:]
        train_loss = f"{np.mean(losses):.3f}" if losses else "  -  "
        return (
            f"step {latest.step:>6,}  train {train_loss}  val {latest.loss:.3f}  "
            f"ppl {latest.perplexity:,.1f}  bits/byte {latest.bits_per_byte:.3f}"
            + (f"  {self.num_skipped} skipped" if self.num_skipped else "")
        )

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for a checkpoint."""
        return {
            "train_losses": torch.tensor(self.train_losses, dtype=torch.float64),
            "evaluations": [asdict(evaluation) for evaluation in self.evaluations],
            "num_skipped": self.num_skipped,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> "History":
        evaluations = [Evaluation(**evaluation) for evaluation in state["evaluations"]]
        return cls(state["train_losses"].tolist(), evaluations, state["num_skipped"])


class Progress:
    """The latest update's numbers and the pace of the last fifty, as a text for the bar."""

    def __init__(self) -> None:
        self._pace: deque[tuple[int, float]] = deque(maxlen=50)  # (tokens, seconds) of updates
        self._latest = ""

    def add(
        self,
        *,
        loss: float,
        learning_rate: float,
        grad_norm: float,
        num_tokens: int,
        seconds: float,
        memory_bytes: int,
    ) -> None:
        self._pace.append((num_tokens, seconds))
        tokens, total_seconds = map(sum, zip(*self._pace, strict=True))
        self._latest = (
            f"loss {loss:.3f}  lr {learning_rate:.1e}  norm {grad_norm:.2f}  "
            f"{tokens / total_seconds:,.0f} tok/s  {memory_bytes / 1e9:.1f} GB"
        )

    def __str__(self) -> str:
        return self._latest
