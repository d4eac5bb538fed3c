"""How likely a model finds a text."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from model import Transformer, evaluation_mode

ROWS_AT_ONCE = 128  # of logits, 50,257 numbers each


@torch.inference_mode()
def log_probabilities(model: Transformer, ids: Sequence[int]) -> Tensor:
    """Of ids[1:], each from what precedes it: (N - 1,) float32.

    Beyond the context, windows overlap by half, so a token has at least that much before it.
    """
    ids = torch.tensor(ids, device=model.device)
    overlap = max(1, model.seq_len // 2)
    known, losses = 1, [torch.zeros(0)]  # ids[:known] have been predicted, or are the start
    with evaluation_mode(model):
        while known < len(ids):
            start = max(0, known - overlap)
            window = ids[start : start + model.seq_len + 1]
            hidden = model.hidden_states(window[None, :-1])[0, known - start - 1 :]
            targets = ids[known : start + len(window)]
            for at in range(0, len(targets), ROWS_AT_ONCE):
                part = slice(at, at + ROWS_AT_ONCE)
                logits = model.head(hidden[part]).float()
                losses.append(F.cross_entropy(logits, targets[part], reduction="none").cpu())
            known = start + len(window)
    return -torch.cat(losses)
