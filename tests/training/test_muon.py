"""Muon beside torch's own, on matrices whose decomposition is known, and through a whole run."""

import copy

import pytest
import torch
from torch import Tensor, nn

from model import Transformer, build_transformer
from training import muon
from training.capacity import Learning
from training.optim import OPTIMIZERS, build_optimizer, set_learning_rate
from training.settings import DEFAULTS

RATE, DECAY = 0.01, 0.5
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


def update(model: Transformer, name: str = "muon") -> torch.optim.Optimizer:
    """Makes some updates with gradients that have nothing to do with the model."""
    optimizer = build_optimizer(model, name, weight_decay=DECAY)
    set_learning_rate(optimizer, RATE)
    for seed in range(NUM_UPDATES):
        set_gradients(model, seed=seed)
        optimizer.step()
        optimizer.zero_grad()
    return optimizer


def test_matrices_of_blocks_are_updated_as_torchs_muon_updates_them(model, monkeypatch):
    theirs = copy.deepcopy(model)
    # theirs rounds to bfloat16, and ours has other polynomials: what both come near to
    monkeypatch.setattr(muon, "orthogonalized", lambda x: torch.stack([polar(m) for m in x]))
    monkeypatch.setattr("torch.optim._muon._zeropower_via_newtonschulz", lambda x, *_: polar(x))
    update(model)
    matrices = [(p, 3 if "qkv" in n else 1) for n, p in theirs.blocks.named_parameters()]
    matrices = [(p, num_parts) for p, num_parts in matrices if p.dim() == 2]
    parts = [nn.Parameter(part) for p, number in matrices for part in p.detach().chunk(number)]
    how = {"momentum": muon.MOMENTUM, "adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0}
    optimizer = torch.optim.Muon(parts, lr=RATE, **how)
    for seed in range(NUM_UPDATES):
        set_gradients(theirs, seed=seed)
        gradients = [part for p, number in matrices for part in p.grad.chunk(number)]
        for part, gradient in zip(parts, gradients, strict=True):
            part.grad = gradient
        before = [part.detach().clone() for part in parts]
        optimizer.step()
        for part, old in zip(parts, before, strict=True):
            part.data -= RATE * DECAY * old * ((old - part) * old > 0)  # where it shrinks anyway
    for name, expected in theirs.blocks.named_parameters():
        if expected.dim() == 2:
            # float32, sums of 20 terms in another order
            torch.testing.assert_close(model.blocks.get_parameter(name), expected, msg=name)


def polar(matrix: Tensor) -> Tensor:
    """U V^T by decomposition."""
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    return u @ vh


def test_all_else_is_updated_as_adamw_does(model):
    theirs = copy.deepcopy(model)
    update(model)
    update(theirs, "adamw")
    for name, parameter in model.named_parameters():
        if not (name.startswith("blocks") and parameter.dim() == 2):
            assert torch.equal(parameter, theirs.get_parameter(name)), name


SHAPES = [(3, 64, 64), (2, 96, 24), (2, 24, 96), (1, 1, 7), (1, 7, 1)]


@pytest.mark.parametrize("scale", [1e-6, 1e4])
@pytest.mark.parametrize("shape", SHAPES)
def test_singular_values_come_near_one_and_the_singular_vectors_stay(shape, scale):
    generator = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(shape, generator=generator), full_matrices=False)
    values = torch.logspace(0, -1.7, min(shape[1:])) * scale  # the smallest is a 50th
    found = u.mT @ muon.orthogonalized(u * values @ vh) @ vh.mT
    diagonal = found.diagonal(dim1=1, dim2=2)
    assert diagonal.min() > 0.7
    assert diagonal.max() < 1.3
    torch.testing.assert_close(found, torch.diag_embed(diagonal), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("decades", [0, 2, 4])
@pytest.mark.parametrize("shape", [(64, 64), (64, 96), (96, 64)])
def test_few_bits_turn_an_update_by_a_fifth_at_most(shape, decades, dtype):
    generator = torch.Generator().manual_seed(0)
    u, _, vh = torch.linalg.svd(torch.randn(1, *shape, generator=generator), full_matrices=False)
    matrices = u * torch.logspace(0, -decades, 64) @ vh * 1e-4
    exact = muon.orthogonalized(matrices)
    with torch.autocast("cpu", dtype):
        found = muon.orthogonalized(matrices)
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found.flatten(), exact.flatten(), dim=0) > 0.98


def test_a_matrix_of_zeros_has_no_update():
    assert torch.equal(muon.orthogonalized(torch.zeros(2, 5, 3)), torch.zeros(2, 5, 3))


def test_frozen_parameters_stay_as_they_are(model):
    frozen = [model.blocks[0].attention.qkv.weight, model.positional_encoding.pe]
    for parameter in frozen:
        parameter.requires_grad_(False)
    before = copy.deepcopy(frozen)
    update(model)
    assert all(map(torch.equal, before, frozen))


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_memory_that_is_foretold_is_what_the_moments_take(model, name):
    sizes = {"embedding_dim": 12, "num_layers": 2, "num_heads": 3, "ffn_hidden_dim": 20}
    sizes = {**DEFAULTS, **sizes, "seq_len": 7}
    states = update(model, name).state.values()
    num_bytes = sum(m.nbytes for state in states for m in state.values() if m.dim())
    assert Learning.of({**sizes, "optimizer": name}, 11).moment_bytes == num_bytes
