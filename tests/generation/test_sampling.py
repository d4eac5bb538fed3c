"""One token from logits: the filters against transformers' and naive ones, and how it is drawn."""

import math

import pytest
import torch
from torch import Tensor

from generation.sampling import (
    ban_repeated_ngrams,
    choose,
    draw,
    filtered,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    keep_typical,
    penalize_repetition,
)
from generation.settings import Sampling
from system.errors import NonFiniteError

V, B = 11, 3
HISTORY = [[1, 2, 3, 1, 2], [4, 4, 4], []]
TIES = [[1.0, 3.0, 3.0, 2.0, 3.0, 0.0, 2.0, 2.0, -1.0, 3.0, 0.5], [0.0] * V, [5.0] + [0.0] * 10]


def some_logits(num_tokens: int = V) -> Tensor:
    return 2 * torch.randn(B, num_tokens, generator=torch.Generator().manual_seed(0))


def kept(logits: Tensor) -> list[set[int]]:
    """The tokens of each row that can still be drawn."""
    return [set(row.isfinite().nonzero()[:, 0].tolist()) for row in logits]


def drawn(logits: Tensor, **settings) -> Tensor:
    """A token of each row, all from one generator, without a history."""
    source = torch.Generator().manual_seed(0)
    return choose(logits, [()] * len(logits), Sampling(**settings), [source] * len(logits))


both = pytest.mark.parametrize("logits", [some_logits(), torch.tensor(TIES)], ids=["any", "ties"])


@pytest.mark.parametrize("k", [1, 2, 4, V - 1, V, V + 1, 1000])
@both
def test_top_k_keeps_what_fewer_than_k_tokens_exceed(logits, k):
    result = keep_top_k(logits, k)
    exceeding = (logits[:, None, :] > logits[..., None]).sum(-1)
    assert kept(result) == [set((row < k).nonzero()[:, 0].tolist()) for row in exceeding]
    assert torch.equal(result[result.isfinite()], logits[result.isfinite()])


def naive_nucleus(row: Tensor, p: float) -> set[int]:
    """Takes the likeliest tokens, of equals the first, until their sum reaches p."""
    probabilities = row.double().softmax(-1).tolist()
    nucleus = []
    for i in sorted(range(V), key=lambda i: -probabilities[i]):
        if sum(probabilities[j] for j in nucleus) < p:
            nucleus.append(i)
    return set(nucleus)


@pytest.mark.parametrize("p", [1e-9, 0.15, 0.33, 0.5, 0.9, 0.999])
@both
def test_top_p_keeps_the_fewest_tokens_that_reach_p(logits, p):
    assert kept(keep_top_p(logits, p)) == [naive_nucleus(row, p) for row in logits]


@pytest.mark.parametrize("num_tokens", [V, 5000])
def test_top_p_of_1_keeps_every_token(num_tokens):
    logits = 3 * some_logits(num_tokens)  # so unlike that rounded sums reach 1 before the last
    assert torch.equal(keep_top_p(logits, 1.0), logits)


@pytest.mark.parametrize("num_tokens", [V, 5000])
@pytest.mark.parametrize("value", [0.02, 0.3, 0.9, 0.99])
def test_filters_keep_what_transformers_keeps(num_tokens, value):
    import transformers

    count = max(1, int(10 * value))
    logits, ids = some_logits(num_tokens), torch.zeros(B, 1, dtype=torch.long)
    pairs = [
        (keep_top_p(logits, value), transformers.TopPLogitsWarper(value)),
        (keep_min_p(logits, value), transformers.MinPLogitsWarper(value)),
        (keep_typical(logits, value), transformers.TypicalLogitsWarper(value)),
        (keep_top_k(logits, count), transformers.TopKLogitsWarper(count)),
    ]
    for ours, warper in pairs:
        assert torch.equal(ours, warper(ids, logits.clone())), type(warper).__name__


@pytest.mark.parametrize("penalty", [0.5, 1.3])
@pytest.mark.parametrize("n", [1, 2, 3, 6])  # the history has five ids
def test_rules_against_repetition_are_those_of_transformers(penalty, n):
    from transformers import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor

    logits = some_logits()[:1]
    ids = torch.tensor([[1, 2, 3, 1, 2]])
    ours = penalize_repetition(logits, ids.tolist(), penalty)
    assert torch.equal(ours, RepetitionPenaltyLogitsProcessor(penalty)(ids, logits.clone()))
    ours = ban_repeated_ngrams(logits, ids.tolist(), n)
    assert torch.equal(ours, NoRepeatNGramLogitsProcessor(n)(ids, logits.clone()))


def test_a_row_in_which_every_token_is_banned_stays_as_it_is():
    logits = some_logits()
    assert torch.equal(ban_repeated_ngrams(logits, [list(range(V)), [], []], 1), logits)


def test_the_order_of_the_filters_is_the_documented_one_and_their_input_stays():
    logits = some_logits()
    result = filtered(logits, HISTORY, Sampling(0.5, 6, 0.8, 0.1, 0.9, 1.5, 2))
    assert torch.equal(logits, some_logits())
    step = ban_repeated_ngrams(penalize_repetition(logits, HISTORY, 1.5), HISTORY, 2)
    step = (step - step.amax(-1, keepdim=True)) / 0.5
    step = keep_typical(keep_min_p(keep_top_p(keep_top_k(step, 6), 0.8), 0.1), 0.9)
    assert torch.equal(result, step)


def test_top_p_takes_equal_tokens_by_id_when_they_are_more_than_a_first_look_finds():
    logits = torch.zeros(1, 4096)  # so that sums of probabilities are exact
    assert keep_top_p(logits, 0.5)[0].isfinite().nonzero()[:, 0].tolist() == list(range(2048))


@pytest.mark.parametrize("temperature", [0, 1e-9, 1e-300])
def test_no_temperature_and_hardly_any_take_the_likeliest_token(temperature):
    logits = some_logits()
    assert torch.equal(drawn(logits, temperature=temperature), logits.argmax(-1))


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(),
        Sampling(0.7, top_k=5),
        Sampling(1.5, top_p=0.8),
        Sampling(min_p=0.2),
        Sampling(typical_p=0.6),
        Sampling(repetition_penalty=1.7, no_repeat_ngram=2),
    ],
    ids=str,
)
def test_tokens_are_drawn_as_often_as_the_filtered_distribution_says(sampling):
    num_draws, source = 20_000, torch.Generator().manual_seed(1)
    logits = filtered(some_logits()[:1], [[1, 2, 3, 1]], sampling)
    expected = num_draws * logits[0].softmax(-1)
    counts = draw(logits.expand(num_draws, V), [source] * num_draws).bincount(minlength=V)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    statistic = ((counts - expected)[possible] ** 2 / expected[possible]).sum().item()
    degrees = possible.sum().item() - 1
    # chi-square: mean k, variance 2k; five deviations and some for the long tail of a small k
    assert statistic < degrees + 5 * math.sqrt(2 * degrees) + 5


def test_a_token_of_probability_0_is_never_drawn():
    logits = torch.full((1, V), -math.inf)
    logits[0, 4] = 0.0
    assert {draw(logits, [torch.Generator().manual_seed(i)]).item() for i in range(200)} == {4}


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
