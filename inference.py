"""A model prepared for generation: its weights in the type and the layout that are read fastest.

One token at a time, the work is reading every weight once. oneDNN's own layout is read at the
memory's full rate, a plain one is not; bfloat16 is half of float32, int8 a quarter. What a narrow
type loses in the head, the largest matrix, is repaired: the best logits are computed again from
the float32 embedding, so the choice between the likeliest tokens is made in float32.

Shapes: B batch, T time, C channels, V vocabulary.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model import Transformer, TransformerBlock
from runtime import DeviceError, choose_precision

PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")
NUM_REPAIRED = 32  # logits of each row that are computed again in float32
INT8_WIDTH = 16  # torch's int8 product reads so many numbers at a time, past the end of a row too
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
    """Weights rounded to 8 bits with one scale a row; inputs and results in bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        weight = weight.detach()
        scales = weight.abs().amax(1).clamp(min=1e-12) / 127
        self.weight = (weight / scales[:, None]).round().to(torch.int8)
        self.scales = scales.bfloat16()
        self.bias = None if bias is None else bias.detach().bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        rows = x.flatten(0, -2).bfloat16()
        result = torch.ops.aten._weight_int8pack_mm(rows, self.weight, self.scales)
        result = result.view(*x.shape[:-1], -1)
        return result if self.bias is None else result + self.bias


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
        if precision == "int8" and weight.size(1) % INT8_WIDTH == 0:
            return Int8Linear(weight, bias)
        is_packed = model.device.type == "cpu" and dtype != torch.float16 and has_packed_product()
        return (PackedLinear if is_packed else CastLinear)(weight, bias, dtype)

    return PreparedTransformer(model, linear, is_exact=dtype == torch.float32).eval()


def has_packed_product() -> bool:
    """Whether this torch has the products that its compiler uses for constant weights."""
    return torch.backends.mkldnn.is_available() and hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    )
