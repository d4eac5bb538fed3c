"""Hugging Face folders and files: what is a GPT-2 is read, for the rest one line says why not."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from random_models import EVEN, SETTINGS, publish, random_model
from safetensors.torch import load_file, save_file
from torch import Tensor

from exchange.huggingface import SAME_GELU, read_safetensors
from model import Transformer
from storage.checkpoint import build_model
from system.errors import WeightsError
from weights import architecture_from, huggingface_weights, load_weights_into_gpt

TABLE = "transformer.wte.weight"
FILE, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> tuple[Path, Any]:
    """A tiny GPT-2 as transformers saves it, and transformers' own model."""
    folder = tmp_path_factory.mktemp("published, äöü 雪")
    return folder, publish(folder)


@pytest.fixture
def folder(published, tmp_path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(published[0], tmp_path / "hf"))


def loaded(path: str | Path, **overrides: int) -> Transformer:
    settings, params = read_safetensors(path)
    model = build_model({**architecture_from(settings), "dropout": 0.0, **overrides}, 11)
    load_weights_into_gpt(model, params)
    return model


def rewrite(path: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    save_file(change(load_file(path)), path)


@torch.no_grad()
def assert_same(path: str | Path, published: tuple[Path, Any]) -> None:
    tokens = torch.tensor([[1, 10, 3, 3, 0, 7, 2]])
    expected = published[1](tokens).logits
    torch.testing.assert_close(loaded(path)(tokens), expected, rtol=1e-5, atol=1e-5)  # float32


def test_a_folder_is_read_with_its_own_sizes(published):
    assert read_safetensors(str(published[0]))[0] == SETTINGS
    assert_same(published[0], published)
    positions = load_file(published[0] / FILE)["transformer.wpe.weight"]
    assert torch.equal(loaded(published[0], seq_len=5).positional_encoding.pe, positions[:5])


def test_a_file_a_home_folder_and_names_without_prefix_are_read(folder, published, monkeypatch):
    assert_same(folder / FILE, published)
    rewrite(folder / FILE, lambda tensors: {name[12:]: part for name, part in tensors.items()})
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(folder.parent))
    assert_same("~/hf", published)


@pytest.mark.parametrize(
    ("dtype", "bits"), [(torch.bfloat16, 8), (torch.float16, 11), (torch.float64, 24)]
)
def test_other_precisions_are_read(folder, published, dtype, bits):
    expected = read_safetensors(published[0])[1]["wte"][:]
    rewrite(folder / FILE, lambda tensors: {name: part.to(dtype) for name, part in tensors.items()})
    found = read_safetensors(folder)[1]["wte"][:]
    np.testing.assert_allclose(found, expected, rtol=2.0**-bits)


def test_one_function_has_five_names(folder):
    """Those that transformers computes alike, and the others are refused."""
    from transformers.activations import ACT2FN

    x = torch.linspace(-9, 9, 1801)
    alike = {"gelu_new"}
    for name in (name for name in ACT2FN if "gelu" in name):
        difference = (ACT2FN[name](x) - ACT2FN["gelu_new"](x)).abs().max()
        if difference < 1e-5:  # the erf form differs by 5e-4
            alike.add(name)
            (folder / "config.json").write_text(
                json.dumps({"activation_function": name, "n_head": 3})
            )
            assert read_safetensors(folder)[0] == SETTINGS
    assert alike == {"gelu_new", *SAME_GELU}


def test_a_tied_head_may_stand_alone_or_beside_the_table(folder, published):
    masks = {"transformer.h.0.attn.bias": torch.ones(7, 7).bool()}  # in older files
    rewrite(
        folder / FILE,
        lambda tensors: tensors | masks | {"lm_head.weight": tensors[TABLE].clone()},
    )
    assert_same(folder, published)
    rewrite(folder / FILE, lambda tensors: {n: part for n, part in tensors.items() if n != TABLE})
    assert_same(folder, published)
    rewrite(folder / FILE, lambda tensors: tensors | {TABLE: tensors["lm_head.weight"] + 1})
    with pytest.raises(WeightsError, match="not tied"):
        read_safetensors(folder)


