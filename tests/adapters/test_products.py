"""Products with a frozen matrix are torch's own, whatever they are made of."""

from copy import deepcopy

import pytest
import torch
from tiny_model import V, clear_model
from torch import nn
from torch.nn import functional as F

from adapters.lora import adapt, adapter_weights
from adapters.products import FrozenProduct, has_kernel
from training.loss import NextTokenLoss
from training.settings import DEFAULTS

LORA = {**DEFAULTS, "adapter": "lora"}


def frozen(*shape):
    torch.manual_seed(0)
    return nn.Parameter(torch.randn(shape), requires_grad=False)


def result_and_gradient(multiply, x):
    x = x.clone().requires_grad_()
    y = multiply(x)
    return y.detach(), torch.autograd.grad((y * y).sum(), x)[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    ("num_rows", "shape"), [(7, (11, 5)), (1, (3, 64)), (0, (4, 6)), (130, (65, 33))]
)
def test_result_and_gradient_are_those_of_a_linear_layer(num_rows, shape, has_bias, dtype):
    weight, x = frozen(*shape), torch.randn(num_rows, shape[1]).to(dtype)
    weight.data = weight.data.double() if dtype == torch.float64 else weight.data
    bias, multiply = frozen(shape[0]).to(weight.dtype) if has_bias else None, FrozenProduct()
    exact = (weight.double(), None if bias is None else bias.double())
    expected = result_and_gradient(lambda x: F.linear(x, *exact), x.double())
    for _ in range(2):  # anew, and with what is kept
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            found = result_and_gradient(lambda x: multiply(x, weight, bias), x)
        for ours, exactly in zip(found, expected, strict=True):
            near = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
            assert ours.dtype == dtype
            assert (ours - exactly).norm() <= near * exactly.norm()


def test_a_matrix_that_was_changed_is_multiplied_as_it_is_now():
    multiply, weight, x = FrozenProduct(), frozen(6, 4), torch.randn(3, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        before = multiply(x, weight)
        with torch.no_grad():
            weight.mul_(-1)
        assert torch.equal(multiply(x, weight), -before)
    exact = F.linear(x.float(), weight)
    torch.testing.assert_close(multiply(x.float(), weight), exact, rtol=1e-5, atol=1e-5)


def objective_of(model):
    """The loss of it on a batch, as a function."""
    ids = torch.arange(15).view(3, 5) % V
    return lambda: NextTokenLoss(model)(ids, ids)


def products(model):
    return [module for module in model.modules() if isinstance(module, FrozenProduct)]


def test_what_is_kept_is_in_no_file_and_in_no_copy_of_the_model():
    model = adapt(clear_model(), LORA)
    names, loss = model.state_dict().keys(), objective_of(model)
    loss().backward()
    assert not any(product.nbytes for product in products(model))  # of float32
    with torch.autocast("cpu", torch.bfloat16):
        loss().backward()
    assert all(product.nbytes for product in products(model)) == has_kernel(torch.bfloat16)
    assert model.state_dict().keys() == names
    assert not any(product.nbytes for product in products(deepcopy(model)))


def test_without_copies_the_gradients_are_near():
    """As where every process has a part of each matrix alone."""
    found = []
    for may_keep in (True, False):
        model = adapt(clear_model(), LORA)
        for product in products(model):
            product.may_keep = may_keep
        for name, weight in adapter_weights(model).items():
            weight.fill_(0.1) if "lora_B" in name else None
        objective_of(model)().backward()
        found.append([p.grad for p in model.parameters() if p.requires_grad])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-6)  # float32, products of two libraries
