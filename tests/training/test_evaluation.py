"""The validation loss against a naive one; what measuring leaves as it was."""

import math

import pytest
import torch
from torch import Tensor

from model import Transformer, build_transformer
from training.evaluation import bits_per_byte, mean_loss
from training.loss import NextTokenLoss

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


@pytest.mark.parametrize("batch_size", [1, 2, 3, 100])
@pytest.mark.parametrize("length", [2, T, T + 1, T + 2, 5 * T + 4])
def test_mean_loss_is_the_mean_over_all_tokens_for_any_batch_size(model, length, batch_size):
    ids = some_ids(length)
    loss = mean_loss(NextTokenLoss(model), ids, seq_len=T, batch_size=batch_size)
    expected = naive_mean_loss(model.eval(), ids)
    assert loss == pytest.approx(expected, rel=1e-5)  # float32, tens of terms


@pytest.mark.parametrize("is_training", [True, False])
def test_evaluation_restores_the_mode_and_leaves_no_gradient(model, is_training):
    objective = NextTokenLoss(model).train(is_training)
    mean_loss(objective, some_ids(20), seq_len=T, batch_size=2)
    assert {module.training for module in objective.modules()} == {is_training}
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.is_grad_enabled()


def test_bits_per_byte_of_a_fair_guess_among_256_bytes_is_eight():
    assert bits_per_byte(math.log(256), num_tokens=5, num_bytes=5) == pytest.approx(8)
    assert bits_per_byte(math.log(2), num_tokens=10, num_bytes=40) == pytest.approx(0.25)
