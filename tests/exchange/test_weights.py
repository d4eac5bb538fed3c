"""GPT-2's weights in and out: by name, by shape, and by the logits of transformers' own model."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from official_checkpoint import write_official, write_variables
from safetensors.torch import load_file, save_file
from torch import Tensor

import gpt_download
from model import Transformer, build_transformer
from weights import (
    architecture_from,
    gpt_params_from,
    load_weights_into_gpt,
    name_rows,
    read_safetensors,
)

TINY = {"n_vocab": 11, "n_ctx": 7, "n_embd": 12, "n_head": 3, "n_layer": 2}
TRANSPOSED = re.compile(r".*\.(c_attn|c_proj|c_fc)\.weight")


def build(settings: dict[str, int], seed: int = 1, **overrides: int) -> Transformer:
    torch.manual_seed(seed)
    architecture = {**architecture_from(settings), **overrides}
    return build_transformer(
        settings["n_vocab"], architecture.pop("seq_len"), dropout=0.0, **architecture
    ).eval()


def randomized(model: torch.nn.Module) -> torch.nn.Module:
    """The model with every weight, biases and norms too, drawn anew."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.05)
    return model


def leaves(params: dict[str, Any]) -> dict[str, np.ndarray]:
    """The arrays of two-layer params, found by walking down each path."""
    found = {}
    for row in name_rows(2):
        node: Any = params
        for key in row.gpt2.split("."):
            node = node[int(key) if key.isdigit() else key]
        found[row.gpt2] = np.asarray(node)
    return found


