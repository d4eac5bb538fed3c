"""A GGUF file holds the model and all that llama.cpp has to know."""

import contextlib
import hashlib
import json
from types import SimpleNamespace
from typing import Any

import gguf
import numpy as np
import pytest
import torch

from exchange import gguf_file
from exchange.gguf_file import add_tokenizer, export_gguf, stored_type
from gpt_download import SHARED_SHA256
from storage import checkpoint
from tokenizer import END_OF_TEXT_ID

EVEN = {"seq_len": 64, "embedding_dim": 64, "num_layers": 2, "num_heads": 4, "ffn_hidden_dim": 96}
ODD = {"seq_len": 57, "embedding_dim": 15, "num_layers": 3, "num_heads": 5, "ffn_hidden_dim": 7}
LLAMA_NAMES = {  # what llama.cpp asks for, with {} the layer, and our names
    "token_embd.weight": "input_embedding.embedding.weight",
    "position_embd.weight": "positional_encoding.pe",
    "output_norm.weight": "final_norm.weight",
    "output_norm.bias": "final_norm.bias",
    "blk.{}.attn_norm.weight": "blocks.{}.attention_norm.weight",
    "blk.{}.attn_norm.bias": "blocks.{}.attention_norm.bias",
    "blk.{}.attn_qkv.weight": "blocks.{}.attention.qkv.weight",
    "blk.{}.attn_qkv.bias": "blocks.{}.attention.qkv.bias",
    "blk.{}.attn_output.weight": "blocks.{}.attention.projection.weight",
    "blk.{}.attn_output.bias": "blocks.{}.attention.projection.bias",
    "blk.{}.ffn_norm.weight": "blocks.{}.feed_forward_norm.weight",
    "blk.{}.ffn_norm.bias": "blocks.{}.feed_forward_norm.bias",
    "blk.{}.ffn_up.weight": "blocks.{}.feed_forward.expand.weight",
    "blk.{}.ffn_up.bias": "blocks.{}.feed_forward.expand.bias",
    "blk.{}.ffn_down.weight": "blocks.{}.feed_forward.contract.weight",
    "blk.{}.ffn_down.bias": "blocks.{}.feed_forward.contract.bias",
}


@pytest.fixture(scope="module", params=[("q8_0", EVEN), ("f16", ODD)], ids=str)
def written(request, tmp_path_factory) -> SimpleNamespace:
    """A random model and what a reader finds in its file."""
    type_name, sizes = request.param
    torch.manual_seed(0)
    model = checkpoint.build_model({**sizes, "dropout": 0.1}, END_OF_TEXT_ID + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    path = tmp_path_factory.mktemp("äöü 雪") / "model.gguf"
    with pytest.MonkeyPatch.context() as patch:  # its 100,000 strings are slow to read
        patch.setattr(gguf_file, "add_tokenizer", lambda writer: None)
        export_gguf(path, sizes, model, type_name)
    reader = gguf.GGUFReader(path)
    return SimpleNamespace(model=model, sizes=sizes, type=type_name, path=path, reader=reader)


def numbers_of(tensor: Any) -> np.ndarray:
    """The numbers as the format defines them: q8_0 is a float16 scale, then 32 bytes, and again."""
    if tensor.tensor_type.name != "Q8_0":
        return np.asarray(tensor.data, dtype=np.float32)
    blocks = np.frombuffer(tensor.data.tobytes(), dtype=[("scale", "<f2"), ("steps", "i1", 32)])
    numbers = blocks["scale"].astype(np.float32)[:, None] * blocks["steps"]
    return numbers.reshape(tensor.shape[::-1])


def largest_error(weight: np.ndarray, type_name: str) -> np.ndarray | float:
    if type_name == "F32":
        return 0.0
    if type_name == "F16":  # half a step of 11 bits, or of 2**-24 near zero
        return np.abs(weight) * 2**-11 + 2**-25
    # 127 steps up to the largest of 32 numbers: half a step, and the step itself is a float16
    steps = np.abs(weight).reshape(len(weight), -1, 32).max(-1) / 127
    return np.repeat(steps, 32, axis=1) * (0.5 + 127 * 2**-11) * (1 + 1e-5)


def test_gguf_holds_the_weights_within_the_precision_of_its_types(written):
    ours = written.model.state_dict()
    tensors = {tensor.name: tensor for tensor in written.reader.tensors}
    names = {
        theirs.format(i): ours.format(i)
        for theirs, ours in LLAMA_NAMES.items()
        for i in range(written.sizes["num_layers"])
    }
    assert tensors.keys() == names.keys()  # the tied head is not stored twice
    for name, tensor in tensors.items():
        weight = ours[names[name]].numpy()
        is_exact = weight.ndim == 1 or name == "position_embd.weight"
        assert tensor.tensor_type.name == ("F32" if is_exact else written.type.upper())
        error = np.abs(numbers_of(tensor) - weight)
        assert (error <= largest_error(weight, tensor.tensor_type.name)).all(), name


def test_rows_that_are_no_whole_blocks_are_not_quantized():
    assert stored_type("blocks.0.attention.qkv.weight", torch.empty(45, 15), "q8_0") == "F16"
    assert stored_type("blocks.0.attention.qkv.weight", torch.empty(45, 64), "q8_0") == "Q8_0"


def test_gguf_says_what_llama_cpp_has_to_know(written):
    value = {key: field.contents() for key, field in written.reader.fields.items()}
    assert value["general.architecture"] == "gpt2"
    assert value["general.type"] == "model"
    assert value["general.size_label"] == {64: "3.3M", 15: "758K"}[written.sizes["embedding_dim"]]
    assert value["general.file_type"] == {"f16": 1, "q8_0": 7}[written.type]
    assert value["gpt2.context_length"] == written.sizes["seq_len"]
    assert value["gpt2.embedding_length"] == written.sizes["embedding_dim"]
    assert value["gpt2.block_count"] == written.sizes["num_layers"]
    assert value["gpt2.attention.head_count"] == written.sizes["num_heads"]
    assert value["gpt2.feed_forward_length"] == written.sizes["ffn_hidden_dim"]
    assert value["gpt2.attention.layer_norm_epsilon"] == np.float32(1e-5)


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
        assert hashlib.sha256(text.encode()).hexdigest() == SHARED_SHA256[name]
