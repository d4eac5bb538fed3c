"""A model as a GGUF file, llama.cpp's format, and back."""

from contextlib import closing
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from exchange.bpe_files import vocabulary_and_merges
from exchange.receipt import Logits, Receipt, compare, gpt2_logits
from model import Transformer, num_parameters
from system.files import as_path, write_durably
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID
from weights import Row, gpt2_weights, name_rows

FILE_TYPES = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
SIZES = {  # keys of our config by GGUF's, which begin with `gpt2.`
    "context_length": "seq_len",
    "embedding_length": "embedding_dim",
    "block_count": "num_layers",
    "attention.head_count": "num_heads",
    "feed_forward_length": "ffn_hidden_dim",
}


def export_gguf(
    path: str | Path, config: dict[str, Any], model: Transformer, type_name: str
) -> Receipt:
    """Writes the model, of the config's sizes, with its matrices as f32, f16 or q8_0.

    The file gets its name when it is compared and on the disk.
    """
    path, rows, weights = as_path(path), gpt2_weights(model), model.state_dict()
    names, receipts = tensor_names(config["num_layers"]), []

    def write(file: BinaryIO) -> None:
        import gguf

        with closing(gguf.GGUFWriter(file.name, "gpt2")) as writer:
            add_facts(writer, path.stem, config, model)
            add_tokenizer(writer)
            writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[type_name]])
            writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
            for row in rows:
                weight = weights[row.ours]
                kind = gguf.GGMLQuantizationType[stored_type(row.ours, weight, type_name)]
                with np.errstate(all="ignore"):  # the receipt tells what a type cannot hold
                    data = gguf.quants.quantize(weight.numpy(), kind)
                writer.add_tensor(names[row], data, raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()

    def verify(part: Path) -> None:
        receipts.append(compare(model, config, type_name, partial(read_back, part)))

    write_durably(path, write, verify=verify)
    return receipts[0]


def read_back(path: Path) -> tuple[str, Logits]:
    """The reader's name, and the logits of the GPT-2 in a GGUF file, in float32."""
    import gguf

    reader = gguf.GGUFReader(path)
    size = {ours: reader.get_field(f"gpt2.{key}").contents() for key, ours in SIZES.items()}
    stored = {tensor.name: tensor for tensor in reader.tensors}
    weights = {}
    for row, name in tensor_names(size["num_layers"]).items():
        numbers = gguf.quants.dequantize(stored[name].data, stored[name].tensor_type)
        weight = torch.tensor(numbers)
        weights[row.huggingface] = weight.T if row.is_transposed else weight
    return f"gguf {version('gguf')}", partial(gpt2_logits, weights, size["num_heads"])


def tensor_names(num_layers: int) -> dict[Row, str]:
    """Names in a GGUF file, from the package's own table; there no matrix is transposed."""
    import gguf

    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, num_layers)
    return {
        row: table.get_name(row.huggingface, try_suffixes=(".weight", ".bias"))
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


def add_facts(writer: Any, name: str, config: dict[str, Any], model: Transformer) -> None:
    from gguf import size_label

    writer.add_type("model")
    writer.add_name(name)
    writer.add_size_label(size_label(num_parameters(model), 0, 0, 0))
    for key, ours in SIZES.items():
        writer.add_uint32(f"gpt2.{key}", config[ours])
    writer.add_layer_norm_eps(model.final_norm.eps)


def add_tokenizer(writer: Any) -> None:
    """All of the tokenizer but its pattern, which llama.cpp knows under the name "gpt-2"."""
    from gguf import TokenType

    vocabulary, merges = vocabulary_and_merges()
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
