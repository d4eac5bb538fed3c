"""Next-token cross-entropy from hidden states, without keeping the logits of all tokens.

Shapes: B batch, T time, N = B * T tokens, C channels, V rows of the tied embedding.

The (N, V) logits would be the largest tensor of a training step, and the three products around
them are most of its work. So the tokens pass the head in chunks: the gradients of a chunk are
computed as soon as its logits are, and only d_hidden (N, C) and d_weight (V, C) are kept.
Products run in the autocast type; sums over V and sums over chunks are taken in float32.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from adapters.products import FrozenProduct, type_of_products
from model import Seeds, Transformer
from training.teacher import Teacher

CHUNK_SIZE = 1024  # tokens: few enough for memory, enough for speed
ALIGNED_ROWS = 64  # of the head: kernels like tables whose width divides by it
SAFE_LOGIT = 100  # 2^100 for each of 50,257 tokens is still far from the end of float32, 2^128
LOG2_E = math.log2(math.e)  # bits in a nat: logits are kept in bits, for 2^x is faster than e^x


class NextTokenLoss(nn.Module):
    """The loss of `model` as a module, so that compile and DDP wrap it and the model stays bare.

    The last embedding row stands for `num_shared` tokens (see vocabulary.py): its exponential
    enters the softmax sum that many times. With 1 this is the ordinary cross-entropy.

    With a separator, the last token of a document, each document is read as if it stood alone: the
    model looks at nothing before it, and the first token of it is not predicted.

    With a `teacher`, gradients are of a target that is partly what that expects; losses are the
    same as without.
    """

    eager_parts = ("_of_hidden",)  # a traced loop is unrolled and loses its one buffer

    def __init__(
        self,
        model: nn.Module,
        *,
        num_shared: int = 1,
        chunk_size: int = CHUNK_SIZE,
        separator: int | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.num_shared = num_shared
        self.chunk_size = chunk_size
        self.separator = separator
        self.product = FrozenProduct()  # with a head that does not learn
        self.teacher: Teacher | None = None

    def forward(
        self,
        inputs: Tensor,
        targets: Tensor,
        num_tokens: int | None = None,
        *,
        seeds: Seeds = None,
    ) -> Tensor:
        """Sum of the cross-entropy over `targets` (B, T) divided by `num_tokens`, as a scalar.

        By default that is the mean. Targets below 0, as -100 is for torch, are left out. A
        micro-batch, or one process of many, passes the token count of the whole batch instead: then
        losses and gradients only have to be added.
        """
        hidden, expected = self._hidden(self.model, inputs, seeds), None
        if self.teacher is not None and torch.is_grad_enabled():
            with torch.no_grad():
                expected = self._hidden(self.teacher.model, inputs)
        if self.separator is not None:
            targets = targets.masked_fill(inputs == self.separator, -100)
        return self._of_hidden(hidden, targets.flatten(), num_tokens, expected)

    def _hidden(self, model: Transformer, inputs: Tensor, seeds: Seeds = None) -> Tensor:
        """The model's final states (N, C); with a separator each knows its own document alone."""
        apart = ()
        if self.separator is not None:
            apart = [DocumentsApart(model, inputs == self.separator, seeds)]
        return model.hidden_states(inputs, *apart, seeds=seeds).flatten(0, 1)

    def num_predicted(self, inputs: Tensor, targets: Tensor) -> int:
        """How many of the targets (B, T) the loss is about, those below 0 aside."""
        if self.separator is None:
            return targets.numel()
        return int((inputs != self.separator).sum())

    def _of_hidden(
        self,
        hidden: Tensor,
        targets: Tensor,
        num_tokens: int | None,
        expected: Tensor | None = None,
    ) -> Tensor:
        may_wait = num_tokens is None or targets.is_cpu or self.separator is not None
        if may_wait and (targets < 0).any():  # else training never waits for a GPU
            expected = None if expected is None else expected[targets >= 0]
            hidden, targets = hidden[targets >= 0], targets[targets >= 0]
        num_tokens = num_tokens or max(1, len(targets))
        device = hidden.device.type
        weight = next(self.model.input_embedding.parameters(), None)  # None if it is in few bits
        learns, is_training = weight is not None and weight.requires_grad, torch.is_grad_enabled()
        dtype = type_of_products(hidden)
        # To divide gradients as they are computed is free, but those of float16 would underflow.
        divisor = 1 if dtype == torch.float16 else num_tokens
        with torch.no_grad(), torch.autocast(device, enabled=False):
            x = (hidden * LOG2_E).to(dtype)  # logits in bits
            head = self._head(x, weight)
            if not is_training:
                return self._loss(x, head, targets) / num_tokens
            given = x, head, targets, divisor, expected
            total, d_hidden, d_weight = self._loss_and_gradients(*given, learns=learns)
        loss = _KnownGradients.apply(total / divisor, hidden, weight, d_hidden, d_weight)
        return loss * (divisor / num_tokens)

    def _head(self, x: Tensor, weight: Tensor | None) -> "Head":
        """The head with the products that suit it."""
        is_frozen = weight is not None and not weight.requires_grad
        if is_frozen and x.dtype == weight.dtype and self.product.serves(x, weight):
            own = {"weight": weight}
            return Head(weight, partial(self.product, **own), partial(self.product.gradient, **own))
        if is_frozen:
            table = self.product.cast(weight, x.dtype)
        elif weight is None:  # in few bits
            table = self.model.input_embedding.table(x.dtype)
        else:
            table = weight.to(x.dtype)
        width = -(-len(table) // ALIGNED_ROWS) * ALIGNED_ROWS
        buffer = x.new_empty(min(self.chunk_size, len(x)), width)[:, : len(table)]

        def logits(rows: Tensor) -> Tensor:
            return torch.mm(rows, table.T, out=buffer[: len(rows)])

        return Head(table, logits, lambda d_logits: d_logits @ table)

    def _loss(self, x: Tensor, head: "Head", targets: Tensor) -> Tensor:
        total, is_safe = _zero(x), has_safe_logits(x, head.table)
        for chunk, logits in self._chunks(x, head):
            total += _cross_entropy_(logits, targets[chunk], self.num_shared, is_safe)[0].sum()
            del logits  # before there are others
        return total

    def _loss_and_gradients(
        self,
        x: Tensor,
        head: "Head",
        targets: Tensor,
        divisor: int,
        expected: Tensor | None,
        *,
        learns: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The sum of the losses; both gradients of it, divided by `divisor`.

        That of the head is left out, half of the backward pass, unless the head `learns`. The
        teacher's states (N, C), if any, say what is `expected`.
        """
        total, is_safe = _zero(x), has_safe_logits(x, head.table)
        d_hidden = torch.empty_like(x, dtype=total.dtype)
        d_head = torch.empty_like(head.table, dtype=total.dtype) if learns else None
        # On a CPU two products of 50240 and 17 rows are faster than one of 50257 (docs/speed.md).
        aligned = max(1, len(head.table) // ALIGNED_ROWS) * ALIGNED_ROWS
        for chunk, logits in self._chunks(x, head):
            losses, sums = _cross_entropy_(logits, targets[chunk], self.num_shared, is_safe)
            total += losses.sum()
            if expected is not None:
                self.teacher.pull_(logits, sums, targets[chunk], expected[chunk])
            sums *= divisor
            d_hidden[chunk] = head.gradient(logits) / sums[:, None]
            if d_head is not None:
                scaled = (x[chunk] / (sums[:, None] * LOG2_E)).to(x.dtype)
                add = Tensor.copy_ if chunk.start == 0 else Tensor.add_  # no zeros to start with
                parts = zip(d_head.split(aligned), logits.split(aligned, 1), strict=True)
                for rows, columns in parts:
                    add(rows, columns.T @ scaled)
            del logits
        return total, d_hidden, d_head

    def _chunks(self, x: Tensor, head: "Head") -> Iterator[tuple[slice, Tensor]]:
        """Some of the tokens and their logits, which the next chunk overwrites; at least once."""
        for start in range(0, max(1, len(x)), self.chunk_size):
            chunk = slice(start, min(start + self.chunk_size, len(x)))
            yield chunk, head.logits(x[chunk])


class Head(NamedTuple):
    """The table W (V, C), and the products with it."""

    table: Tensor
    logits: Callable[[Tensor], Tensor]  # x W^T of some rows
    gradient: Callable[[Tensor], Tensor]  # d_logits W


class DocumentsApart:
    """Stands in for a model's cache, so that each document in a row is read as if it stood alone.

    `is_end` (B, T) says which tokens are the last of their document.
    """

    def __init__(self, model: nn.Module, is_end: Tensor, seeds: Seeds = None) -> None:
        self.blocks, self.seeds = model.blocks, seeds
        document = is_end.cumsum(1) - is_end.long()  # its number
        first = torch.searchsorted(document, document)  # where that stands first
        self.positions = torch.arange(is_end.size(1), device=is_end.device) - first  # (B, T)
        is_same = document[:, :, None] == document[:, None, :]
        self.mask = is_same.tril()[:, None]  # (B, 1, T, T), the causal one included

    def extend(self, num_tokens: int) -> Tensor:
        """The tokens' positions, which restart with each document."""
        return self.positions

    def attend(self, layer: int, *inputs: Tensor) -> Tensor:
        """What each token makes of its own document up to itself."""
        return self.blocks[layer].attention.attend(*inputs, mask=self.mask, seeds=self.seeds)


class _KnownGradients(torch.autograd.Function):
    """A number whose gradients were computed together with it."""

    @staticmethod
    def forward(
        ctx: Any,
        total: Tensor,
        hidden: Tensor,
        weight: Tensor | None,
        d_hidden: Tensor,
        d_weight: Tensor | None,
    ) -> Tensor:
        d_weight = None if d_weight is None else d_weight.to(weight.dtype)
        ctx.save_for_backward(d_hidden.to(hidden.dtype), d_weight)
        return total.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_total: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        if d_total.is_cpu and d_total == 1:  # nothing scales the loss
            return None, d_hidden, d_weight, None, None
        # In place: a second backward through the same graph fails, as torch's own would.
        d_weight = None if d_weight is None else d_weight.mul_(d_total)
        return None, d_hidden.mul_(d_total), d_weight, None, None


def has_safe_logits(x: Tensor, head: Tensor) -> bool:
    """Whether 2^x takes all logits as they are, which saves two passes: |x . w| <= |x| |w|.

    Asking would make another device than a CPU wait; float16 ends at 2^16.
    """
    if not x.is_cpu or x.dtype == torch.float16 or len(x) == 0:
        return False
    longest = [torch.linalg.vector_norm(rows, dim=-1).max().item() for rows in (x, head)]
    return longest[0] * longest[1] < SAFE_LOGIT


def _cross_entropy_(
    logits: Tensor, targets: Tensor, num_shared: int, is_safe: bool
) -> tuple[Tensor, Tensor]:
    """Each row's loss in nats and its sum S of exponentials, from logits in bits.

    `logits` becomes S times the gradient by the logits in nats: for one row (1, 2, 3) and target 0,
    S = 2 + 4 + 8, the loss is ln(S) - ln(2), and (2 - S, 4, 8) is left. To divide the C columns of
    what is computed from it is cheaper than to divide its V. Unless the logits are safe, each
    row's maximum is taken off first.
    """
    at_target = torch.arange(len(targets), device=targets.device), targets
    wide = torch.promote_types(logits.dtype, torch.float32)
    margin = -logits[at_target].to(wide)
    if not is_safe:
        highest = logits.amax(dim=-1)
        margin += highest
        logits.sub_(highest[:, None])
    logits.exp2_()
    logits[:, -1] *= num_shared
    # The sum must be precise, but asking sum() for float32 would first copy all the logits to it.
    # Take off a rounded sum, which the gradient does anyway: what remains is near 0 and sums well.
    exponential = logits[at_target].to(wide)
    logits[at_target] -= logits.sum(dim=-1)
    sums = logits.sum(dim=-1) + (exponential - logits[at_target])
    return (sums.log2() + margin) / LOG2_E, sums


def _zero(like: Tensor) -> Tensor:
    return like.new_zeros((), dtype=torch.promote_types(like.dtype, torch.float32))
