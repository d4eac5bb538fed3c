"""Products with a matrix that learns no more: oneDNN's, on a CPU, of copies that are made once.

torch would cast the matrix for each product anew, and have float32 multiplied by a slower library.

Shapes: N rows, I in_features, O out_features.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


class FrozenProduct(nn.Module):
    """x W^T + bias (N, O) for rows x (N, I), of a frozen W (O, I); its only gradient is that of x.

    bfloat16 is kept in the layout that oneDNN multiplies fastest by, which is another for the
    gradient. Nothing is kept of float32. A W that changes in place is noticed.
    """

    may_keep = True  # unset where each process has a part of W alone
    made_of: Any = None
    matrices: tuple[Tensor, ...] = ()

    def serves(self, x: Tensor, weight: Tensor) -> bool:
        """Whether it has something faster than torch for them."""
        is_here = self.may_keep and weight.is_cpu and weight.dtype == torch.float32
        return is_here and has_kernel(x.dtype) and not torch.compiler.is_compiling()

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        if not self.serves(x, weight):
            return F.linear(x, weight, bias)
        bias = None if bias is None else bias.detach().to(x.dtype)
        return _Product.apply(x, *self.laid_out(x, weight.detach()), bias)

    def cast(self, weight: Tensor, dtype: torch.dtype) -> Tensor:
        """W in the type, cast again only after it has changed: for products with room for no more.

        In a layout of oneDNN both directions would take three times as much.
        """
        if weight.dtype == dtype or not self.may_keep or torch.compiler.is_compiling():
            return weight.to(dtype)
        return self.once(weight, dtype, lambda: (weight.detach().to(dtype),))[0]

    def gradient(self, d_y: Tensor, weight: Tensor) -> Tensor:
        """d_y W (N, I), where it serves."""
        return product(d_y, self.laid_out(d_y, weight.detach())[1])

    def laid_out(self, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
        """W and its transpose as the kernel takes them for rows like these."""
        if x.dtype == weight.dtype:
            return weight, weight.T

        def packed() -> tuple[Tensor, ...]:
            narrow, pack = weight.to(x.dtype), torch.ops.mkldnn._reorder_linear_weight.default
            return pack(narrow, len(x)), pack(narrow.T, len(x))

        return self.once(weight, x.dtype, packed)

    def once(
        self, weight: Tensor, dtype: torch.dtype, make: Callable[[], tuple[Tensor, ...]]
    ) -> tuple[Tensor, ...]:
        """What `make` returns, kept as long as W is the same."""
        key = dtype, weight.data_ptr(), weight._version
        if key != self.made_of:
            self.matrices, self.made_of = make(), key
        return self.matrices

    @property
    def nbytes(self) -> int:
        """Bytes of the copies."""
        return sum(matrix.nbytes for matrix in self.matrices)

    def __deepcopy__(self, memo: Any) -> "FrozenProduct":
        return FrozenProduct()  # which makes copies of its own when it is used


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, there: Tensor, back: Tensor, bias: Tensor | None) -> Tensor:
        ctx.back = back
        return product(x, there, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        return product(d_y, ctx.back), None, None, None


def product(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """x matrix^T + bias."""
    return torch.ops.mkldnn._linear_pointwise.default(x, matrix, bias, "none", [], "")


def has_kernel(dtype: torch.dtype) -> bool:
    """Whether oneDNN is here and the processor has instructions for products of the type."""
    if not torch.backends.mkldnn.is_available():
        return False
    is_narrow = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return is_narrow or dtype == torch.float32


def type_of_products(x: Tensor) -> torch.dtype:
    """The type in which rows like x are multiplied here."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
