"""A model prepared for generation: its weights in the type and the layout that are read fastest.

One token at a time, the work is reading every weight once: oneDNN's own layout is read faster than
a plain one, and bfloat16 is half of float32, int8 a quarter. How one row is multiplied is measured:
by a product, or by sums of rows. Several rows, of a prompt, a batch or guesses, always go through
products, whose sums are rounded otherwise: in narrow types texts that are nearly ties may differ.
What a narrow type loses in the head, the largest matrix, is repaired: the best logits are computed
again from the float32 embedding, so the choice between the likeliest tokens is made in float32.

Shapes: B batch, T time, C channels, V vocabulary.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generation.native import NativeLinear, NativeStates, is_plain, library
from model import Transformer
from system.choice import Choices, Piece, noise
from system.errors import ConfigError
from system.machine import TYPES

NUM_REPAIRED = 32  # logits of each row that are computed again in float32
STEPS = 127  # of an int8, on either side of 0
SMALLEST = 1e-12  # what they stand for in a row of zeros
PROMPT, TEXT = 64, 128  # tokens read at once and one by one: the work that is measured
NEAR = 2e-2  # what 8 bits of mantissa may lose, as a share of a result's norm
Linear = Callable[[Tensor], Tensor]
Layout = Callable[[Tensor, Tensor | None, torch.dtype], nn.Module]  # of a weight and a bias


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
        self.weight = torch.ops.mkldnn._reorder_linear_weight.default(self.weight, 1)
        self.product = torch.ops.mkldnn._linear_pointwise.default

    def forward(self, x: Tensor) -> Tensor:
        return self.product(x.to(self.weight.dtype), self.weight, self.bias, "none", [], "")


class Int8Linear(nn.Module):
    """Weights and inputs in whole numbers, one scale a row; their products are summed exactly."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype = torch.int8
    ) -> None:
        super().__init__()
        whole, steps = rounded(weight.detach())
        self.weight, self.scales = whole.T, steps[:, 0]
        self.bias = torch.zeros(()) if bias is None else bias.detach()

    def forward(self, x: Tensor) -> Tensor:
        whole, steps = rounded(x.reshape(-1, x.size(-1)))
        products = torch._int_mm(whole, self.weight).float()
        result = torch.addcmul(self.bias, products, steps * self.scales)
        return result.view(*x.shape[:-1], -1)


