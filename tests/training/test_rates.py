"""The range test: it raises the rate until the loss rises, and leaves nothing but its picture."""

import math
import re

import pytest
from tiny_run import train_quickly

from training import rates
from training.rates import smooth


def test_smooth_is_the_mean_that_forgets():
    losses = [3.0, 1.0, 4.0, 1.0, 5.0]
    parts = [0.9 ** (4 - n) for n in range(5)]
    expected = sum(p * loss for p, loss in zip(parts, losses, strict=True)) / sum(parts)
    assert smooth(losses)[-1] == pytest.approx(expected)
    assert smooth([2.0]) == pytest.approx([2.0])


def test_a_rate_is_recommended_below_those_that_make_it_worse(place, capsys):
    train_quickly({"find_lr": True}, warmup_steps=0, dropout=0.0)
    said = capsys.readouterr().out
    recommended = float(re.search(r"next +python train.py --learning_rate (\S+)$", said, re.M)[1])
    assert 1e-4 <= recommended <= 0.1
    assert (place / rates.NAME).read_bytes().startswith(b"\x89PNG")
    left = {path.name for path in place.glob("[!.]*")}
    assert left == {"data.txt", rates.NAME}


def test_it_ends_where_a_loss_is_not_finite(place, monkeypatch):
    monkeypatch.setattr(rates, "HIGHEST", 1e12)
    monkeypatch.setattr(rates, "TOO_BAD", math.inf)
    train_quickly({"find_lr": True})
    assert (place / rates.NAME).exists()
