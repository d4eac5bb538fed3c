"""Frozen layers in few bits, against the float32 matrices that they stand for."""

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters.quantized import (
    FORMATS,
    LEVELS,
    NUM_IN_BLOCK,
    FrozenEmbeddings,
    FrozenLinear,
    Packed,
    quantize,
)
from model import InputEmbeddings, Transformer, build_transformer
from training.memory import recompute_activations

SIZES = [(11, 7), (3, 64), (64, 65), (1, 1), (130, 200)]  # (O, I), awkward on purpose


def frozen_pair(outputs: int, inputs: int, precision: str) -> tuple[FrozenLinear, nn.Linear]:
    """A frozen layer, and an ordinary one with the matrix that it stands for."""
    torch.manual_seed(outputs)
    layer = FrozenLinear(nn.Linear(inputs, outputs), precision)
    plain = nn.Linear(inputs, outputs)
    plain.load_state_dict({"weight": layer.weight, "bias": layer.bias})
    return layer, plain


def tiny_model() -> Transformer:
    torch.manual_seed(0)
    return build_transformer(101, 16, 32, 2, 4, 0.0, 72)


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.parametrize(("outputs", "inputs"), SIZES)
def test_products_and_gradients_are_those_of_the_matrix(outputs, inputs, precision):
    layer, plain = frozen_pair(outputs, inputs, precision)
    x, d_y = torch.randn(2, 5, inputs), torch.randn(2, 5, outputs)
    results = []
    for own in (layer, plain):
        copied = x.clone().requires_grad_()
        y = own(copied)
        y.backward(d_y)
        results.append((y.detach(), copied.grad))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)  # float32, 200 terms


@pytest.mark.parametrize("precision", FORMATS)
def test_under_autocast_the_product_has_its_type_and_precision(precision):
    layer, plain = frozen_pair(130, 200, precision)
    x = torch.randn(3, 200, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype) == (torch.bfloat16, torch.float32)
    assert (y.float() - plain(x)).norm() < 0.01 * plain(x).norm()  # 8 bits of mantissa
    exact = plain.weight.sum(0).expand(3, -1)
    assert (x.grad - exact).norm() < 0.01 * exact.norm()


def test_int8_is_within_half_a_step_of_each_row():
    matrix = torch.randn(130, 200) * torch.logspace(-3, 3, 130)[:, None]
    linear = nn.Linear(200, 130)
    linear.weight.data = matrix.clone()
    error = (FrozenLinear(linear, "int8").weight - matrix).abs()
    steps = matrix.abs().amax(1, keepdim=True) / 127
    assert (error <= steps * 0.502).all()  # a scale has 8 bits of mantissa


