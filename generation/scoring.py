"""How likely a model finds a text."""

from collections.abc import Sequence
from functools import partial
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F

from generation.decoding import evaluation_mode, window_start
from model import Transformer

ROWS_AT_ONCE = 128  # of logits, 50,257 numbers each


@torch.inference_mode()
def log_probabilities(model: Transformer, ids: Sequence[int]) -> Tensor:
    """Of ids[1:], each from what precedes it: (N - 1,) float32.

    Beyond the context that is the window from which the model would have written the token.
    """
    ids, logs = torch.tensor(ids, device=model.device), [torch.zeros(0)]
    begin = partial(window_start, seq_len=model.seq_len)
    with evaluation_mode(model):
        for start, lengths in groupby(range(1, len(ids)), begin):  # of what precedes a token
            wanted = [*lengths]
            hidden = model.hidden_states(ids[None, start : wanted[-1]])[0, wanted[0] - start - 1 :]
            parts = hidden.split(ROWS_AT_ONCE), ids[wanted].split(ROWS_AT_ONCE)
            for states, targets in zip(*parts, strict=True):
                logits = model.head(states).float()
                logs.append(-F.cross_entropy(logits, targets, reduction="none").cpu())
    return torch.cat(logs)
