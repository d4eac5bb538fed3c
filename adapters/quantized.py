"""Frozen layers in 8 or 4 bits: what learns no more need not be kept in 32.

A product takes one layer's matrix out of its bits, in the type of the other factor, and drops it
again; so does the gradient of its input, which is the only gradient there is. int8 is whole numbers
with a scale for each row, nf4 one of 16 levels with a scale for each 64 numbers: the levels of
Dettmers et al. 2023 (QLoRA), appendix E, which lie as densely as normally distributed numbers.

Shapes: B batch, T time, N rows of some matrix, I in_features, O out_features, V vocabulary.
"""

from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from adapters.products import type_of_products
from model import InputEmbeddings

STEPS = 127  # of an int8, on either side of 0
SMALLEST = 1e-12  # what the largest of a row of zeros counts as
NUM_IN_BLOCK = 64  # numbers with a scale of their own in nf4
NUMBERS_AT_ONCE = 1 << 20  # of a matrix that is packed
LEVELS = (
    *(-1.0, -0.6961928, -0.52507305, -0.39491749, -0.28444138, -0.18477343, -0.09105004, 0.0),
    *(0.0795803, 0.1609302, 0.2461123, 0.33791524, 0.44070983, 0.562617, 0.72295684, 1.0),
)


class Format(NamedTuple):
    """How rows of a matrix become codes and scales; how these become a matrix of a type.

    `wide` returns the matrix and what its rows have yet to be multiplied by.
    """

    pack: Callable[[Tensor], tuple[Tensor, Tensor]]
    wide: Callable[[Tensor, Tensor, torch.dtype], tuple[Tensor, Tensor]]


def int8_packed(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers (N, I) and the scale of each row (N,).

    A scale has 8 bits of mantissa: then what the codes stand for has the same codes again.
    """
    scales = (rows.abs().amax(-1).clamp_(min=SMALLEST) / STEPS).bfloat16().float()
    return (rows / scales[:, None]).round_().to(torch.int8), scales


def int8_wide(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return codes.to(dtype), scales  # exact: bfloat16 has all whole numbers up to 256


def nf4_packed(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Two levels in each byte (N, I / 2), and the scale of each block (N, I / 64), I rounded up."""
    blocks = F.pad(rows, (0, -rows.size(-1) % NUM_IN_BLOCK)).unflatten(-1, (-1, NUM_IN_BLOCK))
    scales = blocks.abs().amax(-1).clamp_(min=SMALLEST)
    shares = blocks / scales[..., None]
    nearest, is_above = torch.zeros_like(shares), torch.empty_like(shares)
    for below, above in pairwise(LEVELS):  # six times as fast as torch.bucketize
        nearest += torch.gt(shares, (below + above) / 2, out=is_above)
    high, low = nearest.to(torch.uint8).flatten(1).unflatten(-1, (-1, 2)).unbind(-1)
    return high << 4 | low, scales


def nf4_wide(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    levels = torch.tensor(LEVELS, device=codes.device).to(dtype)
    pairs = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], 1)  # of each byte
    one = {2: torch.int32, 4: torch.int64, 8: torch.complex128}[dtype.itemsize]
    pairs = pairs.view(one).flatten()  # a pair is looked up as one number
    numbers = pairs.index_select(0, codes.flatten().int()).view(dtype)
    blocks = numbers.view(*scales.shape, NUM_IN_BLOCK).mul_(scales[..., None].to(dtype))
    return blocks.flatten(1), scales.new_ones(1)


FORMATS = {
    "int8": Format(int8_packed, int8_wide),
    "nf4": Format(nf4_packed, nf4_wide),
}


