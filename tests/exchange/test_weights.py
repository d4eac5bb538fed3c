"""GPT-2's weights in our model: by name, by shape, and by the logits of transformers' own model."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from official_checkpoint import write_variables
from random_models import SETTINGS, publish, random_model
from safetensors.torch import load_file

from gpt_download import load_gpt2_params_from_tf_ckpt
from model import Transformer
from system.errors import WeightsError
from weights import architecture_from, gpt2_weights, load_weights_into_gpt, nested


def build(seed: int = 1, **overrides: int) -> Transformer:
    return random_model(architecture_from(SETTINGS) | overrides, 11, seed=seed)


def params_of(model: Transformer) -> dict[str, Any]:
    """The model's weights as the params that load_weights_into_gpt takes, copied."""
    return nested({row.gpt2: w.clone().numpy() for row, w in gpt2_weights(model).items()})


def assert_same(model: Transformer, other: Transformer) -> None:
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name


@torch.no_grad()
def test_what_tensorflow_holds_has_the_logits_of_transformers(tmp_path):
    theirs, model, arrays = publish(tmp_path), build(), {}
    for name, tensor in load_file(tmp_path / "model.safetensors").items():
        official = name.removeprefix("transformer.").replace("h.", "h", 1).replace(".", "/")
        official = re.sub(r"(ln_\w+)/weight", r"\1/g", official).replace("/bias", "/b")
        official = re.sub(r"(wte|wpe)/weight", r"\1", official).replace("/weight", "/w")
        arrays[f"model/{official}"] = tensor[None] if official.endswith("/w") else tensor
    write_variables(tmp_path, {name: array.numpy() for name, array in arrays.items()})
    params = load_gpt2_params_from_tf_ckpt(tmp_path / "model.ckpt", SETTINGS)
    load_weights_into_gpt(model, params)
    tokens = torch.randint(11, (3, 7))
    torch.testing.assert_close(model(tokens), theirs(tokens).logits, rtol=1e-5, atol=1e-5)


def test_weights_go_into_the_dtype_and_the_storage_that_the_model_has():
    model, params = build().to(torch.bfloat16), params_of(build(seed=2))
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    load_weights_into_gpt(model, params)
    assert addresses == [parameter.data_ptr() for parameter in model.parameters()]
    assert_same(model, build(seed=2).to(torch.bfloat16))


def test_everything_that_does_not_fit_is_listed_and_nothing_is_loaded():
    model, params = build(), params_of(build(seed=2))
    params["wte"] = params["wte"][:5]
    params["blocks"][1]["mlp"]["c_fc"]["w"] = params["blocks"][1]["mlp"]["c_fc"]["w"].T
    with pytest.raises(WeightsError, match="do not fit") as caught:
        load_weights_into_gpt(model, params)
    assert "wte is (5, 12), not (11, 12)" in str(caught.value)
    assert "blocks.1.mlp.c_fc.w is (20, 12), not (12, 20)" in str(caught.value)
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
