"""A model as a GGUF file, llama.cpp's format, and back."""

from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from exchange.bpe_files import vocabulary_and_merges
from model import Transformer
from storage import checkpoint
from system.files import write_durably
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID, GPT2Tokenizer
from weights import SAME, name_rows

FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
SIZES = {  # keys of our config by GGUF's, which begin with `gpt2.`
    "context_length": "seq_len",
    "embedding_length": "embedding_dim",
    "block_count": "num_layers",
    "attention.head_count": "num_heads",
    "feed_forward_length": "ffn_hidden_dim",
}


def write_gguf(path: Path, model: Transformer, config: dict[str, Any], type_name: str) -> None:
    """Writes the model, of the config's sizes, with its matrices as f32, f16 or q8_0."""
    import gguf

    weights, names = model.state_dict(), tensor_names(len(model.blocks))

    def write(file: BinaryIO) -> None:
        with closing(gguf.GGUFWriter(file.name, "gpt2")) as writer:
            add_sizes(writer, config)
            add_tokenizer(writer)
            writer.add_name(path.stem)
            writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[type_name]])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            for ours, weight in weights.items():
                kind = gguf.GGMLQuantizationType[stored_type(ours, weight, type_name)]
                data = gguf.quants.quantize(weight.numpy(), kind)
                writer.add_tensor(names[ours], data, raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()

    write_durably(path, write)


def read_gguf(path: Path) -> Transformer:
    """The model in a GGUF file, in float32; its sizes come from the file too."""
    import gguf

    reader = gguf.GGUFReader(path)
    sizes = {ours: reader.get_field(f"gpt2.{key}").contents() for key, ours in SIZES.items()}
    stored = {tensor.name: tensor for tensor in reader.tensors}
    weights = {
        ours: torch.tensor(gguf.quants.dequantize(stored[name].data, stored[name].tensor_type))
        for ours, name in tensor_names(sizes["num_layers"]).items()
    }
    return checkpoint.model_from({"config": {**sizes, "dropout": 0.0}, "model_state_dict": weights})


def tensor_names(num_layers: int) -> dict[str, str]:
    """Names in a GGUF file by ours, from the package's own table; no matrix is transposed."""
    import gguf

    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, num_layers)
    return {
        row.ours: table.get_name(row.huggingface, try_suffixes=(".weight", ".bias"))
        for row in name_rows(num_layers)
    }


def stored_type(name: str, weight: Tensor, wanted: str) -> str:
    """The type of a weight: vectors and positions stay float32, as llama.cpp's own converter does.

    q8_0 has blocks of 32 numbers of a row: a matrix with other rows becomes float16.
    """
    if weight.dim() == 1 or name.endswith(".pe"):
        return "F32"
    if wanted == "q8_0" and weight.size(1) % 32:
        return "F16"
    return wanted.upper()


def add_sizes(writer: Any, config: dict[str, Any]) -> None:
    for key, ours in SIZES.items():
        writer.add_uint32(f"gpt2.{key}", config[ours])
    writer.add_layer_norm_eps(SAME["layer_norm_epsilon"])


def add_tokenizer(writer: Any) -> None:
    """All of the tokenizer but its pattern, which llama.cpp knows under the name "gpt-2"."""
    from gguf import TokenType

    vocabulary, merges = vocabulary_and_merges(GPT2Tokenizer())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(list(vocabulary))
    writer.add_token_types(
        [TokenType.CONTROL if token == END_OF_TEXT else TokenType.NORMAL for token in vocabulary]
    )
    writer.add_token_merges(merges)
    writer.add_bos_token_id(END_OF_TEXT_ID)
    writer.add_eos_token_id(END_OF_TEXT_ID)
    writer.add_add_bos_token(False)
