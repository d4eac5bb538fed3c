"""Rows that a model continues: with the cache as without it, in a batch as alone."""

import gc
import os
from pathlib import Path

import pytest
import torch
from tiny_model import SIZES, T, V, clear_model, ending_after, naive_logits, tokens_of

from generation.decoding import Context
from generation.fast_weights import Int8Linear, prepared
from generation.sampling import Sampling
from storage.checkpoint import build_model

STATM = Path("/proc/self/statm")
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


@pytest.mark.skipif(not STATM.exists(), reason="memory is read where Linux shows it")
def test_memory_stays_flat_over_a_hundred_texts():
    sizes = {**SIZES, "embedding_dim": 64, "num_heads": 2}  # a cache that leaked would be 40 kB
    model = build_model(sizes, V).eval()

    def memory() -> int:
        gc.collect()
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for number in range(120):
        if number == 20:
            before = memory()
        tokens_of(model, PROMPTS, 2 * T)
    assert memory() - before < 1e6


# ---------------------------------------------------------------- prepared weights


def test_float32_prepared_for_generation_gives_the_same_logits(model):
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.no_grad():
        # float32, other summation order
        torch.testing.assert_close(
            prepared(model, "float32")(tokens), model(tokens), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("width", [2, 13 * 2, 32])
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_narrow_weights_stay_near(precision, width):
    torch.manual_seed(0)
    sizes = {**SIZES, "embedding_dim": width, "num_heads": 2, "ffn_hidden_dim": 2 * width}
    model = build_model(sizes, V).eval()
    tokens = torch.tensor([[1, 2, 3], [4, 5, 6]])
    with torch.no_grad():
        logits, exact = prepared(model, precision)(tokens), model(tokens)
    assert logits.dtype == torch.float32
    # 8 bits of mantissa, or 127 steps, through two layers
    assert (logits - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("shape", [(1, 2), (3, 2, 5), (2, 3, 7), (5, 64), (17, 33)])
@pytest.mark.parametrize("num_outputs", [1, 2, 16, 131])
def test_int8_products_are_those_of_the_rounded_numbers(shape, num_outputs):
    source = torch.Generator().manual_seed(0)
    weight = torch.randn(num_outputs, shape[-1], generator=source)
    x, bias = torch.randn(shape, generator=source), torch.randn(num_outputs, generator=source)
    x.view(-1, shape[-1])[0] = 0  # a row that has no scale of its own

    def naive(rows: torch.Tensor) -> torch.Tensor:
        scales = rows.double().abs().amax(-1, keepdim=True).clamp(min=1e-12) / 127
        return (rows / scales).round() * scales

    result = Int8Linear(weight, bias)(x)
    expected = naive(x) @ naive(weight).T + bias
    # a number in the middle of two steps may be rounded either way: one step of 127
    torch.testing.assert_close(result.double(), expected, rtol=0, atol=0.05)
    for row, one in zip(result.flatten(0, -2), x.flatten(0, -2), strict=True):
        assert torch.equal(Int8Linear(weight, bias)(one[None])[0], row)


def test_int8_text_of_a_row_does_not_depend_on_the_others(model):
    narrow = prepared(model, "int8")
    together = tokens_of(narrow, PROMPTS, 2 * T)
    assert together == [tokens_of(narrow, [prompt], 2 * T)[0] for prompt in PROMPTS]


def test_preparing_leaves_the_model_as_it_was(model):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    prepared(model, "bfloat16")(torch.tensor([[1, 2]]))
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_the_best_logits_of_a_narrow_head_are_computed_in_float32(model):
    narrow = prepared(model, "bfloat16")
    hidden = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # float32, other summation order; V is below the number of repaired logits
        torch.testing.assert_close(narrow.head(hidden), model.head(hidden), rtol=1e-5, atol=1e-5)
