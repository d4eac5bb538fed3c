"""What a trained model expects of each next token, as a part of what another one learns.

A new model of the same shape that learns from a trained one beside the text becomes better than
that was ("born again", Furlanello et al. 2018): what comes next is one token in the text, and all
that could have come in what a teacher expects, so that the same text teaches more.

Shapes: N tokens, C channels, V rows of the table.
"""

import math

import torch
from torch import Tensor

from adapters.products import FrozenProduct
from model import Transformer

TAUGHT = 0.7  # the teacher's share of the target; the text has the rest (docs/recipe.md)


class Teacher:
    """A model that learns no more; the last row of its table stands for `num_shared` tokens."""

    def __init__(self, model: Transformer, *, num_shared: int) -> None:
        self.model = model.eval().requires_grad_(False)
        self.product = FrozenProduct()
        self.log_shared = math.log(num_shared)

    def pull_(self, logits: Tensor, sums: Tensor, targets: Tensor, hidden: Tensor) -> None:
        """Moves the gradient by `logits` (N, V), each row `sums` (N,) times as large as it is.

        Of the target, so far the token of `targets` (N,), a part becomes what the teacher's final
        states (N, C) say.
        """
        table = self.product.cast(self.model.input_embedding.embedding.weight, logits.dtype)
        expected = hidden.to(logits.dtype) @ table.T
        expected[:, -1] += self.log_shared
        parts = TAUGHT * sums[:, None]
        logits.sub_(torch.softmax(expected, dim=-1).mul_(parts))
        logits.scatter_add_(1, targets[:, None], parts.to(logits.dtype))
