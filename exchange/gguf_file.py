"""A model as a GGUF file, llama.cpp's format, and back."""

from collections.abc import Callable
from contextlib import closing
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from exchange.adapter_files import Adapter
from exchange.bpe_files import vocabulary_and_merges
from exchange.receipt import Logits, compare, gpt2_logits
from model import Transformer, num_parameters
from system.files import as_path, write_durably
from tokenizer import END_OF_TEXT_ID
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
) -> str:
    """The receipt of the file, which gets its name when it is compared and on the disk."""
    path, weights = as_path(path), gpt2_weights(model)

    def fill(writer: Any) -> None:
        import gguf

        add_facts(writer, path.stem, config, model)
        add_tokenizer(writer)
        writer.add_file_type(gguf.LlamaFileType[FILE_TYPES[type_name]])
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        for name, row in rows_by_name(config["num_layers"]).items():
            weight = row.turned(weights[row])  # no matrix is transposed in GGUF
            kind = gguf.GGMLQuantizationType[stored_type(row.ours, weight, type_name)]
            with np.errstate(all="ignore"):  # the receipt tells what a type cannot hold
                data = gguf.quants.quantize(weight.numpy(), kind)
            writer.add_tensor(name, data, raw_dtype=kind)

    return written(
        path, fill, lambda part: compare(model, config, type_name, partial(read_back, part))
    )


def export_gguf_adapter(path: str | Path, adapter: Adapter) -> str:
    """The receipt of a file for llama.cpp's --lora, which has the adapter alone."""
    num_layers = 1 + max(int(name.split(".")[1]) for name in adapter.factors)
    names = {row.ours: name for name, row in rows_by_name(num_layers).items()}
    wanted = {names[f"{name}.weight"]: pair for name, pair in adapter.factors.items()}

    def fill(writer: Any) -> None:
        import gguf

        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, 1.0)  # which readers divide by r
        for name, (down, up) in wanted.items():
            rank = len(down)
            writer.add_tensor(f"{name}.lora_a", down.numpy())
            writer.add_tensor(f"{name}.lora_b", (up * adapter.scale_of(rank) * rank).numpy())

    def receipt_of(part: Path) -> str:
        import gguf

        found = {t.name: torch.tensor(t.data) for t in gguf.GGUFReader(part).tensors}
        differences = [
            (found[f"{name}.lora_b"] @ found[f"{name}.lora_a"] / len(down))
            .sub_(adapter.scale_of(len(down)) * up @ down)
            .abs()
            .max()
            for name, (down, up) in wanted.items()
        ]
        return f"{len(wanted)} matrices, largest difference {max(differences):.1e}"

    return written(path, fill, receipt_of)


def written(
    path: str | Path, fill: Callable[[Any], None], receipt_of: Callable[[Path], str]
) -> str:
    """The receipt of a file with what `fill` gives the writer of the gguf package."""
    receipts: list[str] = []

    def write(file: BinaryIO) -> None:
        from gguf import GGUFWriter

        with closing(GGUFWriter(file.name, "gpt2")) as writer:
            fill(writer)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_tensors_to_file()

    write_durably(path, write, verify=lambda part: receipts.append(receipt_of(part)))
    return receipts[0]


def read_back(path: Path) -> tuple[str, Logits]:
    """The reader's name, and the logits of the GPT-2 in a GGUF file, in float32."""
    import gguf

    reader = gguf.GGUFReader(path)
    size = {ours: reader.get_field(f"gpt2.{key}").contents() for key, ours in SIZES.items()}
    rows, weights = rows_by_name(size["num_layers"]), {}
    for tensor in reader.tensors:
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        row = rows[tensor.name]
        weights[row.huggingface] = row.turned(torch.tensor(numbers))
    return f"gguf {version('gguf')}", partial(gpt2_logits, weights, size["num_heads"])


def rows_by_name(num_layers: int) -> dict[str, Row]:
    """The table by the names in a GGUF file, which the package knows."""
    import gguf

    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2, num_layers)
    suffixes = (".weight", ".bias")
    return {names.get_name(row.huggingface, suffixes): row for row in name_rows(num_layers)}


def stored_type(name: str, weight: Tensor, wanted: str) -> str:
    """The type of a weight: q8_0 has blocks of 32 numbers of a row, other rows become float16."""
    if weight.dim() == 1 or name.endswith(".pe"):
        return "F32"  # as llama.cpp's own converter does
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
    writer.add_token_types([TokenType.NORMAL] * END_OF_TEXT_ID + [TokenType.CONTROL])
    writer.add_token_merges(merges)
    writer.add_bos_token_id(END_OF_TEXT_ID)
    writer.add_eos_token_id(END_OF_TEXT_ID)
    writer.add_add_bos_token(False)