def test_nf4_is_the_nearest_level_of_each_block():
    matrix = torch.randn(5, 200)
    linear = nn.Linear(200, 5)
    linear.weight.data = matrix.clone()
    got = FrozenLinear(linear, "nf4").weight
    for block, found in zip(matrix.split(NUM_IN_BLOCK, 1), got.split(NUM_IN_BLOCK, 1), strict=True):
        levels = torch.tensor(LEVELS) * block.abs().amax(1, keepdim=True)
        least = (block[..., None] - levels[:, None]).abs().amin(-1)
        torch.testing.assert_close((block - found).abs(), least, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("precision", FORMATS)
def test_rows_of_zeros_stay_zeros_and_scales_follow(precision):
    matrix = torch.randn(4, 64)
    matrix[1] = 0
    linear = nn.Linear(64, 4, bias=False)
    linear.weight.data = matrix * 1e-20
    layer = FrozenLinear(linear, precision)
    assert layer.weight[1].eq(0).all()
    assert layer.bias is None
    assert layer(torch.ones(1, 64)).isfinite().all()


@pytest.mark.parametrize("precision", FORMATS)
def test_what_the_codes_stand_for_has_the_same_codes_again(precision):
    """So that a file with float32 weights brings back the bits of the run that wrote it."""
    first = Packed(torch.randn(300, 200) * torch.logspace(-3, 3, 300)[:, None], precision)
    again = Packed(first.weight, precision)
    assert torch.equal(again.codes, first.codes)
    assert torch.equal(again.scales, first.scales)


@pytest.mark.parametrize("precision", FORMATS)
def test_packing_in_parts_is_packing_at_once(precision, monkeypatch):
    matrix = torch.randn(130, 65)
    codes, scales = FORMATS[precision].pack(matrix)
    monkeypatch.setattr("adapters.quantized.NUMBERS_AT_ONCE", 200)
    layer = Packed(matrix, precision)
    assert torch.equal(layer.codes, codes)
    assert torch.equal(layer.scales, scales)


@pytest.mark.parametrize(("precision", "bits"), [("int8", 8), ("nf4", 4)])
def test_a_matrix_takes_its_bits_and_its_scales(precision, bits):
    layer = Packed(torch.randn(16, 768), precision)
    num_scales = 16 if precision == "int8" else 16 * 768 // 64
    assert layer.codes.nbytes + layer.scales.nbytes == 16 * 768 * bits // 8 + 4 * num_scales


def test_the_table_is_looked_up_and_asked_for_alike():
    embeddings = InputEmbeddings(50, 9)
    exact = embeddings.embedding.weight.detach().clone()
    frozen, tokens = FrozenEmbeddings(embeddings), torch.tensor([[3, 49, 0]])
    weight = frozen.embedding.weight
    assert (weight - exact).abs().max() <= exact.abs().max() / 253
    assert torch.equal(frozen(tokens), F.embedding(tokens, weight))
    assert torch.equal(frozen.table(torch.bfloat16), weight.bfloat16())


def kept(model: Transformer) -> set[torch.dtype]:
    return {tensor.dtype for tensor in model.state_dict().values() if tensor.dim() == 2}


def test_only_what_is_frozen_is_kept_in_few_bits():
    model = tiny_model()
    model.blocks[0].requires_grad_(False)
    quantize(model, "int8")
    assert isinstance(model.blocks[0].attention.qkv, FrozenLinear)
    assert type(model.blocks[1].attention.qkv) is nn.Linear
    assert type(model.input_embedding) is InputEmbeddings
    assert any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(("precision", "bound"), [("int8", 0.02), ("nf4", 0.2)])
def test_logits_of_a_frozen_model_are_near_those_of_the_exact_one(precision, bound):
    model = tiny_model()
    for parameter in model.parameters():  # larger than at the start, so that the blocks matter
        parameter.data.mul_(3.0)
    exact = copy.deepcopy(model).eval()
    quantize(model.requires_grad_(False).eval(), precision)
    tokens = torch.randint(101, (3, 16))
    error = (model(tokens) - exact(tokens)).norm() / exact(tokens).norm()
    assert error < bound  # of the logits' norm (docs/finetuning.md)


def activation_bytes(model: Transformer, tokens: Tensor) -> int:
    """What a forward pass keeps that no module has."""
    own = {tensor.untyped_storage().data_ptr() for tensor in model.state_dict().values()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model.hidden_states(tokens)
    return sum(size for place, size in kept.items() if place not in own)


@pytest.mark.parametrize("precision", FORMATS)
def test_no_matrix_is_kept_for_the_backward_pass(precision):
    model, tokens = tiny_model(), torch.randint(101, (1, 16))
    model.requires_grad_(False).positional_encoding.requires_grad_(True)
    before = activation_bytes(model, tokens)
    quantize(model, precision)
    assert activation_bytes(model, tokens) <= before


@pytest.mark.parametrize("precision", FORMATS)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # the compiler's
def test_compiled_products_are_the_same(precision):
    layer = frozen_pair(130, 200, precision)[0]
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    results = []
    for own in (layer, compiled):
        x = torch.linspace(-1, 1, 600).view(3, 200).requires_grad_()
        y = own(x)
        y.square().sum().backward()
        results.append((y.detach(), x.grad))
    torch.testing.assert_close(*results)


def test_what_is_computed_twice_has_the_same_gradients():
    results = []
    for is_twice in (False, True):
        model = tiny_model()
        model.blocks.requires_grad_(False)
        quantize(model, "nf4")
        if is_twice:
            recompute_activations(model)
        model.hidden_states(torch.arange(16)[None]).square().sum().backward()
        results.append(model.positional_encoding.pe.grad)
    assert torch.equal(*results)
