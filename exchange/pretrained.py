"""Which published weights a run starts from, and what that means for its config."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt_download import MODELS, download_and_load_gpt2
from model import Transformer, build_transformer
from system.errors import ConfigError
from weights import architecture_from, load_weights_into_gpt, read_safetensors

MODEL_SIZES = {
    "gpt2-small (124M)": "124M",
    "gpt2-medium (355M)": "355M",
    "gpt2-large (774M)": "774M",
    "gpt2-xl (1558M)": "1558M",
}
MODELS_FOLDER = "gpt2"
FINE_TUNING = {"learning_rate": 1e-5, "num_epochs": 2}  # good weights want small steps, and few
UNCHOSEN = {"learning_rate": 3e-4, "num_epochs": 5}  # what train.py's config says, made for scratch


@dataclass(frozen=True)
class Pretrained:
    """Weights to start from: `settings` are GPT-2's, `read` gives the params, possibly fetched."""

    name: str
    settings: dict[str, int]
    read: Callable[[], dict[str, Any]]

    def config(self, config: dict[str, Any]) -> dict[str, Any]:
        """The config of a fine-tuning run: this architecture, gentler where nothing was chosen."""
        architecture = architecture_from(self.settings)
        most = architecture.pop("seq_len")
        if config["seq_len"] > most:
            raise ConfigError(
                f"config: seq_len={config['seq_len']} is more than the {most} positions of "
                f"{self.name}: try {most}"
            )
        gentle = {key: value for key, value in FINE_TUNING.items() if config[key] == UNCHOSEN[key]}
        return {**config, **architecture, **gentle, "share_unused_tokens": False}

    def __str__(self) -> str:
        return (
            f"{self.name}, fine-tuned with learning_rate {FINE_TUNING['learning_rate']} and "
            f"{FINE_TUNING['num_epochs']} epochs unless the config has others than "
            f"{UNCHOSEN['learning_rate']} and {UNCHOSEN['num_epochs']}"
        )

    def load_into(self, model: Transformer) -> None:
        """Copies the weights into the model, straight to its device."""
        load_weights_into_gpt(model, self.read())


def official(name: str) -> Pretrained:
    """One of OpenAI's models, by its full name, "gpt2-small (124M)", or the short "gpt2-small"."""
    sizes = MODEL_SIZES | {full.split()[0]: size for full, size in MODEL_SIZES.items()}
    if name not in sizes:
        raise ConfigError(f"no such model ({name!r}): choose from {', '.join(MODEL_SIZES)}")
    size = sizes[name]
    return Pretrained(
        name, dict(MODELS[size].settings), lambda: download_and_load_gpt2(size, MODELS_FOLDER)[1]
    )


def from_safetensors(path: str | Path) -> Pretrained:
    """The GPT-2 in a Hugging Face folder or a .safetensors file."""
    settings, params = read_safetensors(path)  # the weights stay in the file until they are copied
    return Pretrained(str(path), settings, lambda: params)


def load_pretrained_model(pretrained: Pretrained) -> Transformer:
    """The model as it was published, with its whole context, on the CPU."""
    architecture = architecture_from(pretrained.settings)
    with torch.device("meta"):
        model = build_transformer(
            pretrained.settings["n_vocab"], architecture.pop("seq_len"), dropout=0.0, **architecture
        )
    model.to_empty(device="cpu")
    pretrained.load_into(model)
    return model.eval()