class Packed(nn.Module):
    """A matrix in few bits, which learns no more."""

    def __init__(self, matrix: Tensor, precision: str) -> None:
        super().__init__()
        self.precision, self.shape = precision, matrix.shape
        self.num_at_once = max(1, NUMBERS_AT_ONCE // matrix.size(1))
        for name, like in zip(
            ("codes", "scales"),
            FORMATS[precision].pack(torch.empty_like(matrix, device="meta")),
            strict=True,
        ):
            self.register_buffer(name, torch.empty_like(like, device=matrix.device))
        self.pack(matrix)

    @torch.no_grad()
    def pack(self, matrix: Tensor) -> None:
        """Stands for this matrix from now on; some rows after the other: there is no copy of it."""
        parts = (whole.split(self.num_at_once) for whole in (matrix, self.codes, self.scales))
        for rows, *own in zip(*parts, strict=True):
            for part, new in zip(own, FORMATS[self.precision].pack(rows.float()), strict=True):
                part.copy_(new)

    @property
    def weight(self) -> Tensor:
        """The matrix that the codes stand for, in float32."""
        return self.wide(torch.float32)

    def wide(self, dtype: torch.dtype) -> Tensor:
        """The same in a type; some rows at a time: a product of two types makes copies."""
        result = torch.empty(self.shape, dtype=dtype, device=self.codes.device)
        for place, rows in zip(result.split(self.num_at_once), self.some_rows(), strict=True):
            place.copy_(rows)
        return result

    def some_rows(self) -> Iterator[Tensor]:
        """The rows in float32, few enough at a time."""
        parts = self.codes.split(self.num_at_once), self.scales.split(self.num_at_once)
        for own in zip(*parts, strict=True):
            matrix, factors = FORMATS[self.precision].wide(*own, torch.float32)
            yield (matrix * factors[:, None])[:, : self.shape[1]]


class _FrozenProduct(torch.autograd.Function):
    """x W^T + bias, where W comes out of its codes for the product, and again for the gradient."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, precision: str
    ) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.precision, ctx.size = precision, x.size(-1)
        matrix, factors = FORMATS[precision].wide(codes, scales, x.dtype)
        products = F.linear(x, matrix[:, : ctx.size])
        bias = factors.new_zeros(1) if bias is None else bias
        return torch.addcmul(bias, products, factors).to(x.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        matrix, factors = FORMATS[ctx.precision].wide(*ctx.saved_tensors, d_y.dtype)
        return (d_y * factors).to(d_y.dtype) @ matrix[:, : ctx.size], None, None, None, None


class FrozenLinear(Packed):
    """What a linear layer computes, its weight in few bits; nothing of it learns."""

    def __init__(self, linear: nn.Linear, precision: str) -> None:
        super().__init__(linear.weight, precision)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.requires_grad_(False).bias

    def forward(self, x: Tensor) -> Tensor:
        given = x.to(type_of_products(x)), self.codes, self.scales, self.bias, self.precision
        with torch.autocast(x.device.type, enabled=False):
            return _FrozenProduct.apply(*given)


class FrozenEmbeddings(InputEmbeddings):
    """The table of tokens in int8: a lookup, and the head for whoever asks for all of it."""

    def __init__(self, embeddings: InputEmbeddings) -> None:
        nn.Module.__init__(self)
        self.embedding = FrozenTable(embeddings.embedding)

    def table(self, dtype: torch.dtype) -> Tensor:
        """All vectors (V, C), in a type."""
        return self.embedding.wide(dtype)


class FrozenTable(Packed):
    """What an embedding computes, its rows in int8."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__(embedding.weight, "int8")
        self.num_embeddings = embedding.num_embeddings

    def forward(self, tokens: Tensor) -> Tensor:
        return F.embedding(tokens, self.codes) * self.scales[tokens][..., None]


def frozen_parts(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers that do not learn, and the table if it does not, by name."""
    return {
        name: part
        for name, part in model.named_modules()
        if type(part) in (nn.Linear, InputEmbeddings)
        and not any(parameter.requires_grad for parameter in part.parameters())
    }


def packed_parts(model: nn.Module) -> list[str]:
    """What of the model is in few bits, by the names that it has without adapters."""
    kinds = (FrozenLinear, FrozenEmbeddings)
    named = [name for name, part in model.named_modules() if isinstance(part, kinds)]
    return [name.removesuffix(".base") for name in named]


def quantize(model: nn.Module, precision: str, parts: Collection[str] | None = None) -> None:
    """Puts the parts, or all that is frozen, into few bits, one by one; a table into int8."""
    for name in frozen_parts(model) if parts is None else parts:
        part = model.get_submodule(name)
        is_table = isinstance(part, InputEmbeddings)
        few = FrozenEmbeddings(part) if is_table else FrozenLinear(part, precision)
        model.set_submodule(name, few)
