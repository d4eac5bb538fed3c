"""Sums of weighted rows in place of products of one row: in layers, in attention, by choice."""

import pytest
import torch
from test_fast_weights import VARIANTS, variant
from tiny_model import T, V, check_logits, clear_model, ending_after, tokens_of
from torch import nn

from generation import decoding
from generation.decoding import Context
from generation.fast_weights import prepared
from generation.guesses import Guesses
from generation.kv_cache import HalfCache, KeyValueCache
from generation.row_sums import COLUMNS, RowSums
from model import Transformer
from system import choice
from system.choice import Choice

PROMPTS = [[3], [1, 2, 3, 4, 5], [9, 8], [0] * (2 * T), [5, 6, 7, 8, 9, 10, 0]]
ERRORS = {torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 7e-4, torch.int8: 1e-2}


@pytest.mark.parametrize("dtype", ERRORS, ids=str)
@pytest.mark.parametrize("num_inputs", [1, 2, 33])
@pytest.mark.parametrize("num_outputs", [1, COLUMNS - 1, COLUMNS, 2 * COLUMNS + 3])
@pytest.mark.parametrize("has_bias", [False, True])
@torch.no_grad()
def test_one_row_is_multiplied_up_to_the_rounding_of_the_table(
    num_outputs, num_inputs, has_bias, dtype
):
    torch.manual_seed(0)
    product = nn.Linear(num_inputs, num_outputs, bias=has_bias)
    layer = RowSums(product.weight, product.bias, dtype=dtype, many=nn.Identity())
    for shape in [(num_inputs,), (1, num_inputs), (1, 1, num_inputs)]:
        x = torch.randn(shape)
        expected, result = product(x), layer(x)
        size = product.weight.abs().amax() * x.abs().sum() + 1  # of what is summed
        torch.testing.assert_close(result.float(), expected, rtol=0, atol=ERRORS[dtype] * size)


def test_several_rows_go_to_the_layer_for_many():
    weight, x = torch.ones(3, 2), torch.ones(1, 2, 2)
    assert RowSums(weight, None, dtype=torch.int8, many=nn.Identity())(x) is x


@pytest.fixture
def model(monkeypatch) -> Transformer:
    monkeypatch.setattr(decoding, "LONG_CAPACITY", 0)
    model = clear_model()
    model.long_cache = HalfCache
    return model


@pytest.mark.parametrize("prompts", [*([prompt] for prompt in PROMPTS), PROMPTS], ids=str)
@torch.inference_mode()
def test_half_a_cache_reads_what_a_whole_one_does_past_the_overflow_too(model, prompts):
    context = Context(model, prompts, max_new_tokens=3 * T)
    assert isinstance(context.cache, HalfCache)
    for step in range(3 * T):
        check_logits(context, tolerance=5e-3)  # float16 of keys, scores and values near 1
        context.append([step * (number + 1) % V for number in range(len(prompts))])
    context.select([len(prompts) - 1, 0])
    check_logits(context, tolerance=5e-3)


@pytest.mark.parametrize("length", [1, COLUMNS - 1, COLUMNS, COLUMNS + 1, 2 * COLUMNS + 5])
@torch.inference_mode()
def test_half_a_cache_has_groups_of_slots(length):
    torch.manual_seed(0)
    model = variant()
    model.positional_encoding.pe = nn.Parameter(torch.randn(3 * COLUMNS, 12))
    whole, half = (kind(model, 2, 3 * COLUMNS) for kind in (KeyValueCache, HalfCache))
    text = torch.randint(V, (2, length + 4))
    for part in (text[:, :length], text[:, length : length + 1], text[:, length + 1 :]):
        expected, states = (model.hidden_states(part, cache) for cache in (whole, half))
        torch.testing.assert_close(states, expected, rtol=0, atol=2e-2)  # float16, two layers


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_variant_writes_with_half_a_cache_and_guesses_as_without(changes, monkeypatch):
    monkeypatch.setattr(Guesses, "pay", lambda self: True)
    monkeypatch.setattr(decoding, "LONG_CAPACITY", 0)
    model = variant(**changes)
    settings = {"is_over": ending_after([3, 2 * T, 1, 5, 9])}
    expected = tokens_of(model, PROMPTS, 2 * T, most_guesses=0, **settings)
    model.long_cache = HalfCache
    settings = {"is_over": ending_after([3, 2 * T, 1, 5, 9])}
    assert tokens_of(model, PROMPTS, 2 * T, **settings) == expected


@pytest.mark.parametrize("precision", ["auto", "float32", "bfloat16", "float16", "int8"])
def test_sums_are_taken_where_they_are_found_the_fastest(precision, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # where nothing is remembered
    asked = []

    def fastest(ways, **settings):
        asked.append({name: way for name, way in ways.items() if name.endswith("row_sums")})
        return Choice([*ways][-1])

    monkeypatch.setattr(choice, "fastest", fastest)
    result = prepared(clear_model(), precision)
    has_sums = isinstance(result.blocks[0].feed_forward.expand, RowSums)
    assert has_sums == (precision != "float32") == bool(asked[0])
    assert getattr(result, "long_cache", KeyValueCache) == (
        HalfCache if has_sums else KeyValueCache
    )


def test_a_trained_table_whose_products_cancel_excludes_no_type(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choice, "SMALL", 1)  # all is measured
    monkeypatch.setattr(choice, "HOPELESS", 1e9)  # and all is fast enough
    found = []
    fastest = choice.fastest
    monkeypatch.setattr(
        choice, "fastest", lambda *ways, **rest: found.append(fastest(*ways, **rest)) or found[-1]
    )
    model = clear_model()
    with torch.no_grad():
        model.input_embedding.embedding.weight[:] = 0.1  # noise times this is near 0
    for precision in ("auto", "int8"):
        prepared(model, precision)
    assert {name.split()[0] for name in found[0].rates} >= {"float32", "bfloat16"}
    assert [*found[1].rates] == ["int8 Int8Linear", "int8 with_row_sums"]
