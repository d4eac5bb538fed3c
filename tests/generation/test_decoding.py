"""Rows that a model continues: with the cache as without it, in a batch as alone."""

import pytest
import torch
from tiny_model import T, V, check_logits, clear_model, ending_after, tokens_of

from generation.decoding import Context, window_start
from generation.settings import Sampling

PROMPTS = [[3], [1, 2, 3, 4, 5], [9, 8], [0] * (2 * T), [5, 6, 7, 8, 9, 10, 0]]


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return clear_model()


@pytest.mark.parametrize("prompts", [*([prompt] for prompt in PROMPTS), PROMPTS], ids=str)
@torch.no_grad()
def test_cached_logits_are_those_of_reading_each_window_past_the_overflow_too(model, prompts):
    context = Context(model, prompts, max_new_tokens=3 * T)
    for step in range(3 * T):
        check_logits(context)
        context.append([step * (number + 1) % V for number in range(len(prompts))])


def test_only_new_tokens_are_read_while_they_fit(model, monkeypatch):
    sizes = []
    read = type(model).hidden_states
    monkeypatch.setattr(
        type(model), "hidden_states", lambda *a: (sizes.append(a[1].size(1)), read(*a))[1]
    )
    tokens_of(model, [[1, 2, 3], [4]], T + 1, most_guesses=0)
    moves = [T - 2, 1, 1, T - 2, 1]  # to 6 of 7 tokens, and on to the next two
    assert sizes == [2] + [1] * (T - 2) + moves


@pytest.mark.parametrize(
    "sampling", [Sampling(temperature=0), Sampling(), Sampling(top_p=0.7)], ids=str
)
def test_each_row_is_written_as_if_it_were_alone_though_others_end(model, sampling):
    alone = [tokens_of(model, [p], 2 * T, sampling=sampling, seeds=[7])[0] for p in PROMPTS]
    lengths = [3, 2 * T, 1, 5, 9]
    together = tokens_of(
        model, PROMPTS, 2 * T, sampling=sampling, seeds=[7] * 5, is_over=ending_after(lengths)
    )
    assert together == [text[:length] for text, length in zip(alone, lengths, strict=True)]


def test_a_window_moves_by_a_quarter_of_the_context_and_reads_at_least_the_rest():
    assert [window_start(n, 8) for n in range(14)] == [0] * 9 + [2, 2, 4, 4, 6]
    for seq_len in (1, 2, 5, T, 128):
        for n in range(1, 4 * seq_len):
            num_read = n - window_start(n, seq_len)
            assert min(n, 0.75 * seq_len) - 1 < num_read <= seq_len


def test_the_cache_is_no_larger_than_the_text_needs(model):
    for length, num_slots in ((3, 5), (300, T)):
        assert Context(model, [[1, 2]], max_new_tokens=length).cache.memory.size(4) == num_slots
