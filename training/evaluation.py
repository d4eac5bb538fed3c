"""How good the model is on text that it has not seen."""

import math
from collections.abc import Iterator

from torch import Tensor, nn

from model import evaluation_mode


def mean_loss(objective: nn.Module, ids: Tensor, *, seq_len: int, batch_size: int) -> float:
    """Mean next-token loss in nats over ids (N,): every token after the first is predicted once.

    `objective(inputs, targets, num_tokens=1)` gives the summed loss of a batch.
    """
    total = 0.0
    with evaluation_mode(objective):
        for inputs, targets in evaluation_batches(ids, seq_len=seq_len, batch_size=batch_size):
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
