"""One token from logits: the filters against naive ones, and how often a token is drawn."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from generation.generator import check_sampling
from generation.sampling import keep_top_k, keep_top_p, next_tokens
from system.errors import NonFiniteError, SamplingError

V, B = 11, 3
TIES = [[1.0, 3.0, 3.0, 2.0, 3.0, 0.0, 2.0, 2.0, -1.0, 3.0, 0.5], [0.0] * V, [5.0] + [0.0] * 10]


def some_logits(num_tokens: int = V) -> Tensor:
    return 2 * torch.randn(B, num_tokens, generator=torch.Generator().manual_seed(0))


def kept(logits: Tensor) -> list[set[int]]:
    """The tokens of each row that can still be drawn."""
    return [set(row.isfinite().nonzero()[:, 0].tolist()) for row in logits]


def drawn(logits: Tensor, *, seed: int = 0, **changed: Any) -> Tensor:
    settings = {"temperature": 1.0, "top_k": None, "top_p": None, **changed}
    return next_tokens(logits, generator=torch.Generator().manual_seed(seed), **settings)


# ---------------------------------------------------------------- filters


@pytest.mark.parametrize("k", [1, 2, 4, V - 1, V, V + 1, 1000])
@pytest.mark.parametrize("logits", [some_logits(), torch.tensor(TIES)], ids=["random", "ties"])
def test_top_k_keeps_what_fewer_than_k_tokens_exceed(logits, k):
    before = logits.clone()
    result = keep_top_k(logits, k)
    expected = [
        {i for i in range(V) if sum(other > row[i] for other in row) < k} for row in logits.tolist()
    ]
    assert kept(result) == expected
    assert torch.equal(result[result.isfinite()], logits[result.isfinite()])
    assert torch.equal(logits, before)


def naive_nucleus(row: Tensor, p: float) -> set[int]:
    """Takes the likeliest tokens, of equals the first, until their sum reaches p."""
    probabilities = row.double().softmax(-1).tolist()
    nucleus, total = set(), 0.0
    for i in sorted(range(len(probabilities)), key=lambda i: -probabilities[i]):
        nucleus.add(i)
        total += probabilities[i]
        if total >= p:
            break
    return nucleus


@pytest.mark.parametrize("p", [1e-9, 0.15, 0.33, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("logits", [some_logits(), torch.tensor(TIES)], ids=["random", "ties"])
def test_top_p_keeps_the_fewest_tokens_that_reach_p(logits, p):
    before = logits.clone()
    assert kept(keep_top_p(logits, p)) == [naive_nucleus(row, p) for row in logits]
    assert torch.equal(logits, before)


def test_the_token_that_crosses_p_is_kept():
    logits = torch.tensor([[0.5, 0.25, 0.125, 0.125]]).log()
    assert [kept(keep_top_p(logits, p))[0] for p in (0.4, 0.6, 0.8)] == [{0}, {0, 1}, {0, 1, 2}]


@pytest.mark.parametrize("num_tokens", [V, 5000])
def test_top_p_of_1_keeps_every_token(num_tokens):
    logits = 3 * some_logits(num_tokens)  # so unlike that rounded sums reach 1 before the last
    assert torch.equal(keep_top_p(logits, 1.0), logits)


# ---------------------------------------------------------------- one token


@pytest.mark.parametrize("temperature", [0, 0.0, 1e-9, 1e-300])
def test_no_temperature_and_hardly_any_take_the_likeliest_token(temperature):
    logits = some_logits()
    assert torch.equal(drawn(logits, temperature=temperature), logits.argmax(-1))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_tokens_are_drawn_as_often_as_they_are_likely(temperature):
    num_draws = 20_000
    row = some_logits()[0]
    tokens = drawn(row.expand(num_draws, V), temperature=temperature)
    shares = tokens.bincount(minlength=V) / num_draws
    expected = (row / temperature).softmax(-1)
    deviation = (expected * (1 - expected) / num_draws).sqrt()
    assert ((shares - expected).abs() < 4 * deviation + 1e-3).all()


def test_temperature_comes_before_the_nucleus():
    logits = torch.tensor([[0.5, 0.3, 0.2]]).log().expand(500, 3)
    assert set(drawn(logits, top_p=0.45).tolist()) == {0}
    assert set(drawn(logits, top_p=0.45, temperature=10.0).tolist()) == {0, 1}


def test_each_row_is_drawn_for_itself():
    tokens = drawn(some_logits()[:1].expand(50, V))
    assert len(set(tokens.tolist())) > 2
    assert torch.equal(drawn(some_logits(), top_k=1), some_logits().argmax(-1))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_an_error(value, temperature):
    logits = some_logits()
    logits[1, 3] = value
    with pytest.raises(NonFiniteError, match="logits"):
        drawn(logits, temperature=temperature)


@pytest.mark.parametrize(
    "changed",
    [
        {"max_new_tokens": -1},
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
    ],
    ids=str,
)
def test_a_setting_that_means_nothing_is_named(changed):
    good = {"max_new_tokens": 0, "temperature": 0, "top_k": None, "top_p": None}
    check_sampling(**good)
    ((name, value),) = changed.items()
    with pytest.raises(SamplingError, match=f"{name}={value} "):
        check_sampling(**{**good, **changed})


def test_all_senseless_settings_are_named_together():
    with pytest.raises(SamplingError) as caught:
        check_sampling(max_new_tokens=-1, temperature=-1, top_k=0, top_p=2)
    assert str(caught.value).count(";") == 3