def rounded(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Whole numbers from -127 to 127 (N, C), and what 1 stands for in each row (N, 1)."""
    largest = rows.abs().amax(-1, keepdim=True).clamp_(min=SMALLEST)
    whole = torch.addcdiv(torch.zeros(()), rows, largest, value=STEPS).round_().char()
    return whole, largest / STEPS


class Wide(nn.Module):
    """A linear layer whose result has the type of what comes in."""

    def __init__(self, layer: Linear) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).to(x.dtype)


def repaired_logits(hidden: Tensor, *, output: Linear, table: Tensor) -> Tensor:
    """(..., C) -> (..., V) by a narrow output layer, the highest again by the embedding's table."""
    logits = output(hidden).float()
    best = logits.topk(min(NUM_REPAIRED, logits.size(-1)), sorted=False).indices  # (..., K)
    rows = F.embedding(best, table)  # (..., K, C)
    return logits.scatter_(-1, best, (rows @ hidden.float()[..., None])[..., 0])


@torch.no_grad()
def prepared(
    model: Transformer, precision: str = "auto", device: torch.device | str | None = None
) -> Transformer:
    """A copy for generation only, on the device; the model stays as and where it is.

    "auto" is the type that is read fastest here; so is the layout, of any type. Whatever the
    blocks are made of, their linear layers are replaced and the rest is shared with the model.
    """
    device = model.device if device is None else torch.device(device)
    if precision == "int8" and device.type != "cpu":
        raise ConfigError(f"int8 weights are for CPUs (device {device}): use bfloat16")
    result = shared_copy(model, device)
    layout, dtype = fastest_layer(result, TYPES if precision == "auto" else [precision])
    is_native = layout is native and is_plain(result)

    def linear(weight: Tensor, bias: Tensor | None) -> Linear:
        if dtype == torch.int8 and weight.size(1) == 1:  # torch multiplies one column wrongly
            return CastLinear(weight, bias, torch.bfloat16)
        return layout(weight, bias, dtype)

    if has_tied_head(result):
        table = result.input_embedding.embedding.weight
        output = linear(table, None).forward  # as a module, the class's own `head` would hide it
        is_exact = dtype == torch.float32
        result.head = output if is_exact else partial(repaired_logits, output=output, table=table)
    parts = [part for block in result.blocks for part in block.children()]
    among_their_like = {
        layer for part in parts if holds_linear_layers_alone(part) for layer in part.modules()
    }.difference(parts)
    for parent in list(result.blocks.modules()):
        for name, layer in list(parent.named_children()):
            if type(layer) is nn.Linear:
                fast = linear(layer.weight, layer.bias)
                setattr(parent, name, fast if layer in among_their_like else Wide(fast))
    if is_native:
        result.hidden_states = NativeStates(result)
    return result.eval()  # new layers would be in training, which is looked for at each token


def native(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> NativeLinear:
    """C++ for few rows, torch's fastest product for more."""
    if dtype == torch.int8:
        many = Int8Linear(weight, bias)
        return NativeLinear(many.weight.T, bias, scales=many.scales, many=many)
    many = PackedLinear(weight, bias, dtype)
    return NativeLinear(weight.detach().to(dtype), bias, scales=None, many=many)


# Of each type; the first one works everywhere. In C++ is before what is as fast for a product, for
# it spares the small operations around the products too.
LAYOUTS: dict[str, list[Layout]] = {
    "float32": [CastLinear, native, PackedLinear],
    "bfloat16": [CastLinear, native, PackedLinear],
    "float16": [CastLinear],
    "int8": [Int8Linear, native],
}


def fastest_layer(model: Transformer, names: Sequence[str]) -> tuple[Layout, torch.dtype]:
    """The layout and the type, of those named, in which the model's weights are read fastest.

    One row meets a matrix of the table's size, so that no cache holds more of it than in use. The
    matrices are noise: the numbers of a trained table may cancel in its products with a row.
    """
    table, num_blocks = model.input_embedding.embedding.weight, len(model.blocks)
    layers = [layer.weight for layer in model.blocks[0].modules() if type(layer) is nn.Linear]
    in_blocks = num_blocks * sum(map(torch.numel, layers))
    cases = [(table.shape, 1, TEXT * (1 + in_blocks / table.numel()))]
    cases += [(weight.shape, PROMPT, num_blocks) for weight in layers]

    def reading(share: float, *, layout: Layout, dtype: torch.dtype) -> list[Piece]:
        pieces = []
        for shape, num_rows, count in cases:
            layer = layout(noise(*shape).to(table), None, dtype)
            run = partial(layer, noise(num_rows, shape[1]).to(table))
            pieces.append(Piece(run, 2.0 * num_rows * shape.numel(), count))
        return pieces

    ways = {
        f"{name} {layout.__name__}": partial(reading, layout=layout, dtype=getattr(torch, name))
        for name in names
        for layout in LAYOUTS[name]
        if layout is not native or (model.device.type == "cpu" and library())
    }
    choices = Choices("writing", str(model.device), cases)
    name = choices.of(", ".join(ways), ways, tolerance=NEAR).name
    choices.remember()
    return ways[name].keywords["layout"], ways[name].keywords["dtype"]


def holds_linear_layers_alone(part: nn.Module) -> bool:
    """Whether no other numbers, which are float32, could meet the narrow ones that they give."""
    layers = [layer for layer in part.modules() if type(layer) is nn.Linear]
    known = {id(tensor) for layer in layers for tensor in layer.parameters()}
    return all(id(tensor) in known for tensor in (*part.parameters(), *part.buffers()))


def shared_copy(model: Transformer, device: torch.device) -> Transformer:
    """The model's structure around the same weights, or around copies of them on another device."""

    def placed(tensor: Tensor) -> Tensor:
        if tensor.device == device or not isinstance(tensor, nn.Parameter):
            return tensor.to(device)
        return nn.Parameter(tensor.detach().to(device), requires_grad=False)

    tensors = (*model.parameters(), *model.buffers())
    return deepcopy(model, {id(tensor): placed(tensor) for tensor in tensors})


def has_tied_head(model: Transformer) -> bool:
    """Whether the head is a product with the embedding's table, and not one of a variant."""
    table = model.input_embedding.embedding.weight
    hidden = torch.linspace(-1, 1, table.size(1), dtype=table.dtype, device=table.device)[None]
    return torch.equal(model.head(hidden), F.linear(hidden, table))
