"""How likely a model finds a text."""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F

from generation.decoding import evaluation_mode, window_start
from model import Transformer

ROWS_AT_ONCE = 128  # of logits, 50,257 numbers each


def log_probabilities(model: Transformer, ids: Sequence[int]) -> Tensor:
    """Of ids[1:], each from what precedes it: (N - 1,) float32."""
    logs = [-F.cross_entropy(*pair, reduction="none").cpu() for pair in predictions(model, ids)]
    return torch.cat([torch.zeros(0), *logs])


def likeliest(
    model: Transformer, ids: Sequence[int], num: int
) -> Iterator[tuple[float, list[tuple[float, int]]]]:
    """For each of ids[1:] its probability, and the `num` likeliest tokens there after theirs."""
    for logits, targets in predictions(model, ids):
        shares = logits.softmax(-1)
        own, tops = shares.gather(1, targets[:, None])[:, 0], shares.topk(num)
        for share, *best in zip(
            own.tolist(), tops.values.tolist(), tops.indices.tolist(), strict=True
        ):
            yield share, [*zip(*best, strict=True)]


@torch.inference_mode()
def predictions(model: Transformer, ids: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Logits (n, V) and what came there (n,), for ids[1:] part by part.

    Beyond the context they are of the window from which the model would have written the token.
    """
    ids = torch.tensor(ids, device=model.device)
    begin = partial(window_start, seq_len=model.seq_len)
    with evaluation_mode(model):
        for start, lengths in groupby(range(1, len(ids)), begin):  # of what precedes a token
            wanted = [*lengths]
            hidden = model.hidden_states(ids[None, start : wanted[-1]])[0, wanted[0] - start - 1 :]
            parts = hidden.split(ROWS_AT_ONCE), ids[wanted].split(ROWS_AT_ONCE)
            for states, targets in zip(*parts, strict=True):
                yield model.head(states).float(), targets