def assert_same(params: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    for name, array in leaves(params).items():
        assert array.dtype == expected[name].dtype == np.float32
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A tiny model in a Hugging Face folder."""
    return save_huggingface(tmp_path / "hf", TINY)[0]


def save_huggingface(folder: Path, settings: dict[str, int]) -> tuple[Path, Any]:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=settings["n_vocab"],
        n_positions=settings["n_ctx"],
        n_embd=settings["n_embd"],
        n_head=settings["n_head"],
        n_layer=settings["n_layer"],
    )
    reference = randomized(GPT2LMHeadModel(config)).eval()
    reference.save_pretrained(folder)
    return folder, reference


# against transformers


def from_safetensors(folder: Path, settings: dict[str, int]) -> dict[str, Any]:
    read_settings, params = read_safetensors(folder)
    assert read_settings == settings
    return params


def from_tensorflow(folder: Path, settings: dict[str, int]) -> dict[str, Any]:
    """The same weights, by way of a checkpoint that TensorFlow writes."""
    tensors = load_file(folder / "model.safetensors")
    arrays = {}
    for name, tensor in tensors.items():
        official = name.removeprefix("transformer.").replace("h.", "h", 1).replace(".", "/")
        official = re.sub(r"(ln_\w+)/weight", r"\1/g", official).replace("/bias", "/b")
        official = re.sub(r"(wte|wpe)/weight", r"\1", official).replace("/weight", "/w")
        arrays[f"model/{official}"] = tensor[None] if official.endswith("/w") else tensor
    write_variables(folder, {name: array.numpy() for name, array in arrays.items()})
    return gpt_download.load_gpt2_params_from_tf_ckpt(folder / "model.ckpt", settings)


@pytest.mark.parametrize("read", [from_safetensors, from_tensorflow])
@pytest.mark.parametrize("model_size", ["124M", "355M", "774M", "1558M"])
def test_logits_equal_those_of_transformers(
    tmp_path: Path, model_size: str, read: Callable[..., dict[str, Any]]
) -> None:
    small = {"n_vocab": 101, "n_ctx": 16, "n_layer": 2}
    settings = gpt_download.MODELS[model_size].settings | small
    folder, reference = save_huggingface(tmp_path, settings)
    model = build(settings)
    load_weights_into_gpt(model, read(folder, settings))
    tokens = torch.randint(101, (3, 16))
    with torch.no_grad():
        expected, logits = reference(tokens).logits, model(tokens)
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)
    assert (logits.argmax(-1) == expected.argmax(-1)).all()


# in and out


def test_in_out_in_is_bit_equal(tmp_path: Path) -> None:
    write_official(tmp_path, TINY)
    params = gpt_download.load_gpt2_params_from_tf_ckpt(tmp_path / "model.ckpt", TINY)
    model, again = build(TINY), build(TINY, seed=2)
    load_weights_into_gpt(model, params)
    assert_same(gpt_params_from(model), leaves(params))
    load_weights_into_gpt(again, gpt_params_from(model))
    for name, weight in again.state_dict().items():
        assert torch.equal(weight, model.state_dict()[name]), name


def test_params_from_a_model_are_copies() -> None:
    model = randomized(build(TINY))
    params = gpt_params_from(model)
    params["wte"][:] = 0
    params["blocks"][0]["attn"]["c_attn"]["w"][:] = 0
    assert all(parameter.all() for parameter in model.parameters())


def test_the_table_names_every_parameter_once_in_all_three_columns(saved: Path) -> None:
    rows = name_rows(2)
    assert {row.ours for row in rows} == dict(build(TINY).named_parameters()).keys()
    assert {f"transformer.{row.huggingface}" for row in rows} == load_file(
        saved / "model.safetensors"
    ).keys()
    assert len({row.gpt2 for row in rows}) == len(rows) == 4 + 2 * 12
    assert {row.huggingface for row in rows if row.is_transposed} == {
        row.huggingface for row in rows if TRANSPOSED.fullmatch(row.huggingface)
    }


def test_a_shorter_context_keeps_the_first_positions(saved: Path) -> None:
    _, params = read_safetensors(saved)
    model = build(TINY, seq_len=5)
    load_weights_into_gpt(model, params)
    np.testing.assert_array_equal(model.positional_encoding.pe.detach(), params["wpe"][:5])


def test_weights_go_into_the_dtype_and_the_storage_that_the_model_has(saved: Path) -> None:
    model = build(TINY).to(torch.bfloat16)
    addresses = [parameter.data_ptr() for parameter in model.parameters()]
    load_weights_into_gpt(model, read_safetensors(saved)[1])
    assert addresses == [parameter.data_ptr() for parameter in model.parameters()]
    assert all(parameter.dtype == torch.bfloat16 for parameter in model.parameters())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_weights_go_to_the_gpu_and_back(saved: Path) -> None:
    _, params = read_safetensors(saved)
    model = build(TINY).cuda()
    load_weights_into_gpt(model, params)
    assert all(parameter.is_cuda for parameter in model.parameters())
    assert_same(gpt_params_from(model), leaves(params))


# what does not fit


def test_everything_that_does_not_fit_is_listed_and_nothing_is_loaded() -> None:
    model, params = build(TINY), gpt_params_from(build(TINY, seed=2))
    before = leaves(gpt_params_from(model))
    params["wte"] = params["wte"][:5]
    params["blocks"][1]["mlp"]["c_fc"]["w"] = params["blocks"][1]["mlp"]["c_fc"]["w"].T
    with pytest.raises(ValueError, match="do not fit") as caught:
        load_weights_into_gpt(model, params)
    assert "wte (5, 12) into input_embedding.embedding.weight (11, 12)" in str(caught.value)
    assert "blocks.1.mlp.c_fc.w (48, 12)" in str(caught.value)
    assert_same(gpt_params_from(model), before)


def test_a_longer_context_than_the_weights_have_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"wpe \(7, 12\) into positional_encoding.pe \(8, 12\)"):
        load_weights_into_gpt(build(TINY, seq_len=8), gpt_params_from(build(TINY)))


def test_leftovers_on_either_side_are_named() -> None:
    params = gpt_params_from(build(TINY))
    del params["blocks"][0]["ln_1"]["g"]
    params["extra"] = np.zeros(3)
    with pytest.raises(ValueError, match=r"missing \['blocks.0.ln_1.g'\], unknown \['extra'\]"):
        load_weights_into_gpt(build(TINY), params)
    with pytest.raises(ValueError, match=r"unknown \['blocks.1.attn.c_attn.b', "):
        load_weights_into_gpt(build(TINY, num_layers=1), gpt_params_from(build(TINY)))
    model = build(TINY)
    model.extra = torch.nn.Linear(1, 1)
    for convert in (gpt_params_from, lambda model: load_weights_into_gpt(model, params)):
        with pytest.raises(ValueError, match="extra"):
            convert(model)


# Hugging Face files


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(path)), path)


def test_a_file_alone_or_without_prefix_or_in_half_precision_is_read(saved: Path) -> None:
    expected = leaves(read_safetensors(saved)[1])
    path = saved / "model.safetensors"
    assert_same(read_safetensors(path)[1], expected)
    rewrite(path, lambda tensors: {name[12:]: tensor for name, tensor in tensors.items()})
    assert_same(read_safetensors(path)[1], expected)
    rewrite(path, lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    wte = np.asarray(read_safetensors(path)[1]["wte"])
    np.testing.assert_allclose(wte, expected["wte"], rtol=2**-8)  # bfloat16 keeps 8 bits


def test_a_file_in_pieces_is_read(saved: Path) -> None:
    expected = leaves(read_safetensors(saved)[1])
    tensors = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    for piece in ("wte", "wpe", "h.0", "h.1", "ln_f"):
        part = {name: tensor for name, tensor in tensors.items() if f".{piece}." in name}
        save_file(part, saved / f"model-{piece}.safetensors")
    assert_same(read_safetensors(saved)[1], expected)


def test_masks_and_a_tied_head_are_no_weights_but_another_head_is_refused(saved: Path) -> None:
    path = saved / "model.safetensors"
    wte = load_file(path)["transformer.wte.weight"]
    masks = {"transformer.h.0.attn.bias": torch.ones(1, 1, 7, 7)}
    rewrite(path, lambda tensors: tensors | masks | {"lm_head.weight": wte.clone()})
    assert read_safetensors(saved)[0] == TINY
    rewrite(path, lambda tensors: tensors | {"lm_head.weight": wte + 1})
    with pytest.raises(ValueError, match="not tied"):
        read_safetensors(saved)


def test_other_mathematics_other_names_and_other_files_are_refused(saved: Path) -> None:
    config_path = saved / "config.json"
    config = json.loads(config_path.read_text())
    config_path.write_text(json.dumps({**config, "activation_function": "relu"}))
    with pytest.raises(ValueError, match="activation_function='relu'"):
        read_safetensors(saved)
    config_path.unlink()
    with pytest.raises(ValueError, match="state n_head there"):
        read_safetensors(saved)
    config_path.write_text(json.dumps(config))
    path = saved / "model.safetensors"
    rewrite(path, lambda tensors: tensors | {"h.5.odd": torch.ones(1)})
    with pytest.raises(ValueError, match=r"unknown \['h.5.odd'\]"):
        read_safetensors(saved)
    for content in (path.read_bytes()[:-1], b"<html>", (1 << 60).to_bytes(8, "little")):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a safetensors file"):
            read_safetensors(saved)
    path.unlink()
    with pytest.raises(ValueError, match=r"no \.safetensors file"):
        read_safetensors(saved)
