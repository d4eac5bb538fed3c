"""A model as a folder that Hugging Face's libraries read and write."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from exchange.bpe_files import fast_tokenizer, vocabulary_and_merges
from exchange.model_card import model_card
from exchange.receipt import Logits, compare, gpt2_logits
from model import Transformer
from system.errors import WeightsError
from system.files import as_path, whole_folder
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID
from weights import SETTINGS, check_names, huggingface_weights, name_rows, nested

SAME = {  # what config.json must say, where it says anything, for the mathematics to be GPT-2's
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}
SAME_GELU = ("gelu_accurate", "gelu_fast", "gelu_python_tanh", "gelu_pytorch_tanh")  # as gelu_new
MASK_NAME = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # in older files, not a weight
KINDS = {  # what a file is by its first bytes, and what to do
    (b"PK", b"\x80"): (
        "a PyTorch file",
        "one of this project goes on with --resume, or is made readable by export.py --to hf; "
        "save another program's as .safetensors",
    ),
    b"version https://git-lfs": ("a Git LFS pointer", "git lfs pull fetches the file itself"),
    b"GGUF": ("a GGUF file", "give the Hugging Face folder that it was made from"),
    b"<": ("a web page", "download the file itself"),
}
END_IDS = {"bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_TEXT_ID}


def read_safetensors(path: str | Path) -> tuple[dict[str, int], dict[str, Any]]:
    """(settings, params) of a Hugging Face folder or of one .safetensors file.

    The params are left in the file until they are used, so the model is the only copy in memory.
    """
    path = as_path(path)
    stored = stored_tensors(weight_files(path))
    config = read_config(config_path := (path if path.is_dir() else path.parent) / "config.json")
    num_layers = len({match[1] for name in stored if (match := re.match(r"h\.(\d+)\.", name))})
    rows = name_rows(max(num_layers, 1))
    head = stored.pop("lm_head.weight", None)
    if head:  # the only table where a tied model was saved plainly
        stored.setdefault("wte.weight", head)
    check_names((row.huggingface for row in rows), stored, str(path))
    if head and not np.array_equal(head[:], stored["wte.weight"][:]):
        raise WeightsError(f"the head is not tied to the embedding ({path}): not a GPT-2")
    shapes = [stored[name].shape for name in ("wte.weight", "wpe.weight", "h.0.mlp.c_fc.weight")]
    if any(len(shape) != 2 or 0 in shape for shape in shapes):
        raise WeightsError(f"no tables and matrices ({path} has the shapes {shapes}): not a GPT-2")
    (n_vocab, n_embd), (n_ctx, _), (_, n_inner) = shapes
    sizes = {"n_embd": n_embd, "n_inner": n_inner, "n_layer": num_layers}
    positions = "n_positions" if "n_positions" in config else "n_ctx"  # old files have both names
    for key, size in {**sizes, positions: n_ctx}.items():
        if config.get(key) not in (None, size):
            fault = f"config.json says {key}={config[key]!r}, the weights have {size}"
            raise WeightsError(f"{fault} ({path}): copy the folder again")
    n_head = config.get("n_head", n_embd // 64)  # GPT-2's own heads have size 64
    if type(n_head) is not int or n_head < 1 or n_embd % n_head:
        place = config_path if config_path.exists() else f"there is no {config_path}"
        raise WeightsError(f"n_embd={n_embd} in {n_head!r} heads ({place}): set n_head there")
    settings = {**sizes, "n_vocab": n_vocab, "n_ctx": n_ctx, "n_head": n_head}
    return settings, nested({row.gpt2: stored[row.huggingface] for row in rows})


def weight_files(path: Path) -> list[Path]:
    """What holds the weights of a folder, by its index if it has one; or the file `path` itself."""
    if not path.is_dir():
        if re.search(r"-\d+-of-0*([2-9]|1\d)", path.name):
            raise WeightsError(f"one part of several ({path}): give the folder with all of them")
        return [path]
    index = path / "model.safetensors.index.json"
    if index.exists() and not (path / "model.safetensors").exists():
        places = json.dumps(read_object(index, "an index").get("weight_map"), ensure_ascii=False)
        if names := sorted({*re.findall(r'"([^"/\\]+\.safetensors)"', places)}):
            return [path / name for name in names]
        raise WeightsError(f"not an index ({index}: no file beside it is named): copy it again")
    for pattern in ("model.safetensors", "*.safetensors", "*.bin", "*.pt"):
        if files := sorted(path.glob(pattern)):
            return files
    raise WeightsError(f"no .safetensors file ({path}): give one, or the folder that has it")


def read_object(path: Path, kind: str) -> dict[str, Any]:
    """The JSON object in a file; WeightsError says why it is not `kind`."""
    try:
        found = json.loads(path.read_bytes())  # bytes: in UTF-16 or with a mark in front too
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}")
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"not {kind} ({path}: {error}): copy it again") from error
    return found


def read_config(path: Path) -> dict[str, Any]:
    """config.json, or {} where there is none; WeightsError if it is not of a GPT-2."""
    config = read_object(path, "a config") if path.exists() else {}
    if config.get("activation_function") in SAME_GELU:
        config["activation_function"] = SAME["activation_function"]
    others = [f"{key}={config[key]!r}" for key in SAME if config.get(key, SAME[key]) != SAME[key]]
    if others:
        raise WeightsError(f"not GPT-2's mathematics ({path}: {', '.join(others)})")
    return config


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a .safetensors file: looks like an array, is read when sliced.

    Each slice maps the file anew, because the pages of an open mapping count as memory in use.
    """

    path: Path
    name: str
    shape: tuple[int, ...]

    def __getitem__(self, rows: slice) -> np.ndarray:
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as opened:
            numbers = opened.get_slice(self.name)[slice(*rows.indices(self.shape[0]))]
        if not numbers.is_floating_point():
            raise WeightsError(f"{self.name} is {numbers.dtype} ({self.path}): save it as float32")
        numbers = numbers.float()
        if not numbers.isfinite().all():
            raise WeightsError(f"a weight is not finite ({self.path}: {self.name}): copy it again")
        return numbers.numpy()


