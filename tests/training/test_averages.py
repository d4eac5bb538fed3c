"""Averages of weights: against sums written out, in evaluations, files and resumes."""

import math
import re
from pathlib import Path

import pytest
import torch
from test_resume import stop_before
from tiny_run import CONFIG, fingerprint, prepare, train_quickly

from reports.history import History
from storage import checkpoint
from system.errors import CheckpointError
from training import begin, store
from training.averages import EMA_POWER, Averages
from training.engines import Whole
from training.samples import measure
from training.wanted import wanted

HOWS = ["ema", "tail", 0.7]
ENGINE = Whole.__new__(Whole)  # which has nothing to forget


def shares(how: str | float, num_updates: int) -> torch.Tensor:
    """What each of the weights after update 1, 2, ... has of the average, written out."""
    steps = torch.arange(1, num_updates + 1, dtype=torch.float64)
    if how == "ema":
        return (steps**EMA_POWER - (steps - 1) ** EMA_POWER) / num_updates**EMA_POWER
    if how == "tail":
        is_late = torch.arange(num_updates) / (num_updates - 1) >= 0.8
        return is_late / is_late.sum()
    kept = [min(how, n / (n + 11)) for n in range(num_updates)]
    return torch.tensor([(1 - k) * math.prod(kept[n + 1 :]) for n, k in enumerate(kept)]).double()


@pytest.mark.parametrize("how", [*HOWS, 0.999])
def test_averages_are_the_sums_that_they_are_meant_to_be(how):
    torch.manual_seed(0)
    model = torch.nn.Linear(3, 2)
    averages, seen = Averages(model, ENGINE, how), []
    for step in range(41):
        with torch.no_grad():
            model.weight.normal_()
        averages.add(step, step / 40)
        seen.append(model.weight.detach().double())
    parts = shares(how, 41)
    assert parts.sum() == pytest.approx(1)
    expected = (torch.stack(seen) * parts[:, None, None]).sum(0).float()
    torch.testing.assert_close(averages.values["weight"], expected, rtol=1e-4, atol=1e-6)
    with averages.in_place():
        assert torch.equal(model.weight, averages.values["weight"])
    assert torch.equal(model.weight.double(), seen[-1])  # to the bit


def history_of(path: Path) -> History:
    return History.from_state_dict(checkpoint.load(path)["history"])


def test_stopped_and_resumed_the_averages_are_the_same_bits(place, monkeypatch):
    how = {"average_weights": "tail"}  # test_tuning.py has the same of "ema"
    expected = train_quickly(**how)
    prepare(place / "stopped")
    stop_before(monkeypatch, 15, **how)
    assert fingerprint(train_quickly(resume=True, **how)) == fingerprint(place / expected)
    name = "model_checkpoint_step_18.pt"
    assert fingerprint(Path(name)) == fingerprint(place / name)


NOISY = {"learning_rate": 0.1, "lr_schedule": "constant", "warmup_steps": 0, "patience": 0}


def test_training_is_what_it_is_without_and_both_losses_are_told(place, capsys):
    plain = history_of(train_quickly(**NOISY))
    prepare(place / "averaged")
    capsys.readouterr()
    history = history_of(train_quickly(**NOISY, average_weights=0.8))
    assert history.train_losses == plain.train_losses
    raw = [e.other_loss if e.is_averaged else e.loss for e in history.evaluations]
    assert raw == [e.loss for e in plain.evaluations]
    assert {e.is_averaged for e in history.evaluations} == {True, False}
    lines = re.findall(r"^step .*$", capsys.readouterr().out, re.MULTILINE)
    for line, evaluation in zip(lines, history.evaluations, strict=False):  # up to the best one
        assert evaluation.loss <= evaluation.other_loss
        other = "not averaged" if evaluation.is_averaged else "averaged"
        assert f"  {other} {evaluation.other_loss:.3f}" in line


def test_better_averages_are_the_best_and_the_final_model_and_not_what_training_goes_on_with(place):
    run = begin.begin(wanted({**CONFIG, **NOISY, "average_weights": 0.8}, {}))
    for _ in range(8):
        run.update()
    before = run.full_weights()
    loss, _ = measure(run)
    run.record(loss)
    assert run.history.best.loss < run.history.best.other_loss == loss
    store.keep_if_best(run)
    run.saved_path = store.save_final(run)
    averages = run.full_weights(averaged=True)
    for path in (Path(checkpoint.BEST_NAME), run.saved_path):
        saved = checkpoint.load(path)["model_state_dict"]
        assert all(torch.equal(saved[name], averages[name]) for name in averages)
        assert not any(torch.equal(saved[name], before[name]) for name in before)
    assert all(torch.equal(run.full_weights()[name], before[name]) for name in before)


def test_weights_that_are_better_than_their_averages_stay(place):
    path = train_quickly(learning_rate=1e-3, average_weights=0.999, lr_schedule="constant")
    best = history_of(path).best
    assert not best.is_averaged
    assert best.other_loss > best.loss
    weights, newest = (
        checkpoint.load(p)["model_state_dict"] for p in (path, Path("model_checkpoint_step_18.pt"))
    )
    assert all(torch.equal(weights[name], newest[name]) for name in newest)


def test_without_averages_nothing_of_them_is_kept_and_they_may_begin_later(place):
    train_quickly(num_epochs=2)
    state = checkpoint.load(Path("model_checkpoint_step_12.pt"))
    assert (state["averages"], state["num_in_tail"]) == ({}, 0)
    path = train_quickly(resume=True, average_weights="ema", num_epochs=4)
    assert history_of(path).evaluations[-1].other_loss is not None


def test_averages_of_another_shape_are_refused(place, monkeypatch):
    train_quickly(num_epochs=1, average_weights="ema")
    path = Path("model_checkpoint_step_6.pt")
    state = checkpoint.load(path)
    state["averages"] = {name: value[:1] for name, value in state["averages"].items()}
    checkpoint.save(path, state)
    with pytest.raises(CheckpointError, match=r"the average of .* has another shape"):
        train_quickly(resume=True, average_weights="ema", num_epochs=2)
