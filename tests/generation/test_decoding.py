"""Rows that a model continues: with the cache as without it, in a batch as alone."""

import pytest
import torch
from tiny_model import T, V, clear_model, ending_after, naive_logits, tokens_of

from generation.decoding import Context
from generation.settings import Sampling

PROMPTS = [[3], [1, 2, 3, 4, 5], [9, 8], [0] * (2 * T), [5, 6, 7, 8, 9, 10, 0]]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return clear_model()


@pytest.mark.parametrize("prompt", PROMPTS, ids=len)
def test_cached_logits_are_those_of_reading_the_window_past_the_overflow_too(model, prompt):
    context = Context(model, [prompt], max_new_tokens=3 * T)
    ids = list(prompt)
    for step in range(3 * T):
        with torch.no_grad():
            logits = context.logits()[0]
        # float32, other summation order: some 1e-6 of logits near 10
        torch.testing.assert_close(logits, naive_logits(model, ids), rtol=1e-4, atol=1e-4)
        ids.append(step % V)
        context.append([step % V])


def test_each_row_of_an_uneven_batch_reads_as_if_it_were_alone(model):
    context = Context(model, PROMPTS, max_new_tokens=3 * T)
    rows = [list(prompt) for prompt in PROMPTS]
    for step in range(3 * T):
        with torch.no_grad():
            logits = context.logits()
        expected = torch.stack([naive_logits(model, row) for row in rows])
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)  # as above
        tokens = [(step * number) % V for number in range(len(rows))]
        context.append(tokens)
        for row, token in zip(rows, tokens, strict=True):
            row.append(token)


def test_only_new_tokens_are_read_while_they_fit(model, monkeypatch):
    sizes = []
    read = type(model).hidden_states
    monkeypatch.setattr(
        type(model), "hidden_states", lambda *a: (sizes.append(a[1].size(1)), read(*a))[1]
    )
    tokens_of(model, [[1, 2, 3], [4]], T + 1)
    assert sizes == [3] + [1] * (T - 3) + [T] * 3


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(), Sampling(top_p=0.7)], ids=str
)
def test_each_row_is_written_as_if_it_were_alone(model, sampling):
    together = tokens_of(model, PROMPTS, 2 * T, sampling=sampling, seeds=[7] * len(PROMPTS))
    alone = [tokens_of(model, [p], 2 * T, sampling=sampling, seeds=[7])[0] for p in PROMPTS]
    assert together == alone


def test_rows_that_end_early_leave_the_others_as_they_are(model):
    full = tokens_of(model, PROMPTS, 2 * T)
    lengths = [3, 2 * T, 1, 5, 9]
    assert tokens_of(model, PROMPTS, 2 * T, is_over=ending_after(lengths)) == [
        text[:length] for text, length in zip(full, lengths, strict=True)
    ]


def test_selected_rows_go_on_where_they_were(model):
    context = Context(model, PROMPTS[:3], max_new_tokens=T)
    with torch.no_grad():
        context.logits()
        context.append([1, 2, 3])
        context.select([2, 0, 2])
        logits = context.logits()
    expected = [naive_logits(model, ids) for ids in ([9, 8, 3], [3, 1], [9, 8, 3])]
    torch.testing.assert_close(logits, torch.stack(expected), rtol=1e-4, atol=1e-4)  # as above


def test_the_cache_is_no_larger_than_the_text_needs(model):
    assert Context(model, [[1, 2]], max_new_tokens=3).cache.capacity == 5
    assert Context(model, [[1, 2]], max_new_tokens=300).cache.capacity == T


def test_a_row_draws_from_its_own_seed(model):
    texts = tokens_of(
        model, [[1]] * 6, 5, sampling=Sampling(temperature=3.0), seeds=[1, 2, 3, 1, 4, 5]
    )
    assert texts[0] == texts[3]
    assert len({tuple(text) for text in texts}) == 5
