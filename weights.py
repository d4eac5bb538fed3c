"""The one table of weight names: OpenAI's GPT-2, Hugging Face's, ours.

GPT-2 stores the weight of a linear layer as (in, out), torch.nn.Linear as (out, in).
"""

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from system.errors import WeightsError


class Row(NamedTuple):
    """One weight's path in the params, its name in a Hugging Face file, and in our state_dict."""

    gpt2: str
    huggingface: str
    ours: str
    is_transposed: bool = False


MODEL_ROWS = (
    Row("wte", "wte.weight", "input_embedding.embedding.weight"),
    Row("wpe", "wpe.weight", "positional_encoding.pe"),
    Row("g", "ln_f.weight", "final_norm.weight"),
    Row("b", "ln_f.bias", "final_norm.bias"),
)
BLOCK_ROWS = (
    Row("ln_1.g", "ln_1.weight", "attention_norm.weight"),
    Row("ln_1.b", "ln_1.bias", "attention_norm.bias"),
    Row("attn.c_attn.w", "attn.c_attn.weight", "attention.qkv.weight", True),
    Row("attn.c_attn.b", "attn.c_attn.bias", "attention.qkv.bias"),
    Row("attn.c_proj.w", "attn.c_proj.weight", "attention.projection.weight", True),
    Row("attn.c_proj.b", "attn.c_proj.bias", "attention.projection.bias"),
    Row("ln_2.g", "ln_2.weight", "feed_forward_norm.weight"),
    Row("ln_2.b", "ln_2.bias", "feed_forward_norm.bias"),
    Row("mlp.c_fc.w", "mlp.c_fc.weight", "feed_forward.expand.weight", True),
    Row("mlp.c_fc.b", "mlp.c_fc.bias", "feed_forward.expand.bias"),
    Row("mlp.c_proj.w", "mlp.c_proj.weight", "feed_forward.contract.weight", True),
    Row("mlp.c_proj.b", "mlp.c_proj.bias", "feed_forward.contract.bias"),
)
MASK_NAME = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # in older files, not a weight
SAME = {  # what config.json must say, where it says anything, for the mathematics to be GPT-2's
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "tie_word_embeddings": True,
}
CHUNK_NUMBERS = 1 << 22  # copied at a time: 16 MB of float32


def name_rows(num_layers: int) -> list[Row]:
    """The table for a model of that many layers."""
    block_rows = [
        Row(f"blocks.{i}.{gpt2}", f"h.{i}.{huggingface}", f"blocks.{i}.{ours}", is_transposed)
        for i in range(num_layers)
        for gpt2, huggingface, ours, is_transposed in BLOCK_ROWS
    ]
    return [*MODEL_ROWS, *block_rows]


def architecture_from(settings: dict[str, int]) -> dict[str, int]:
    """GPT-2's settings under the names of our config."""
    return {
        "seq_len": settings["n_ctx"],
        "embedding_dim": settings["n_embd"],
        "num_layers": settings["n_layer"],
        "num_heads": settings["n_head"],
        "ffn_hidden_dim": 4 * settings["n_embd"],
    }


@torch.no_grad()
def load_weights_into_gpt(model: nn.Module, params: dict[str, Any]) -> None:
    """Copies the params into the model, on its device; WeightsError lists all that does not fit.

    Everything is compared before anything is copied.
    """
    rows = name_rows(len(model.blocks))
    ours, theirs = dict(model.named_parameters()), dict(_flat(params))
    if "wpe" in theirs:  # GPT-2 ships 1024 positions; a shorter model keeps the first ones
        theirs["wpe"] = theirs["wpe"][: len(model.positional_encoding.pe)]
    _check_names({row.gpt2 for row in rows}, theirs.keys(), "params")
    _check_names({row.ours for row in rows}, ours.keys(), "model")
    targets = {row.gpt2: _turned(ours[row.ours], row) for row in rows}
    misfits = [
        f"{row.gpt2} {tuple(theirs[row.gpt2].shape)} into {row.ours} {tuple(ours[row.ours].shape)}"
        for row in rows
        if tuple(theirs[row.gpt2].shape) != tuple(targets[row.gpt2].shape)
    ]
    if misfits:
        raise WeightsError(f"weights do not fit the model ({'; '.join(misfits)}): check its sizes")
    for name, target in targets.items():
        _copy(theirs[name], target)


@torch.no_grad()
def gpt_params_from(model: nn.Module) -> dict[str, Any]:
    """The inverse: the model's weights as GPT-2's params, copied into float32 arrays."""
    rows, ours = name_rows(len(model.blocks)), dict(model.named_parameters())
    _check_names({row.ours for row in rows}, ours.keys(), "model")
    weights = ((row.gpt2, _turned(ours[row.ours], row).float().cpu()) for row in rows)
    return _nested({name: np.array(weight.numpy(), order="C") for name, weight in weights})