def stored_tensors(files: list[Path]) -> dict[str, StoredTensor]:
    """The weights in the files by their names without the prefix `transformer.`."""
    found: dict[str, StoredTensor] = {}
    for tensor in (tensor for file in files for tensor in tensors_in(file)):
        name = tensor.name.removeprefix("transformer.")
        if name in found:
            raise WeightsError(
                f"two files have {name} ({found[name].path}, {tensor.path}): name one of them"
            )
        if not MASK_NAME.fullmatch(name):
            found[name] = tensor
    return found


def tensors_in(path: Path) -> Iterator[StoredTensor]:
    """All that a file holds; WeightsError says what another file is."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            for name in opened.keys():  # noqa: SIM118
                yield StoredTensor(path, name, tuple(opened.get_slice(name).get_shape()))
    except FileNotFoundError as error:
        raise WeightsError(f"no such file ({path}): check the path, or copy it there") from error
    except SafetensorError as error:
        with path.open("rb") as file:
            start = file.read(24)
        kinds = [kind for magic, kind in KINDS.items() if start.startswith(magic)]
        if start and start[8:9] != b"{":  # where every header begins
            kinds.append(("it starts otherwise", "give a GPT-2's folder or .safetensors file"))
        kind, advice = kinds[0] if kinds else (error if start else "empty", "copy it again")
        raise WeightsError(f"not a safetensors file ({path}: {kind}): {advice}") from error


def export_huggingface(folder: str | Path, state: dict[str, Any], model: Transformer) -> str:
    """The receipt of the folder, which gets its name when all is compared and on the disk."""
    from safetensors.torch import save_file

    folder, config, weights = as_path(folder), state["config"], huggingface_weights(model)
    with whole_folder(folder) as part:
        path = part / "model.safetensors"
        save_file(weights, path, metadata={"format": "pt"})
        path.chmod(0o644)  # the library's own temporary file lets nobody else read it
        for name, text in small_files(config).items():
            (part / name).write_text(text, encoding="utf-8")
        receipt = compare(model, config, "f32", partial(read_back, part, config))
        text = model_card(folder.name, state, model, receipt)
        (part / "README.md").write_text(text, encoding="utf-8")
    return receipt


def small_files(config: dict[str, Any]) -> dict[str, str]:
    """Texts by file name: the network's sizes, the tokenizer, how to generate."""
    vocabulary, merges = vocabulary_and_merges()
    own = config.get("embedding_dropout", "auto")  # not in earlier files
    network = {
        "architectures": ["GPT2LMHeadModel"],
        **SAME,
        "vocab_size": len(vocabulary),
        "n_positions": config["seq_len"],
        **{gpt2: config[ours] for ours, gpt2 in SETTINGS.items()},
        **dict.fromkeys(("attn_pdrop", "resid_pdrop"), config["dropout"]),
        "embd_pdrop": config["dropout"] if own == "auto" else own,
        **END_IDS,
    }
    tokenizer = {
        "tokenizer_class": "GPT2Tokenizer",
        "add_prefix_space": False,
        "model_max_length": config["seq_len"],
        **dict.fromkeys(("bos_token", "eos_token", "unk_token", "pad_token"), END_OF_TEXT),
    }
    return {
        "config.json": json.dumps(network, indent=2),
        "generation_config.json": json.dumps({**END_IDS, "pad_token_id": END_OF_TEXT_ID}),
        "tokenizer_config.json": json.dumps(tokenizer, indent=2),
        "tokenizer.json": json.dumps(fast_tokenizer(vocabulary, merges)),
        "vocab.json": json.dumps(vocabulary),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
    }


def read_back(folder: Path, config: dict[str, Any]) -> tuple[str, Logits]:
    """The reader's name and the logits of its model: transformers if installed, else GPT-2's."""
    if find_spec("transformers") is None:
        from safetensors.torch import load_file

        weights = load_file(folder / "model.safetensors")
        return "safetensors", partial(gpt2_logits, weights, config["num_heads"])
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    return f"transformers {version('transformers')}", lambda ids: model(ids).logits
