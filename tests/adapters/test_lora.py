"""Adapters compute what a dense change of the matrices would, and nothing else learns."""

import pytest
import torch
from tiny_model import SIZES, V, clear_model
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

from adapters.lora import (
    LoraLinear,
    adapt,
    adapter_weights,
    add_adapters,
    freeze,
    plain_weights,
)
from storage.checkpoint import build_model
from system.errors import ConfigError

CONFIG = {
    "adapter": "lora",
    "lora_rank": 3,
    "lora_alpha": 5,
    "lora_dropout": 0.0,
    "lora_layers": "blocks",
    "freeze": "",
    "seed": 0,
}
FOUR = ["attention.qkv", "attention.projection", "feed_forward.expand", "feed_forward.contract"]


def adapted(**changes):
    """A model whose adapters have learned something."""
    model = adapt(clear_model(), {**CONFIG, **changes})
    torch.manual_seed(1)
    for name, weight in adapter_weights(model).items():
        weight.normal_(std=0.3) if "lora_B" in name else None
    return model


def batch():
    generator = torch.Generator().manual_seed(2)
    return torch.randint(V, (2, 3, 5), generator=generator).unbind()


def loss_of(logits, targets):
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def adapted_layers(model):
    return {name: m for name, m in model.named_modules() if isinstance(m, LoraLinear)}


def test_at_the_start_the_model_is_the_base_to_the_bit():
    inputs, _ = batch()
    assert torch.equal(adapt(clear_model(), CONFIG)(inputs), clear_model()(inputs))


def test_all_four_matrices_of_each_block_have_one_and_nothing_else_learns():
    model = adapted()
    assert list(adapted_layers(model)) == [f"blocks.{i}.{name}" for i in range(2) for name in FOUR]
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learns == adapter_weights(model).keys()
    assert len(learns) == 2 * 2 * len(FOUR)
    assert all(weight.dtype == torch.float32 for weight in adapter_weights(model).values())


def test_gradients_are_those_of_a_naive_dense_delta():
    model, (inputs, targets) = adapted().double(), batch()
    ours = loss_of(model(inputs), targets)
    ours.backward()
    dense, factors = dict(clear_model().double().named_parameters()), {}
    for name, layer in adapted_layers(model).items():
        factors[name] = [p.detach().clone().requires_grad_() for p in (layer.lora_A, layer.lora_B)]
        down, up = factors[name]
        dense[f"{name}.weight"] = dense[f"{name}.weight"].detach() + 5 / 3 * up @ down
    naive = loss_of(functional_call(clear_model().double(), dense, (inputs,)), targets)
    naive.backward()
    assert abs(ours - naive) < 1e-12
    for name, layer in adapted_layers(model).items():
        found = [layer.lora_A.grad, layer.lora_B.grad]
        expected = [factor.grad for factor in factors[name]]
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        assert all(gradient.abs().max() > 1e-6 for gradient in found)


