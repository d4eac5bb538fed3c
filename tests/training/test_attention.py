"""Attention: each way of ATTENTIONS computes the formula, and no position sees a later one."""

import math

import pytest
import torch
from torch import Tensor

from model import ATTENTIONS, build_transformer, written_attention

B, H, T, D = 3, 2, 7, 5
NO_DROPOUT = 1e-9  # rounds to no element, but takes the path that dropout takes
EACH_ATTENTION = pytest.mark.parametrize("attention", ATTENTIONS.values(), ids=ATTENTIONS.keys())


def some_inputs(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Query, key and value, each (B, H, T, D)."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(B, H, T, D, generator=generator).to(dtype) for _ in range(3)]


def naive_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One output vector at a time, in float64."""
    query, key, value = query.double(), key.double(), value.double()
    result = torch.empty_like(value)
    for t in range(T):
        scores = (query[..., t : t + 1, :] * key[..., : t + 1, :]).sum(-1) / math.sqrt(D)
        weights = scores.softmax(-1)
        result[..., t, :] = (weights[..., None] * value[..., : t + 1, :]).sum(-2)
    return result


@EACH_ATTENTION
@pytest.mark.parametrize("dropout", [0.0, NO_DROPOUT])
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.bfloat16, 4e-2)],  # 24 and 8 bits, sums of 7 terms
)
def test_attention_is_the_formula_on_every_path(dtype, tolerance, dropout, attention):
    inputs = some_inputs(dtype)
    result = attention(*inputs, dropout=dropout)
    assert result.dtype == dtype
    expected = naive_attention(*inputs)
    torch.testing.assert_close(result.double(), expected, rtol=tolerance, atol=tolerance)


@EACH_ATTENTION
@pytest.mark.parametrize("dropout", [0.0, NO_DROPOUT])
def test_gradients_of_attention_are_those_of_the_formula(dropout, attention):
    ours, naive = ([x.requires_grad_() for x in some_inputs()] for _ in range(2))
    attention(*ours, dropout=dropout).square().sum().backward()
    naive_attention(*naive).square().sum().backward()
    for x, expected in zip(ours, naive, strict=True):
        torch.testing.assert_close(x.grad, expected.grad, rtol=1e-4, atol=1e-4)  # float32


@pytest.mark.parametrize("size", [1, 3, 4, 6])
@pytest.mark.parametrize("dropout", [0.0, NO_DROPOUT])
def test_attention_a_few_positions_at_a_time_is_the_same(monkeypatch, size, dropout):
    monkeypatch.setattr("model.QUERIES_AT_ONCE", size)  # of T = 7: with a rest, without, nearly all
    test_attention_is_the_formula_on_every_path(torch.float32, 1e-5, dropout, written_attention)
    test_gradients_of_attention_are_those_of_the_formula(dropout, written_attention)
    test_dropout_in_attention_sees_no_future(written_attention)
    some = torch.rand(B, 1, T, T, generator=torch.Generator().manual_seed(1)) > 0.5
    mask = (some | torch.eye(T, dtype=torch.bool)).tril()
    results = [attend(*some_inputs(), mask=mask, dropout=0.0) for attend in ATTENTIONS.values()]
    torch.testing.assert_close(*results)


def test_positions_computed_apart_have_masks_of_their_own(monkeypatch):
    monkeypatch.setattr("model.QUERIES_AT_ONCE", 1)
    query, key, value = (torch.zeros(1, 64, 64, D) for _ in range(3))
    value[..., 0, :] = 1.0
    mixed = written_attention(query, key, value, dropout=0.5, seeds=torch.tensor([7]))[0, ..., 0]
    is_dropped = mixed == 0  # whether a position lost sight of position 0
    for distance in (1, 2, 32):
        both = (is_dropped[:, distance:] & is_dropped[:, :-distance]).double().mean().item()
        assert both == pytest.approx(0.25, abs=0.05)  # of 2,000 pairs or more: a deviation is 0.01


@EACH_ATTENTION
def test_dropout_in_attention_sees_no_future(attention):
    query, key, value = some_inputs()
    later_key, later_value = key.clone(), value.clone()
    later_key[:, :, 4:] += 1
    later_value[:, :, 4:] += 1
    torch.manual_seed(0)
    before = attention(query, key, value, dropout=0.3)
    torch.manual_seed(0)
    after = attention(query, later_key, later_value, dropout=0.3)
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert not torch.equal(before[:, :, 4:], after[:, :, 4:])


@EACH_ATTENTION
def test_dropout_in_attention_keeps_the_mean(attention):
    torch.manual_seed(0)
    query, key, value = some_inputs()
    results = [attention(query, key, value, dropout=0.3) for _ in range(2000)]
    expected = attention(query, key, value, dropout=0.0)
    # a result varies by 0.65 |value| at most, its mean over 2000 by 0.015; five of these
    torch.testing.assert_close(torch.stack(results).mean(0), expected, rtol=0, atol=0.2)


def test_a_model_computes_attention_as_it_is_told():
    torch.manual_seed(0)
    model = build_transformer(11, T, 12, 2, 3, 0.0, 20).to(torch.float64)
    ids = torch.arange(T).expand(B, T)
    results = []
    for name, function in ATTENTIONS.items():
        model.use_attention(name)
        assert {block.attention.causal_attention for block in model.blocks} == {function}
        results.append(model(ids))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-9)  # float64, sums of 7 terms
