"""The validation loss against a naive one; what measuring leaves as it was."""

import copy

import pytest
import torch
from machines import plain_machine
from torch import Tensor

from model import Transformer, build_transformer
from training.learner import Learner
from training.settings import DEFAULTS

V, T = 11, 7


@pytest.fixture
def model() -> Transformer:
    torch.manual_seed(0)
    model = build_transformer(V, T, 12, 2, 3, 0.5, 20)
    torch.nn.init.normal_(model.input_embedding.embedding.weight)  # losses that differ much
    return model


def some_ids(length: int) -> Tensor:
    return torch.randint(V, (length,), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def naive_mean_loss(model: Transformer, ids: Tensor) -> float:
    """Token by token: each window of T, its last one shorter, forgets what was before it."""
    losses = []
    for i in range(len(ids) - 1):
        window = ids[i // T * T : i + 1]
        losses.append(-model(window[None])[0, -1].log_softmax(-1)[ids[i + 1]].item())
    return sum(losses) / len(losses)


def learner_of(model: Transformer, batch_size: int, **config: str) -> Learner:
    sizes = {"seq_len": T, "batch_size": batch_size, "compile": "off"}
    return Learner(model, plain_machine(), {**DEFAULTS, **sizes, **config})


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("length", [2, T, T + 1, T + 2, 5 * T + 4])
def test_mean_loss_is_the_mean_over_all_tokens_for_any_batch_size(model, length, batch_size):
    ids = some_ids(length)
    loss = learner_of(model, batch_size).mean_loss(ids)
    expected = naive_mean_loss(model.eval(), ids)
    assert loss == pytest.approx(expected, rel=1e-5)  # float32, tens of terms


def test_measuring_restores_every_modules_mode_and_leaves_no_gradient(model):
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    learner_of(model, 2).mean_loss(some_ids(20))
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_timing_updates_before_the_first_changes_nothing_that_follows(model, optimizer):
    batch = some_ids(3 * T + 1)[:-1].view(3, T), some_ids(3 * T + 1)[1:].view(3, T)
    ends = []
    for is_timed in (False, True):
        learner = learner_of(copy.deepcopy(model), 3, optimizer=optimizer)
        if is_timed:
            assert learner.seconds_per_update(*batch, torch.arange(3), measured=0.01) > 0
        for _ in range(3):
            learner.update(*batch, learning_rate=0.01, seeds=torch.arange(3))
        ends.append(learner.model.state_dict())
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
