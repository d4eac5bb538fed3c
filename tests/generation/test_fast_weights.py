"""Weights prepared for generation: near the model's own, whatever its blocks are made of."""

import pytest
import torch
from tiny_model import SIZES, T, V, clear_model, naive_logits, tokens_of
from torch import nn

from generation.fast_weights import Int8Linear, prepared, shared_copy
from model import LayerNormalization, MultiHeadAttentionBlock, Transformer
from storage.checkpoint import build_model

PROMPTS = [[3], [1, 2, 3, 4, 5], [9, 8]]
TOKENS = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.fixture(scope="module")
def model() -> Transformer:
    return clear_model()


@pytest.mark.parametrize("width", [2, 13 * 2, 32])
@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
@torch.no_grad()
def test_narrow_weights_stay_near(precision, width):
    torch.manual_seed(0)
    sizes = {**SIZES, "embedding_dim": width, "num_heads": 2, "ffn_hidden_dim": 2 * width}
    check_near(build_model(sizes, V).eval(), precision)


def check_near(model: Transformer, precision: str) -> None:
    logits, exact = prepared(model, precision)(TOKENS), model(TOKENS)
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


def test_the_best_logits_of_a_narrow_head_are_computed_in_float32(model):
    narrow = prepared(model, "bfloat16")
    hidden = torch.randn(2, 3, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        # float32, other summation order; V is below the number of repaired logits
        torch.testing.assert_close(narrow.head(hidden), model.head(hidden), rtol=1e-5, atol=1e-5)


class NormedAttention(MultiHeadAttentionBlock):
    """Queries and keys normalized with weights of their own, then turned by a buffer's angles."""

    def __init__(self, embedding_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__(embedding_dim, num_heads, dropout)
        D = embedding_dim // num_heads
        self.norms = nn.ModuleList([LayerNormalization(D), LayerNormalization(D)])
        self.turn = nn.Parameter(torch.linalg.qr(torch.randn(D, D)).Q)
        self.register_buffer("scale", torch.tensor(1.7))

    def forward(self, x, attend=None):
        def changed(query, key, value):
            query, key = self.norms[0](query) @ self.turn, self.norms[1](key) * self.scale
            return (attend or self.attend)(query, key, value)

        return super().forward(x, changed)


class ShortSight(MultiHeadAttentionBlock):
    """A position looks at itself and the two before it."""

    def attend(self, query, key, value):
        T = query.size(2)
        mask = torch.ones(T, T, dtype=torch.bool).tril().triu(-2)
        return nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)


class OwnHead(Transformer):
    """An output layer of its own, in place of the embedding's table."""

    def head(self, hidden):
        return self.output(hidden)


def variant(attention: type = MultiHeadAttentionBlock, *, head: bool = False) -> Transformer:
    model = clear_model()
    for block in model.blocks:
        block.attention = attention(12, 3, 0.5)
    if head:
        model.__class__ = OwnHead
        model.output = nn.Linear(12, V)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    return model.eval()


VARIANTS = {
    "norms": {"attention": NormedAttention},
    "window": {"attention": ShortSight},
    "norms and head": {"attention": NormedAttention, "head": True},
}


def naive_texts(model: Transformer) -> list[list[int]]:
    texts = [list(prompt) for prompt in PROMPTS]
    for _ in range(2 * T):
        for text in texts:
            text.append(naive_logits(model, text).argmax().item())
    return [text[len(prompt) :] for text, prompt in zip(texts, PROMPTS, strict=True)]


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_variant_writes_with_the_cache_what_it_writes_without(changes):
    model = variant(**changes)
    expected = naive_texts(model)
    assert tokens_of(model, PROMPTS, 2 * T) == expected
    assert tokens_of(prepared(model, "float32"), PROMPTS, 2 * T) == expected
    assert expected != naive_texts(clear_model())


@torch.no_grad()
@pytest.mark.parametrize("precision", ["bfloat16", "float16", "int8"])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_a_variant_stays_near_in_narrow_weights(changes, precision):
    model = variant(**changes)
    check_near(model, precision)
    written = tokens_of(prepared(model, precision), PROMPTS, 2 * T)
    assert [len(text) for text in written] == [2 * T] * 3


def test_a_copy_shares_what_it_does_not_replace_and_leaves_the_model_where_it_is(model):
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    narrow = prepared(model, "bfloat16")
    assert narrow.input_embedding.embedding.weight is model.input_embedding.embedding.weight
    assert narrow.final_norm.weight is model.final_norm.weight
    assert not any(module.training for module in narrow.modules())
    copy = shared_copy(model, torch.device("meta"))
    assert copy.input_embedding.embedding.weight.device.type == "meta"
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    after = model.state_dict()
    assert all(torch.equal(weight, after.pop(name)) for name, weight in before.items())
    assert after == {}
