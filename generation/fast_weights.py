"""A model prepared for generation: its weights in the type and the layout that are read fastest.

One token at a time, the work is reading every weight once: oneDNN's own layout is read faster than
a plain one, and bfloat16 is half of float32, int8 a quarter. What a narrow type loses in the head,
the largest matrix, is repaired: the best logits are computed again from the float32 embedding, so
the choice between the likeliest tokens is made in float32.

Shapes: B batch, T time, C channels, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import Transformer, TransformerBlock
from system.errors import DeviceError
from system.machine import choose_precision

PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")
NUM_REPAIRED = 32  # logits of each row that are computed again in float32
STEPS = 127  # of an int8, on either side of 0
SMALLEST = 1e-12  # what they stand for in a row of zeros
Linear = Callable[[Tensor], Tensor]


class CastLinear(nn.Module):
    """A linear layer in `dtype`, whatever comes in."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.weight = weight.detach().to(dtype)
        self.bias = None if bias is None else bias.detach().to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x.to(self.weight.dtype), self.weight, self.bias)


class PackedLinear(CastLinear):
    """The same with the weight in the layout that oneDNN prefers for few rows."""

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, dtype)
        self.dtype = dtype
        self.weight = torch.ops.mkldnn._reorder_linear_weight.default(self.weight, 1)
        self.product = torch.ops.mkldnn._linear_pointwise.default

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x.to(self.dtype), self.weight, self.bias, "none", [], "")


class Int8Linear(nn.Module):
    """Weights and inputs in whole numbers, one scale a row; their products are summed exactly."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        whole, largest = rounded(weight.detach())
        self.weight, self.scales = whole.T, largest[:, 0] / STEPS**2
        self.bias = torch.zeros(()) if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        whole, largest = rounded(x.reshape(-1, x.size(-1)))
        products = torch._int_mm(whole, self.weight).float()
        result = torch.addcmul(self.bias, products, largest * self.scales)
        return result.view(*x.shape[:-1], -1)


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127 (N, C), and what 127 stands for in each row (N, 1)."""
    largest = rows.abs().amax(-1, keepdim=True).clamp_(min=SMALLEST)
    return torch.addcdiv(torch.zeros(()), rows, largest, value=STEPS).round_().char(), largest


class PreparedTransformer(Transformer):
    """A Transformer that computes its matrix products with other linear layers."""

    def __init__(
        self, model: Transformer, linear: Callable[..., Linear], *, is_exact: bool
    ) -> None:
        blocks = [prepared_block(block, linear) for block in model.blocks]
        super().__init__(model.input_embedding, model.positional_encoding, blocks, model.final_norm)
        self.output = linear(model.input_embedding.embedding.weight, None)
        self.is_exact = is_exact

    def head(self, hidden: Tensor) -> Tensor:
        """Logits in float32: (..., C) -> (..., V)."""
        logits = self.output(hidden).float()
        return logits if self.is_exact else self.repaired(logits, hidden)

    def repaired(self, logits: Tensor, hidden: Tensor) -> Tensor:
        """The logits with the highest of them computed again from float32 weights."""
        best = logits.topk(min(NUM_REPAIRED, logits.size(-1))).indices  # (..., K)
        rows = self.input_embedding.embedding.weight[best]  # (..., K, C)
        return logits.scatter(-1, best, (rows @ hidden.float()[..., None])[..., 0])


def prepared_block(block: TransformerBlock, linear: Callable[..., Linear]) -> TransformerBlock:
    """The block with the same norms and other linear layers."""
    attention, feed_forward = block.attention, block.feed_forward
    C, H = attention.projection.weight.size(0), attention.num_heads
    with torch.device("meta"):  # a skeleton; every part that holds numbers is replaced
        result = TransformerBlock(C, H, 0.0, feed_forward.expand.weight.size(0))
    result.attention_norm, result.feed_forward_norm = block.attention_norm, block.feed_forward_norm
    for source, target, names in (
        (attention, result.attention, ("qkv", "projection")),
        (feed_forward, result.feed_forward, ("expand", "contract")),
    ):
        for name in names:
            layer = getattr(source, name)
            setattr(target, name, linear(layer.weight, layer.bias))
    return result


@torch.no_grad()
def prepared(model: Transformer, precision: str = "auto") -> PreparedTransformer:
    """A copy for generation only; "auto" is bfloat16 where the processor has it, else float32."""
    if precision == "int8" and model.device.type != "cpu":
        raise DeviceError(f"int8 weights are for CPUs (device {model.device}): use bfloat16")
    wanted = "bfloat16" if precision == "int8" else precision
    dtype, _ = choose_precision(model.device, wanted)

    def linear(weight: Tensor, bias: Tensor | None) -> Linear:
        if precision == "int8" and weight.size(1) > 1:  # torch multiplies one column wrongly
            return Int8Linear(weight, bias)
        is_packed = model.device.type == "cpu" and dtype != torch.float16 and has_packed_product()
        return (PackedLinear if is_packed else CastLinear)(weight, bias, dtype)

    return PreparedTransformer(model, linear, is_exact=dtype == torch.float32).eval()


def has_packed_product() -> bool:
    """Whether this torch has the products that its compiler uses for constant weights."""
    return torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    )
