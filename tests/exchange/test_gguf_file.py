"""A GGUF file holds the model and all that llama.cpp has to know."""

import contextlib
import hashlib
import json
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from random_models import EVEN, ODD, random_model

from exchange import gguf_file
from exchange.gguf_file import add_tokenizer, export_gguf, stored_type
from gpt_download import SHARED
from tokenizer import END_OF_TEXT_ID

LLAMA_PARTS = {  # what llama.cpp asks for, each a weight and a bias, and our names
    "output_norm": "final_norm",
    "blk.{}.attn_norm": "blocks.{}.attention_norm",
    "blk.{}.attn_qkv": "blocks.{}.attention.qkv",
    "blk.{}.attn_output": "blocks.{}.attention.projection",
    "blk.{}.ffn_norm": "blocks.{}.feed_forward_norm",
    "blk.{}.ffn_up": "blocks.{}.feed_forward.expand",
    "blk.{}.ffn_down": "blocks.{}.feed_forward.contract",
}


@pytest.fixture(scope="module", params=[("q8_0", EVEN), ("f16", ODD)], ids=str)
def written(request, tmp_path_factory) -> SimpleNamespace:
    """A random model and what a reader finds in its file."""
    type_name, sizes = request.param
    model = random_model(sizes)
    path = tmp_path_factory.mktemp("äöü 雪") / "model.gguf"
    with pytest.MonkeyPatch.context() as patch:  # its 100,000 strings are slow to read
        patch.setattr(gguf_file, "add_tokenizer", lambda writer: None)
        export_gguf(path, sizes, model, type_name)
    reader = gguf.GGUFReader(path)
    return SimpleNamespace(model=model, sizes=sizes, type=type_name, reader=reader)


def largest_error(weight: np.ndarray, type_name: str) -> np.ndarray | float:
    """Half a step of the type; q8_0 has 127 steps, of a float16 size, up to the largest of 32."""
    if type_name == "Q8_0":
        steps = np.abs(weight).reshape(len(weight), -1, 32).max(-1) / 127
        return np.repeat(steps, 32, axis=1) * 0.57
    return np.abs(weight) * 2**-11 + 2**-25 if type_name == "F16" else 0.0


def test_gguf_holds_the_weights_within_the_precision_of_its_types(written):
    ours = written.model.state_dict()
    tensors = {tensor.name: tensor for tensor in written.reader.tensors}
    names = {
        f"{theirs}.{kind}".format(i): f"{our}.{kind}".format(i)
        for theirs, our in LLAMA_PARTS.items()
        for kind in ("weight", "bias")
        for i in range(written.sizes["num_layers"])
    }
    names["token_embd.weight"] = "input_embedding.embedding.weight"
    names["position_embd.weight"] = "positional_encoding.pe"
    assert tensors.keys() == names.keys()  # the tied head is not stored twice
    for name, tensor in tensors.items():
        weight = ours[names[name]].numpy()
        is_exact = weight.ndim == 1 or name == "position_embd.weight"
        assert tensor.tensor_type.name == ("F32" if is_exact else written.type.upper())
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        error = np.abs(numbers - weight)
        assert (error <= largest_error(weight, tensor.tensor_type.name)).all(), name


def test_rows_that_are_no_whole_blocks_are_not_quantized():
    assert stored_type("blocks.0.attention.qkv.weight", torch.empty(45, 15), "q8_0") == "F16"
    assert stored_type("blocks.0.attention.qkv.weight", torch.empty(45, 64), "q8_0") == "Q8_0"


def test_gguf_says_what_llama_cpp_has_to_know(written):
    value = {key: field.contents() for key, field in written.reader.fields.items()}
    sizes = written.sizes
    expected = {
        "general.architecture": "gpt2",
        "general.type": "model",
        "general.size_label": {64: "3.3M", 15: "758K"}[sizes["embedding_dim"]],
        "general.file_type": {"f16": 1, "q8_0": 7}[written.type],
        "gpt2.context_length": sizes["seq_len"],
        "gpt2.embedding_length": sizes["embedding_dim"],
        "gpt2.block_count": sizes["num_layers"],
        "gpt2.attention.head_count": sizes["num_heads"],
        "gpt2.feed_forward_length": sizes["ffn_hidden_dim"],
        "gpt2.attention.layer_norm_epsilon": np.float32(1e-5),
    }
    assert {key: value[key] for key in expected} == expected


def test_the_tokenizer_is_openais_byte_for_byte(tmp_path):
    """The hashes are those of the files that come with the official weights."""
    with contextlib.closing(gguf.GGUFWriter(tmp_path / "x", "gpt2")) as writer:
        add_tokenizer(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    value = {key: field.contents() for key, field in gguf.GGUFReader(tmp_path / "x").fields.items()}
    assert (value["tokenizer.ggml.model"], value["tokenizer.ggml.pre"]) == ("gpt2", "gpt-2")
    assert value["tokenizer.ggml.eos_token_id"] == END_OF_TEXT_ID
    assert value["tokenizer.ggml.token_type"] == [1] * END_OF_TEXT_ID + [3]  # normal, control
    vocabulary = {token: i for i, token in enumerate(value["tokenizer.ggml.tokens"])}
    merges = "\n".join(["#version: 0.2", *value["tokenizer.ggml.merges"], ""])
    texts = {"encoder.json": json.dumps(vocabulary), "vocab.bpe": merges}
    for name, text in texts.items():
        assert hashlib.sha256(text.encode()).hexdigest() == SHARED[name][1]
