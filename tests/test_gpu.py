"""A GPU gives what the processor gives; the processor itself is held to the same claims."""

import pytest
import torch
from machines import plain_machine
from tiny_model import SIZES, T, V, clear_model, tokens_of
from tiny_run import train_quickly

from generation.fast_weights import prepared
from model import num_parameters
from storage import checkpoint
from training.learner import Learner, dropout_seeds
from training.settings import DEFAULTS

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
KINDS = ["float32", "bfloat16", "float16"]


@pytest.fixture
def exact_products():
    """Products of float32 in float32: no TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def learned(device: str, precision: str, **changes) -> tuple[list[float], torch.Tensor]:
    """Losses of six updates of a small model, and its weights afterwards."""
    config = {**DEFAULTS, **SIZES, "dropout": 0.0, "batch_size": 3, "compile": "off", **changes}
    machine = plain_machine(device, precision)
    learner = Learner(clear_model().train().to(device), machine, config)
    draws = torch.Generator().manual_seed(1)
    losses = []
    for _ in range(6):
        ids = torch.randint(V, (3, T + 1), generator=draws).to(device)
        seeds = dropout_seeds(0, len(losses), len(ids))
        record = learner.update(ids[:, :-1], ids[:, 1:], learning_rate=1e-3, seeds=seeds)
        losses.append(record.loss)
    weights = [parameter.detach().flatten().cpu() for parameter in learner.model.parameters()]
    return losses, torch.cat(weights)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.usefixtures("exact_products")
def test_updates_are_those_of_the_processor(device):
    losses, weights = learned(device, "float32")
    expected_losses, expected = learned("cpu", "float32")
    assert losses == pytest.approx(expected_losses, rel=1e-4)  # float32, another order of sums
    assert len(weights) == num_parameters(clear_model())
    # Adam's steps are of the rate's size where a gradient is nearly 0: 6 x 1e-3 at most
    assert (weights - expected).abs().max() < 2e-3
    assert (weights - expected).abs().mean() < 1e-5


@pytest.mark.parametrize("precision", KINDS)
@pytest.mark.parametrize("device", DEVICES)
def test_every_type_learns_what_float32_learns(device, precision):
    losses, _ = learned(device, precision)
    assert losses == pytest.approx(learned("cpu", "float32")[0], rel=2e-2)  # 8 bits, logits near 10


@pytest.mark.gpu
def test_a_compiled_objective_learns_the_same():
    compiled = learned("cuda", "float32", compile="on")[0]
    assert compiled == pytest.approx(learned("cuda", "float32")[0], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.usefixtures("place")
def test_a_run_resumed_there_ends_with_the_same_bits():
    there = {"device": "cuda", "lr_schedule": "constant"}
    path = train_quickly(**there)
    whole = checkpoint.load(path)["model_state_dict"]
    train_quickly(**there, num_epochs=1)
    again = checkpoint.load(train_quickly({"resume": True, "num_epochs": 3}, **there))
    for name, weight in again["model_state_dict"].items():
        assert torch.equal(weight, whole[name]), name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.usefixtures("exact_products")
def test_the_same_text_is_written_there(device):
    prompts = [[3], [1, 2, 3, 4, 5], [9, 8]]
    expected = tokens_of(clear_model(), prompts, 3 * T)
    assert tokens_of(prepared(clear_model().to(device), "float32"), prompts, 3 * T) == expected