def test_pieces_are_read_by_their_index_or_all(folder, published):
    tensors, parts = load_file(folder / FILE), {}
    (folder / FILE).unlink()
    for i, name in enumerate(tensors):
        parts.setdefault(f"model-{i % 3}.safetensors", {})[name] = tensors[name]
    for name, part in parts.items():
        save_file(part, folder / name)
    assert_same(folder, published)
    save_file({TABLE: tensors[TABLE]}, folder / "of_something_else.safetensors")
    with pytest.raises(WeightsError, match=r"two files have wte.weight \(.*: name one"):
        read_safetensors(folder)
    places = {name: file for file, part in parts.items() for name in part}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert_same(folder, published)
    for content in ("[", "{}", '{"weight_map": {"wte.weight": "../x.safetensors"}}'):
        (folder / "broken").mkdir(exist_ok=True)
        (folder / "broken" / INDEX).write_text(content)
        with pytest.raises(WeightsError, match=f"not an index .*{INDEX}: "):
            read_safetensors(folder / "broken")
    with pytest.raises(WeightsError, match="one part of several"):
        read_safetensors(folder / "model-00002-of-00003.safetensors")
    (folder / "model-1.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"no such file \(.*model-1.safetensors\): check"):
        read_safetensors(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "Expecting value"),
        (b'{"model_type": "gp', "Unterminated"),
        (b'[{"n_head": 3}]', "it holds a list"),
        ('{"model_type": "gpt2", "_name": "ä"}'.encode("latin-1"), "codec can't decode"),
        (b"[" * 100_000, "recursion|overflow"),
    ],
)
def test_a_broken_config_is_named(folder, content, reason):
    path = folder / "config.json"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=reason) as caught:
        read_safetensors(folder)
    assert str(caught.value).startswith(f"not a config ({path}: ")
    for encoding in ("utf-8-sig", "utf-16"):  # as editors save it
        path.write_text(json.dumps({"n_head": 3}), encoding)
        assert read_safetensors(folder)[0] == SETTINGS
    path.unlink()
    path.mkdir()
    with pytest.raises(WeightsError, match="not a config"):
        read_safetensors(folder)


@pytest.mark.parametrize(
    ("config", "weights", "reason"),
    [
        ({"activation_function": "relu"}, {}, "activation_function='relu'"),
        ({"model_type": "opt"}, {}, "model_type='opt'"),
        ({"scale_attn_by_inverse_layer_idx": True}, {}, "layer_idx=True"),
        ({"n_head": 5}, {}, "n_embd=12 in 5 heads"),
        ({}, {"h.5.odd": torch.ones(1)}, "unknown h.5.odd"),
        ({}, {TABLE: torch.ones(11)}, "no tables"),
        ({}, {"transformer.wpe.weight": torch.ones(0, 12)}, "no tables"),
        ({}, {TABLE: torch.full((11, 12), float("nan"))}, rf"not finite \(.*{FILE}: {TABLE}\)"),
        ({}, {TABLE: torch.full((11, 12), float("inf"))}, rf"not finite \(.*{FILE}: {TABLE}\)"),
        ({}, {TABLE: torch.ones(11, 12).to(torch.int8)}, rf"{TABLE} is torch.int8 \(.*{FILE}\)"),
        ({"n_head": None}, {}, "n_embd=12 in None heads"),
        ({"n_head": "3"}, {}, "n_embd=12 in '3' heads"),
        ({"n_layer": 4}, {}, r"config.json says n_layer=4, the weights have 2 \(.*copy the folder"),
        ({"n_layer": [2]}, {}, r"n_layer=\[2\], the weights have 2"),
        ({"n_embd": 16}, {}, "n_embd=16, the weights have 12"),
        ({"n_inner": 48}, {}, "n_inner=48, the weights have 20"),
        ({"n_positions": 1024}, {}, "n_positions=1024, the weights have 7"),
    ],
)
def test_what_is_no_gpt2_is_refused(folder, config, weights, reason):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | config))
    rewrite(folder / FILE, lambda tensors: tensors | weights)
    with pytest.raises(WeightsError, match=reason):
        loaded(folder)


def test_without_a_config_heads_of_64_are_meant(folder):
    (folder / "config.json").unlink()
    with pytest.raises(WeightsError, match=r"12 in 0 heads \(there is no .*config.json\): set"):
        read_safetensors(folder)
    save_file(huggingface_weights(random_model(EVEN)), folder / FILE)
    assert read_safetensors(folder / FILE)[0]["n_head"] == 1


OURS = "a PyTorch file.*--resume.*export.py --to hf"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "empty"),
        (b"<!doctype html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"GGUF\x03\0\0\0", "a GGUF file"),
        (b'{"weight_map": {}}', "starts otherwise.*give a GPT-2's folder"),
        ((99).to_bytes(8, "little") + b"{", "header.*copy it again"),
        (b"Once upon a time", "starts otherwise.*give a GPT-2's folder"),
        (pickle.dumps({"wte.weight": [1.0]}), OURS),
    ],
)
def test_another_file_is_called_by_its_kind(folder, content, reason):
    (folder / FILE).write_bytes(content)
    for path in (folder, folder / FILE):
        with pytest.raises(WeightsError, match=reason) as caught:
            read_safetensors(path)
        assert str(folder / FILE) in str(caught.value)


def test_a_lone_bin_and_nothing_are_told_apart(folder):
    (folder / FILE).unlink()
    with pytest.raises(WeightsError, match=r"no \.safetensors file .*: give one"):
        read_safetensors(folder)
    with pytest.raises(WeightsError, match="no such file"):
        read_safetensors(folder / FILE)
    torch.save({"wte.weight": torch.ones(2)}, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=f"pytorch_model.bin: {OURS}"):
        read_safetensors(folder)
