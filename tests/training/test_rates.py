"""The range test: it raises the rate until the loss rises, and leaves nothing but its picture."""

import math
import re

import pytest
from tiny_run import prepare, train_quickly

from storage import checkpoint
from system.errors import ConfigError
from training import rates
from training.learner import Learner
from training.rates import rate_of_fall, smooth


def test_smooth_is_the_mean_that_forgets():
    losses = [3.0, 1.0, 4.0, 1.0, 5.0]
    parts = [rates.KEPT ** (4 - n) for n in range(5)]
    expected = sum(p * loss for p, loss in zip(parts, losses, strict=True)) / sum(parts)
    assert smooth(losses)[-1] == pytest.approx(expected)
    assert smooth([2.0]) == pytest.approx([2.0])


def test_where_the_loss_stays_low_after_its_fall_does_not_matter():
    fall, means = [1e-4, 1e-3, 1e-2, 1e-1], [9.0, 5.0, 4.3, 4.0]
    assert rate_of_fall(fall, means, part=0.9) == 1e-2
    assert rate_of_fall([*fall, 1.0, 10.0], [*means, 3.9, 8.0], part=0.9) == 1e-2
    assert rate_of_fall([1e-4], [9.0], part=0.9) == 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", sorted(rates.PARTS))
def test_whole_runs_at_the_recommended_rate_are_among_the_best(place, capsys, optimizer):
    prepare(place, num_chars=40_000)
    sizes = {"embedding_dim": 32, "ffn_hidden_dim": 128, "batch_size": 8, "grad_accum_steps": 1}
    schedule = {"warmup_steps": 0, "lr_schedule": "linear", "lr_min_ratio": 0.0, "max_steps": 150}
    often = {"num_epochs": 99, "eval_freq": 10**6, "save_freq": 10**6, "dropout": 0.0}
    config = {**sizes, **schedule, **often, "optimizer": optimizer}
    train_quickly({"find_lr": True}, **config)
    recommended = float(re.search(r"--learning_rate (\S+)$", capsys.readouterr().out, re.M)[1])
    losses = {}
    for factor in (1 / 9, 1 / 3, 1, 3, 9):
        state = checkpoint.load(train_quickly(**config, learning_rate=factor * recommended))
        losses[factor] = state["history"]["train_losses"][-20:].mean().item()
    assert 1 / 9 < min(losses, key=losses.get) < 9


def test_a_rate_is_recommended_below_those_that_make_it_worse(place, capsys):
    train_quickly({"find_lr": True}, warmup_steps=0, dropout=0.0)
    said = capsys.readouterr().out
    recommended = float(re.search(r"next +python train.py --learning_rate (\S+)$", said, re.M)[1])
    assert 1e-4 <= recommended <= 0.1
    assert (place / rates.NAME).read_bytes().startswith(b"\x89PNG")
    left = {path.name for path in place.glob("[!.]*")}
    assert left == {"data.txt", rates.NAME}


def test_where_nothing_is_left_to_learn_at_once_no_rate_is_recommended(place, monkeypatch, capsys):
    monkeypatch.setattr(rates, "HIGHEST", 2 * rates.LOWEST)
    monkeypatch.setattr(rates, "MOST_STEPS", rates.LEAST_STEPS)
    train_quickly({"find_lr": True}, dropout=0.0)
    said = capsys.readouterr().out
    assert "the loss has hardly fallen at any: none is recommended" in said
    assert "--learning_rate" not in said
    assert (place / rates.NAME).read_bytes().startswith(b"\x89PNG")


def test_a_model_too_slow_for_a_minute_is_refused_before_it_takes_one(place, monkeypatch):
    monkeypatch.setattr(Learner, "seconds_per_update", lambda *_, measured: 18.0)
    monkeypatch.setattr(Learner, "update", None)
    with pytest.raises(ConfigError, match=r"and one takes 18.0 s here: lower batch_size"):
        train_quickly({"find_lr": True})


def test_it_ends_where_a_loss_is_not_finite(place, monkeypatch):
    monkeypatch.setattr(rates, "HIGHEST", 1e12)
    monkeypatch.setattr(rates, "TOO_BAD", math.inf)
    train_quickly({"find_lr": True})
    assert (place / rates.NAME).exists()