def test_merged_it_gives_the_same_logits_under_the_names_of_a_plain_model():
    model, (inputs, _) = adapted(), batch()
    merged = build_model(SIZES, V).eval()
    merged.load_state_dict(plain_weights(model))
    torch.testing.assert_close(merged(inputs), model(inputs), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(merged(inputs), clear_model()(inputs), atol=0.1)


def test_what_carries_the_adapters_may_be_any_layer_with_a_weight():
    """As a base in few bits is: two of them in one model, one of which has no adapter."""

    class Halved(nn.Module):
        in_features, out_features = 12, 36

        def __init__(self, layer):
            super().__init__()
            self.register_buffer("codes", layer.weight.detach() / 2)
            self.bias = layer.bias

        @property
        def weight(self):
            return self.codes * 2

        def forward(self, x):
            return F.linear(x, self.weight, self.bias)

    (model, plain), (inputs, _) = (clear_model(), clear_model()), batch()
    for block in model.blocks:
        block.attention.qkv = Halved(block.attention.qkv)
    adapt(model, {**CONFIG, "lora_layers": "blocks.1.attention.qkv"})
    assert plain_weights(model).keys() == plain.state_dict().keys()
    torch.testing.assert_close(model(inputs), plain(inputs))
    torch.testing.assert_close(plain_weights(model), dict(plain.state_dict()))


def test_dropout_of_a_row_follows_from_its_seed_alone_and_each_layer_has_its_own():
    model = adapted(lora_dropout=0.5).train()
    inputs, _ = batch()
    for module in model.modules():  # the base's own dropout is another matter
        if isinstance(module, nn.Dropout):
            is_adapters = any(module is layer.dropout for layer in adapted_layers(model).values())
            module.p = 0.5 if is_adapters else 0.0
    seeds = torch.arange(len(inputs))
    whole = model.hidden_states(inputs, seeds=seeds)
    rows = [model.hidden_states(inputs[i : i + 1], seeds=seeds[i : i + 1]) for i in range(3)]
    torch.testing.assert_close(whole, torch.cat(rows))
    assert not torch.allclose(whole, model.hidden_states(inputs, seeds=seeds + 9))
    assert not torch.allclose(whole, model.eval().hidden_states(inputs))
    places = [m.place for m in model.modules() if isinstance(m, nn.Dropout)]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("qkv", ["blocks.0.attention.qkv", "blocks.1.attention.qkv"]),
        ("attention", [f"blocks.{i}.{name}" for i in range(2) for name in FOUR[:2]]),
        ("blocks.1", [f"blocks.1.{name}" for name in FOUR]),
        (" blocks.[0-4].feed_forward.* ,blocks.1.*.qkv", [
            "blocks.0.feed_forward.expand", "blocks.0.feed_forward.contract",
            "blocks.1.attention.qkv",
            "blocks.1.feed_forward.expand", "blocks.1.feed_forward.contract",
        ]),
    ],
)  # fmt: skip
def test_patterns_mean_whole_parts_of_names(patterns, expected):
    assert list(adapted_layers(adapted(lora_layers=patterns))) == expected


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        ("c_attn", "names nothing ('c_attn'): .* attention.projection, attention.qkv"),
        ("qkv, block", "names nothing ('block')"),
        ("blocks.2", "names nothing ('blocks.2')"),
        ("final_norm", "names nothing"),
        ("*", "names the table of tokens (input_embedding.embedding), which is input and head"),
        ("qkv, embedding", "names the table of tokens"),
    ],
)
def test_patterns_that_mean_nothing_or_the_tied_table_are_one_line(patterns, said):
    with pytest.raises(ConfigError, match="lora_layers=") as caught:
        adapted(lora_layers=patterns)
    start, _, end = said.partition(" .* ")
    assert start in str(caught.value)
    assert end in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("patterns", "num_frozen"),
    [
        ("input_embedding", 1),
        ("embedding, positional_encoding", 2),
        ("blocks.0", 12),
        ("*norm*", 10),
    ],
)
def test_frozen_weights_learn_no_more(patterns, num_frozen):
    model, (inputs, targets) = clear_model(), batch()
    freeze(model, patterns)
    loss_of(model(inputs), targets).backward()
    frozen = [name for name, p in model.named_parameters() if p.grad is None]
    assert len(frozen) == num_frozen


def test_adapters_may_be_frozen_too_but_not_all_that_learns():
    model = adapted(freeze="blocks.0")
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learns == {name for name in adapter_weights(model) if name.startswith("blocks.1")}
    for patterns, said in (("*", "leaves nothing that learns"), ("block", "names nothing")):
        with pytest.raises(ConfigError, match=said):
            freeze(clear_model(), patterns)


def losses_of(model, *, num_steps=60):
    """On one batch, step by step, of the weights that learn."""
    inputs, targets = batch()
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    losses = []
    for _ in range(num_steps):
        optimizer.zero_grad()
        loss = loss_of(model(inputs), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_at_full_rank_one_layer_goes_the_way_of_full_tuning_there():
    """With A the identity, B is the whole change of the matrix, and has its gradient."""
    name = "blocks.1.attention.projection"
    full, model = clear_model().double().requires_grad_(False), clear_model().double()
    full.get_submodule(name).weight.requires_grad_()
    add_adapters(model, name, rank=12, alpha=12, dropout=0.0, seed=0)
    layer = model.double().get_submodule(name)
    with torch.no_grad():
        layer.lora_A.requires_grad_(False).copy_(torch.eye(12))
    losses = losses_of(full)
    torch.testing.assert_close(losses_of(model), losses, rtol=0, atol=1e-9)
    assert losses[-1] < losses[0] - 0.5
