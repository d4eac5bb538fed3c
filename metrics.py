"""Numbers about a run: the validation loss, the history of losses, the plot."""

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from files import write_durably

PLOTTED_POINTS = 300


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


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """No dropout and no gradients inside; the mode it had afterwards."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        module.train(was_training)


def mean_loss(
    objective: nn.Module,
    ids: Tensor,
    *,
    seq_len: int,
    batch_size: int,
    poll: Callable[[], None] = lambda: None,
) -> float:
    """Mean next-token loss in nats over ids (N,): every token after the first is predicted once.

    `objective(inputs, targets, num_tokens=1)` gives the summed loss of a batch. `poll` is called
    before each batch and may raise to give up.
    """
    total = 0.0
    with evaluation_mode(objective):
        for inputs, targets in evaluation_batches(ids, seq_len=seq_len, batch_size=batch_size):
            poll()
            total += objective(inputs, targets, num_tokens=1).item()
    return total / (len(ids) - 1)


def evaluation_batches(
    ids: Tensor, *, seq_len: int, batch_size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets (B, T) that cover ids (N,) once; the last window may be shorter."""
    num_whole = (len(ids) - 1) // seq_len
    whole = num_whole * seq_len
    inputs = ids[:whole].view(num_whole, seq_len)
    targets = ids[1 : whole + 1].view(num_whole, seq_len)
    yield from zip(inputs.split(batch_size), targets.split(batch_size), strict=True)
    if whole < len(ids) - 1:
        yield ids[None, whole:-1], ids[None, whole + 1 :]


def bits_per_byte(loss: float, num_tokens: int, num_bytes: int) -> float:
    """The loss of `num_tokens` tokens in bits, shared among the bytes of their text."""
    return loss * num_tokens / math.log(2) / num_bytes


def plot_history(
    path: Path,
    history: History,
    *,
    tokens_seen: Callable[[int], int],
    learning_rate: Callable[[int], float],
) -> None:
    """Draws losses, perplexity and learning rate against tokens seen into a PNG file.

    `tokens_seen(step)` and `learning_rate(step)` are functions of the number of updates made.
    """
    from matplotlib.figure import Figure  # not pyplot: needs no display and keeps no global state
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, rates = figure.subplots(2, sharex=True, height_ratios=[3, 1])

    steps, means = binned(history.train_losses, max_points=PLOTTED_POINTS)
    losses.plot([tokens_seen(step) for step in steps], means, lw=1, label="training")
    evaluations = history.evaluations
    losses.plot(
        [evaluation.tokens_seen for evaluation in evaluations],
        [evaluation.loss for evaluation in evaluations],
        "o-",
        ms=4,
        label="validation",
    )
    losses.set(ylabel="loss (nats per token)", title="Training and validation loss")
    losses.grid(alpha=0.3)
    losses.legend()
    add_perplexity_axis(losses)

    steps = range(len(history.train_losses))
    rates.plot([tokens_seen(step) for step in steps], [learning_rate(step) for step in steps])
    rates.set(xlabel="tokens seen", ylabel="learning rate", ylim=(0, None))
    rates.grid(alpha=0.3)
    rates.xaxis.set_major_formatter(EngFormatter(sep=""))
    write_durably(path, lambda file: figure.savefig(file, format="png", dpi=120))


def add_perplexity_axis(losses: Any) -> None:
    """A second scale on the right of the loss axes: perplexity = exp(loss)."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis = losses.secondary_yaxis(
        "right", functions=(np.exp, lambda value: np.log(np.maximum(value, 1e-9)))
    ).yaxis
    round_numbers = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]
    axis.set_major_locator(FixedLocator(round_numbers))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_label_text("perplexity")


def binned(values: Sequence[float], *, max_points: int) -> tuple[list[int], list[float]]:
    """End and mean of equal bins: binned([4, 2, 3], max_points=2) -> ([2, 3], [3.0, 3.0])."""
    size = max(1, -(-len(values) // max_points))
    ends = [min(start + size, len(values)) for start in range(0, len(values), size)]
    means = [float(np.mean(values[start : start + size])) for start in range(0, len(values), size)]
    return ends, means
