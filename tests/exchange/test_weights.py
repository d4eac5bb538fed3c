"""GPT-2's weights in our model: by name, by shape, and by the logits of transformers' own model."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from official_checkpoint import write_official, write_variables
from safetensors.torch import load_file

import gpt_download
from model import Transformer, build_transformer
from system.errors import WeightsError
from weights import (
    architecture_from,
    gpt2_weights,
    huggingface_weights,
    load_weights_into_gpt,
    name_rows,
    nested,
)

TINY = {"n_vocab": 11, "n_ctx": 7, "n_embd": 12, "n_head": 3, "n_layer": 2}


def build(seed: int = 1, **overrides: int) -> Transformer:
    """A tiny model with every weight, biases and norms too, drawn at random."""
    torch.manual_seed(seed)
    sizes = architecture_from(TINY) | overrides
    model = build_transformer(11, sizes.pop("seq_len"), dropout=0.0, **sizes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model


def params_of(model: Transformer) -> dict[str, Any]:
    """The model's weights as the params that load_weights_into_gpt takes, copied."""
    return nested({row.gpt2: w.clone().numpy() for row, w in gpt2_weights(model).items()})


def assert_same(model: Transformer, other: Transformer) -> None:
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name


@torch.no_grad()
def test_what_tensorflow_holds_has_the_logits_of_transformers(tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=11, n_positions=7, n_embd=12, n_head=3, n_layer=2)
    theirs, model = GPT2LMHeadModel(config).eval(), build()
    theirs.transformer.load_state_dict(huggingface_weights(build(seed=2)))
    theirs.save_pretrained(tmp_path)
    arrays = {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        official = name.removeprefix("transformer.").replace("h.", "h", 1).replace(".", "/")
        official = re.sub(r"(ln_\w+)/weight", r"\1/g", official).replace("/bias", "/b")
        official = re.sub(r"(wte|wpe)/weight", r"\1", official).replace("/weight", "/w")
        arrays[f"model/{official}"] = tensor[None] if official.endswith("/w") else tensor
    write_variables(tmp_path, {name: array.numpy() for name, array in arrays.items()})
    params = gpt_download.load_gpt2_params_from_tf_ckpt(tmp_path / "model.ckpt", TINY)
    load_weights_into_gpt(model, params)
    tokens = torch.randint(11, (3, 7))
    torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_out_and_in_again_is_bit_equal(tmp_path):
    arrays = write_official(tmp_path, TINY)
    params = gpt_download.load_gpt2_params_from_tf_ckpt(tmp_path / "model.ckpt", TINY)
    model, again = build(), build(seed=2)
    load_weights_into_gpt(model, params)
    c_fc = model.blocks[1].feed_forward.expand.weight.detach()
    np.testing.assert_array_equal(c_fc.T, arrays["model/h1/mlp/c_fc/w"][0])
    load_weights_into_gpt(again, params_of(model))
    assert_same(again, model)


def test_the_table_names_every_parameter_once_in_all_three_columns():
    from transformers import GPT2Config, GPT2Model

    theirs = GPT2Model(GPT2Config(vocab_size=11, n_positions=7, n_embd=12, n_head=3, n_layer=2))
    rows = name_rows(2)
    assert {row.ours for row in rows} == dict(build().named_parameters()).keys()
    assert {row.huggingface for row in rows} == theirs.state_dict().keys()
    assert len({row.gpt2 for row in rows}) == len(rows) == 4 + 2 * 12
    for name, weight in huggingface_weights(build()).items():
        assert weight.shape == theirs.state_dict()[name].shape, name


def test_weights_go_into_the_dtype_and_the_storage_that_the_model_has():
    model, params = build().to(torch.bfloat16), params_of(build(seed=2))
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    load_weights_into_gpt(model, params)
    assert addresses == [parameter.data_ptr() for parameter in model.parameters()]
    assert_same(model, build(seed=2).to(torch.bfloat16))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_weights_go_to_the_gpu():
    model = build().cuda()
    load_weights_into_gpt(model, params_of(build(seed=2)))
    assert all(parameter.is_cuda for parameter in model.parameters())
    assert_same(model.cpu(), build(seed=2))


# what does not fit


def test_everything_that_does_not_fit_is_listed_and_nothing_is_loaded():
    model, params = build(), params_of(build(seed=2))
    params["wte"] = params["wte"][:5]
    params["blocks"][1]["mlp"]["c_fc"]["w"] = params["blocks"][1]["mlp"]["c_fc"]["w"].T
    with pytest.raises(WeightsError, match="do not fit") as caught:
        load_weights_into_gpt(model, params)
    assert "wte is (5, 12), not (11, 12)" in str(caught.value)
    assert "blocks.1.mlp.c_fc.w is (48, 12), not (12, 48)" in str(caught.value)
    assert_same(model, build())
    with pytest.raises(WeightsError, match=r"wpe is \(7, 12\), not \(8, 12\)"):
        load_weights_into_gpt(build(seq_len=8), params_of(build()))


def test_leftovers_on_either_side_are_named():
    model, params = build(), params_of(build())
    del params["blocks"][0]["ln_1"]["g"]
    params["extra"] = np.zeros(3)
    with pytest.raises(WeightsError, match=r"missing blocks.0.ln_1.g; unknown extra\)"):
        load_weights_into_gpt(model, params)
    with pytest.raises(WeightsError, match=r"unknown blocks.1.attn.c_attn.b, .* and 9 more\)"):
        load_weights_into_gpt(build(num_layers=1), params_of(model))
    model.extra = torch.nn.Linear(1, 1, bias=False)
    for convert in (huggingface_weights, lambda model: load_weights_into_gpt(model, params)):
        with pytest.raises(WeightsError, match=r"the model: unknown extra\.weight"):
            convert(model)
