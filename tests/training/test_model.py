"""The network is GPT-2's: against transformers, against formulas, at awkward sizes."""

import inspect
import math

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from model import (
    InputEmbeddings,
    PositionalEncoding,
    Transformer,
    build_transformer,
    num_parameters,
)
from training.loss import NextTokenLoss

V, T, B = 11, 7, 3
SIZES = {
    "input_vocab_size": V,
    "input_seq_len": T,
    "embedding_dim": 12,
    "num_layers": 2,
    "num_heads": 3,
    "dropout": 0.0,
    "ffn_hidden_dim": 20,
}
OUR_NAMES = {  # transformers' name in a block: ours, and whether its matrix lies transposed
    "ln_1": ("attention_norm", False),
    "attn.c_attn": ("attention.qkv", True),
    "attn.c_proj": ("attention.projection", True),
    "ln_2": ("feed_forward_norm", False),
    "mlp.c_fc": ("feed_forward.expand", True),
    "mlp.c_proj": ("feed_forward.contract", True),
}


def built(**changed: object) -> Transformer:
    torch.manual_seed(0)
    return build_transformer(**{**SIZES, **changed}).eval()


def rough(model: Transformer) -> Transformer:
    """The model with every parameter moved, so that no bias or norm is without effect."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def some_tokens(num_columns: int = T) -> Tensor:
    return torch.randint(V, (B, num_columns), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def as_transformers_model(ours: Transformer) -> GPT2LMHeadModel:
    """Hugging Face's GPT-2 with our weights."""
    config = GPT2Config(
        vocab_size=V, n_positions=T, n_embd=12, n_layer=2, n_head=3, n_inner=20, use_cache=False
    )
    theirs = GPT2LMHeadModel(config).eval()
    theirs.transformer.wte.weight.copy_(ours.input_embedding.embedding.weight)
    theirs.transformer.wpe.weight.copy_(ours.positional_encoding.pe)
    copy(ours.final_norm, theirs.transformer.ln_f, is_transposed=False)
    for our_block, their_block in zip(ours.blocks, theirs.transformer.h, strict=True):
        for their_name, (our_name, is_transposed) in OUR_NAMES.items():
            target = their_block.get_submodule(their_name)
            copy(our_block.get_submodule(our_name), target, is_transposed=is_transposed)
    return theirs


def copy(source: nn.Module, target: nn.Module, *, is_transposed: bool) -> None:
    target.weight.copy_(source.weight.T if is_transposed else source.weight)
    target.bias.copy_(source.bias)


def test_logits_equal_those_of_transformers_gpt2():
    ours = rough(built()).double()
    theirs = as_transformers_model(ours).double()
    with torch.no_grad():  # so precise that the erf form of GELU, or eps outside the root, shows
        torch.testing.assert_close(ours(some_tokens()), theirs(some_tokens()).logits)


def test_future_tokens_do_not_change_past_logits():
    model, tokens = rough(built()), some_tokens()
    for last in range(T - 1):
        changed = tokens.clone()
        changed[:, last + 1 :] = (changed[:, last + 1 :] + 1) % V
        with torch.no_grad():
            before, after = model(tokens), model(changed)
        assert torch.equal(before[:, : last + 1], after[:, : last + 1])  # the very same sums
        assert not torch.equal(before[:, last + 1 :], after[:, last + 1 :])


def test_dropout_acts_in_training_only():
    model, tokens = built(dropout=0.5), some_tokens()
    with torch.no_grad():
        assert torch.equal(model(tokens), model(tokens))
        model.train()
        assert not torch.equal(model(tokens), model(tokens))


@pytest.mark.parametrize("vocab_size", [V, 50257])
def test_the_loss_at_initialisation_is_near_ln_v(vocab_size):
    model = built(input_vocab_size=vocab_size)
    with torch.no_grad():
        loss = NextTokenLoss(model)(some_tokens(), some_tokens())
        loss_of_others = NextTokenLoss(model)(some_tokens(), (some_tokens() + 1) % V)
    # the logits' variance is 12 x 0.02^2, half of which the loss is above ln V; the rest is chance
    assert loss_of_others.item() == pytest.approx(math.log(vocab_size), abs=0.05)
    assert loss < loss_of_others  # tied: a token that was just read is the likeliest


def test_one_batch_can_be_overfitted():
    model, tokens = built().train(), some_tokens(T + 1)
    tokens[:, 0] = torch.arange(B)  # rows that start alike could not be told apart
    objective = NextTokenLoss(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss = objective(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    assert torch.equal(model(tokens[:, :-1]).argmax(-1), tokens[:, 1:])


def test_the_head_is_the_embedding_in_one_parameter_and_one_key():
    model = built()
    with_a_row_per_token = [key for key, value in model.state_dict().items() if len(value) == V]
    assert with_a_row_per_token == ["input_embedding.embedding.weight"]
    assert len(list(model.parameters())) == len(model.state_dict())


def test_initialisation_is_gpt2s():
    num_layers = 8
    model = built(
        input_vocab_size=100, input_seq_len=64, embedding_dim=64, num_layers=num_layers,
        num_heads=2, ffn_hidden_dim=64,
    )  # fmt: skip
    residual = 0.02 / math.sqrt(2 * num_layers)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1:
            expected = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            assert parameter.unique().tolist() == [expected], name
        else:
            is_residual = name.endswith(("attention.projection.weight", "contract.weight"))
            # 4096 numbers or more: their deviation has a standard error of 1.1 %
            expected = residual if is_residual else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
            assert abs(parameter.mean().item()) < 5 * expected / 64, name


def test_names_and_signatures_are_the_contracts():
    assert list(inspect.signature(build_transformer).parameters) == list(SIZES)
    assert isinstance(InputEmbeddings(V, 12).embedding, nn.Embedding)
    assert isinstance(PositionalEncoding(T, 12, 0.0).pe, nn.Parameter)
    kinds = {type(module).__name__ for module in build_transformer(*SIZES.values()).modules()}
    named = {"InputEmbeddings", "PositionalEncoding", "MultiHeadAttentionBlock"}
    assert named | {"FeedForwardNetwork", "LayerNormalization"} <= kinds


def test_the_context_is_the_longest_input():
    model = built()
    assert model.seq_len == T
    assert model(some_tokens(T)).shape == (B, T, V)
    assert model(some_tokens(1)).shape == (B, 1, V)
    with pytest.raises(AssertionError, match=f"{T + 1} tokens, context {T}"):
        model(some_tokens(T + 1))


def test_build_transformer_names_every_bad_argument():
    bad = [0, -1, 2.5, "2", None, 1.0, 0]
    with pytest.raises(ValueError, match="input_vocab_size=0 ") as caught:
        build_transformer(*bad)
    for name, value in zip(SIZES, bad, strict=True):
        assert f"{name}={value!r} is not" in str(caught.value)


@pytest.mark.parametrize("dropout", [-0.1, 1.0, math.nan])
def test_build_transformer_refuses_heads_that_do_not_divide_and_senseless_dropout(dropout):
    with pytest.raises(ValueError, match=r"embedding_dim=12 .* num_heads=5; dropout="):
        build_transformer(V, T, 12, 1, 5, dropout, 20)


def test_every_parameter_of_gpt2_small_is_counted():
    with torch.device("meta"):
        assert num_parameters(build_transformer(50257, 1024, 768, 12, 12, 0.1, 3072)) == 124_439_808
