"""A number that is not finite never reaches the weights or a file; the line says where it was."""

import math

import pytest
import torch
from tiny_run import train_quickly

from storage import checkpoint
from system.errors import NonFiniteError
from system.machine import Machine
from system.process import exit_code_of
from training.learner import Learner

pytestmark = pytest.mark.usefixtures("place")


def spoil(monkeypatch, step, change):
    """Lets `change(learner, loss)` act on the gradients and the loss from an update on.

    Before the first update that of its batch is timed twice.
    """
    accumulate, calls = Learner.accumulate_gradients, []

    def spoilt(learner, *batch):
        calls.append(learner)
        loss = accumulate(learner, *batch)
        return change(learner, loss) if len(calls) > step + 2 else loss

    monkeypatch.setattr(Learner, "accumulate_gradients", spoilt)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("part", ["loss", "gradient"])
def test_a_bad_loss_or_gradient_is_never_applied(place, monkeypatch, bad, part):
    seen = {}

    def change(learner, loss):
        pe = learner.model.positional_encoding.pe
        seen.update(pe=pe, before=pe.clone())
        pe.grad[0, 0] = bad
        return torch.tensor(bad) if part == "loss" else loss

    spoil(monkeypatch, 7, change)
    with pytest.raises(NonFiniteError, match=r"at step 7, learning rate .*, batch '") as caught:
        train_quickly()
    assert exit_code_of(caught.value) == 7
    assert torch.equal(seen["pe"], seen["before"])
    for path in place.glob("*.pt"):
        assert checkpoint.load(path)["step"] < 7


def test_a_rate_that_diverges_ends_with_a_line_and_finite_files(place):
    with pytest.raises(NonFiniteError) as caught:
        train_quickly(learning_rate=1e30, save_freq=1, warmup_steps=0)
    assert exit_code_of(caught.value) == 7
    for path in place.glob("*.pt"):
        checkpoint.load(path)  # refuses what is not finite


def scaler_from(monkeypatch, scale: float) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=scale)
    monkeypatch.setattr(Machine, "gradient_scaler", lambda machine: scaler)


def test_float16_overflows_are_skipped_and_counted(monkeypatch, capsys):
    scaler_from(monkeypatch, 2.0**28)
    history = checkpoint.load(train_quickly(precision="float16", patience=0))["history"]
    assert 0 < history["num_skipped"] < len(history["train_losses"])
    assert f"{history['num_skipped']} skipped" in capsys.readouterr().out


def test_an_overflow_that_no_smaller_scale_can_cure_ends_the_run(monkeypatch):
    scaler_from(monkeypatch, 4.0)

    def change(learner, loss):
        learner.model.positional_encoding.pe.grad.fill_(math.inf)
        return loss

    spoil(monkeypatch, 0, change)
    with pytest.raises(NonFiniteError, match=r"gradient norm .* at step 3"):
        train_quickly(precision="float16")