def huggingface_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights as transformers' GPT2Model names and lays them."""
    rows, ours = name_rows(len(model.blocks)), model.state_dict()
    return {row.huggingface: _turned(ours[row.ours], row).contiguous() for row in rows}


def read_safetensors(path: str | Path) -> tuple[dict[str, int], dict[str, Any]]:
    """(settings, params) of a Hugging Face folder or of one .safetensors file.

    The params are left in the file until they are used, so the model is the only copy in memory.
    """
    path = Path(path)
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise WeightsError(f"no .safetensors file ({path}): give one, or the folder that has it")
    stored = {name: tensor for file in files for name, tensor in _stored_tensors(file)}
    layers = {int(match[1]) for name in stored if (match := re.match(r"h\.(\d+)\.", name))}
    rows = name_rows(len(layers))
    head = stored.pop("lm_head.weight", None)
    _check_names({row.huggingface for row in rows}, stored.keys(), str(path))
    if head is not None and not np.array_equal(head, stored["wte.weight"]):
        raise WeightsError(f"the head is not tied to the embedding ({path}): not a GPT-2")
    (n_vocab, n_embd), n_ctx = stored["wte.weight"].shape, len(stored["wpe.weight"])
    n_head = _num_heads((path.parent if path.is_file() else path) / "config.json", n_embd)
    settings = {"n_vocab": n_vocab, "n_ctx": n_ctx, "n_embd": n_embd, "n_head": n_head}
    params = _nested({row.gpt2: stored[row.huggingface] for row in rows})
    return {**settings, "n_layer": len(layers)}, params


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a .safetensors file: looks like an array, is read when sliced or converted.

    Each slice maps the file anew, because the pages of an open mapping count as memory in use.
    """

    path: Path
    name: str
    shape: tuple[int, ...]

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as opened:
            return opened.get_slice(self.name)[rows].float().numpy()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self[:], dtype=dtype)


def _stored_tensors(path: Path) -> Iterator[tuple[str, StoredTensor]]:
    """The tensors of a file by their names without the prefix `transformer.`."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as opened:
            names = list(opened.keys())
            shapes = {name: tuple(opened.get_slice(name).get_shape()) for name in names}
    except SafetensorError as error:
        raise WeightsError(f"not a safetensors file ({path}: {error}): copy it again") from error
    for name, shape in shapes.items():
        short_name = name.removeprefix("transformer.")
        if not MASK_NAME.fullmatch(short_name):
            yield short_name, StoredTensor(path, name, shape)


def _num_heads(config_path: Path, n_embd: int) -> int:
    """What config.json says, if it is there; GPT-2's own heads have size 64."""
    config = json.loads(config_path.read_text()) if config_path.exists() else {}
    others = [f"{key}={config[key]!r}" for key in SAME if config.get(key, SAME[key]) != SAME[key]]
    if others:
        raise WeightsError(f"not GPT-2's mathematics ({config_path}: {', '.join(others)})")
    n_head = config.get("n_head", n_embd // 64)
    if n_head < 1 or n_embd % n_head:
        raise WeightsError(f"n_embd={n_embd} in {n_head} heads ({config_path}): state n_head there")
    return n_head


def _check_names(expected: set[str], given: Collection[str], where: str) -> None:
    missing, unknown = sorted(expected - set(given)), sorted(set(given) - expected)
    if missing or unknown:
        raise WeightsError(f"not a GPT-2 ({where}): missing {missing}, unknown {unknown}")


def _turned(weight: Tensor, row: Row) -> Tensor:
    """A view of our weight that lies as GPT-2's does."""
    return weight.T if row.is_transposed else weight


def _copy(source: np.ndarray | StoredTensor, target: Tensor) -> None:
    """Copies a few megabytes at a time, so that the source never has to be in memory as a whole."""
    step = max(1, CHUNK_NUMBERS * len(target) // target.numel())
    for start in range(0, len(target), step):
        rows = slice(start, start + step)
        target[rows].copy_(torch.tensor(source[rows]))


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of the params by path: {"blocks": [{"ln_1": {"g": x}}]} -> blocks.0.ln_1.g, x."""
    if not isinstance(tree, (dict, list)):
        yield prefix, tree
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))


def _nested(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of _flat, for the names of a model's rows."""
    num_blocks = len({path.split(".")[1] for path in flat if path.startswith("blocks.")})
    tree: dict[str, Any] = {"blocks": [{} for _ in range(num_blocks)]}
    for path, leaf in flat.items():
        *folders, name = path.split(".")
        node = tree["blocks"][int(folders[1])] if folders else tree
        for folder in folders[2:]:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return tree
