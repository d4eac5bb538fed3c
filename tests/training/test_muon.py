"""Muon beside torch's own, on matrices whose decomposition is known, and through a whole run."""

import copy

import pytest
import torch
from torch import Tensor

from model import Transformer, build_transformer
from training import muon
from training.optim import build_optimizer, set_learning_rate

RATE, DECAY = 0.01, 0.5
TORCHS = ((3.4445, -4.7750, 2.0315),) * 5
NUM_UPDATES = 4


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    return build_transformer(11, 7, 12, 2, 3, 0.0, 20)


def set_gradients(*models: Transformer, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameters in zip(*(model.parameters() for model in models), strict=True):
        gradient = torch.randn(parameters[0].shape, generator=generator)
        for parameter in parameters:
            parameter.grad = gradient.clone()


def update(model: Transformer) -> None:
    """Makes some updates with gradients that have nothing to do with the model."""
    optimizer = build_optimizer(model, "muon", weight_decay=DECAY)
    set_learning_rate(optimizer, RATE)
    for seed in range(NUM_UPDATES):
        set_gradients(model, seed=seed)
        optimizer.step()
        optimizer.zero_grad()


def test_matrices_of_blocks_are_updated_as_torchs_muon_updates_them(model, monkeypatch):
    theirs = copy.deepcopy(model)
    monkeypatch.setattr(muon, "COEFFICIENTS", TORCHS)
    monkeypatch.setattr(Tensor, "bfloat16", Tensor.clone)  # theirs rounds to it
    update(model)
    matrices = [p for p in theirs.blocks.parameters() if p.dim() == 2]
    parts = [
        torch.nn.Parameter(part)
        for p in matrices
        for part in p.detach().chunk(3 if p.shape == (36, 12) else 1)
    ]
    optimizer = torch.optim.Muon(parts, lr=RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    for seed in range(NUM_UPDATES):
        set_gradients(theirs, seed=seed)
        gradients = [g for p in matrices for g in p.grad.chunk(3 if p.shape == (36, 12) else 1)]
        for part, gradient in zip(parts, gradients, strict=True):
            part.grad = gradient
        optimizer.step()
    for name, parameter in model.blocks.named_parameters():
        if parameter.dim() == 2:
            expected = theirs.blocks.get_parameter(name)
            # float32, sums of 20 terms in another order, through five iterations
            torch.testing.assert_close(parameter, expected, rtol=1e-4, atol=1e-5, msg=name)


def test_all_else_is_updated_as_adamw_does_at_twice_the_rate(model):
    theirs = copy.deepcopy(model)
    update(model)
    optimizer = build_optimizer(theirs, weight_decay=DECAY)
    set_learning_rate(optimizer, 2 * RATE)
    for seed in range(NUM_UPDATES):
        set_gradients(theirs, seed=seed)
        optimizer.step()
    for name, parameter in model.named_parameters():
        if not (name.startswith("blocks") and parameter.dim() == 2):
            assert torch.equal(parameter, theirs.get_parameter(name)), name


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 96, 24), (2, 24, 96), (1, 1, 7), (1, 7, 1)])
def test_singular_values_come_near_one_and_the_singular_vectors_stay(shape):
    generator = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    size = min(shape[1:])
    values = torch.logspace(0, -2, size)  # the smallest is a hundredth of the largest
    found = u.mT @ muon.orthogonalized(u * values @ vh) @ vh.mT
    diagonal = found.diagonal(dim1=1, dim2=2)
    assert diagonal.min() > 0.6
    assert diagonal.max() < 1.3
    torch.testing.assert_close(found, torch.diag_embed(diagonal), rtol=0, atol=1e-4)


def test_a_matrix_of_zeros_has_no_update():
    assert torch.equal(muon.orthogonalized(torch.zeros(2, 5, 3)), torch.zeros(2, 5, 3))


def test_frozen_parameters_stay_as_they_are(model):
    frozen = [model.blocks[0].attention.qkv.weight, model.positional_encoding.pe]
    for parameter in frozen:
        parameter.requires_grad_(False)
    before = copy.deepcopy(frozen)
    update(model)
    assert all(map(torch.equal, before, frozen))
