"""A complete training that takes a second: dropout, two epochs, evaluations, saves in between."""

import hashlib
import io
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

import train
from reports import html, plot
from storage import checkpoint
from training import samples
from weights import huggingface_weights

REPOSITORY = Path(train.__file__).parent
TEXT_CHARS = 2400
CONFIG = {
    **train.config,
    "data": "data.txt",
    "seq_len": 16,
    "embedding_dim": 8,
    "num_layers": 1,
    "num_heads": 2,
    "ffn_hidden_dim": 12,
    "batch_size": 3,
    "grad_accum_steps": 2,
    "dropout": 0.2,
    "num_epochs": 3,
    "optimizer": "adamw",
    "lr_schedule": "cosine",
    "lr_min_ratio": 0.1,
    "weight_decay": 0.1,
    "warmup_steps": 3,
    "stride": 16,
    "eval_freq": 4,
    "eval_tokens": 40,
    "save_freq": 3,
    "sample_tokens": 0,
    "keep_checkpoints": 2,
    "device": "cpu",
    "precision": "float32",
    "compile": "off",
}


def prepare(folder: Path, *, num_chars: int = TEXT_CHARS) -> None:
    """Puts a short text into the folder and goes there."""
    story = (REPOSITORY / "example.txt").read_text(encoding="utf-8")[:num_chars]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "data.txt").write_text(story, encoding="utf-8")
    os.chdir(folder)


def train_quickly(options: dict[str, Any] | None = None, **changes: Any) -> Path:
    """Trains the tiny model in the working folder."""
    return train.train({**CONFIG, **changes}, options)


def start_weights(folder: Path, seed: int = 7) -> Path:
    """A GPT-2 as a Hugging Face folder, of a tiny size but for its table."""
    torch.manual_seed(seed)
    sizes = {"seq_len": 20, "embedding_dim": 8, "num_layers": 2, "num_heads": 2}
    config = {**sizes, "dropout": 0.0, "ffn_hidden_dim": 12}
    folder.mkdir()
    model = checkpoint.build_model(config, 50257)
    save_file(huggingface_weights(model), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"n_head": 2}))
    return folder


def without_plots() -> None:
    """Leaves the plots out from now on: most of a tiny run's time, and of no weight in it."""
    plot.plot_history = samples.plot_comparison = html.write = lambda path, *shown: None


def fingerprint(path: Path) -> str:
    """A hash of all that a checkpoint holds, but for the id that each run draws anew."""
    state = torch.load(path, map_location="cpu", weights_only=True)
    state.pop("run_id")
    return hashlib.sha256(canonical(state)).hexdigest()


def canonical(value: Any) -> bytes:
    """Bytes that are equal exactly if the values are, to the last bit."""
    if isinstance(value, Tensor):
        raw = io.BytesIO()
        raw.write(f"{value.dtype}{tuple(value.shape)}".encode())
        raw.write(value.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        return raw.getvalue()
    if isinstance(value, dict):
        pairs = sorted((repr(key), canonical(item)) for key, item in value.items())
        return b"{" + b",".join(key.encode() + b":" + item for key, item in pairs) + b"}"
    if isinstance(value, (list, tuple)):
        return b"[" + b",".join(canonical(item) for item in value) + b"]"
    return repr(value).encode()


def tiny_state(step: int = 3, run_id: str = "a" * 32, **changes: Any) -> dict[str, Any]:
    """A checkpoint's state of a few hundred bytes: the smallest model over 3 tokens."""
    config = {**CONFIG, "seq_len": 2, "embedding_dim": 2, "num_heads": 1, "ffn_hidden_dim": 1}
    torch.manual_seed(step)
    weights = dict(checkpoint.build_model(config, 3).state_dict())
    state = {"config": config, "model_state_dict": weights, "step": step, "run_id": run_id}
    return {**state, **changes}
