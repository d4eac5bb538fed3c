"""Published weights: which there are, what they decide of a config, and the model they make."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from exchange.huggingface import read_safetensors
from gpt_download import MODELS, official_tensors
from model import InputEmbeddings, Transformer
from storage import checkpoint
from system.errors import ConfigError, WeightsError
from system.process import log, warn
from tokenizer import END_OF_TEXT_ID
from weights import architecture_from, copies_into, load_weights_into_gpt, nested

MODEL_SIZES = {
    "gpt2-small (124M)": "124M",
    "gpt2-medium (355M)": "355M",
    "gpt2-large (774M)": "774M",
    "gpt2-xl (1558M)": "1558M",
}
NUM_TOKENS = END_OF_TEXT_ID + 1
Finish = Callable[[str, nn.Module], nn.Module]  # of a part by its name
# Good weights want small steps, and few; no rule for new weights is for them.
FINE_TUNING = {
    "learning_rate": 1e-5,
    "num_epochs": 2,
    "optimizer": "adamw",
    "weight_decay": 0.1,
    "dropout": 0.1,
}


@dataclass(frozen=True)
class Pretrained:
    """Weights to start from: `settings` are GPT-2's, `read` gives the params, possibly fetched."""

    name: str
    settings: dict[str, int]
    read: Callable[[], dict[str, Any]]

    def architecture(self, config: dict[str, Any], chosen: Collection[str]) -> dict[str, Any]:
        """What these weights decide of a config, to be laid over it.

        A seq_len beyond their positions is lowered, or a ConfigError where the user has `chosen`
        it. What changes of seq_len and of the keys chosen is said.
        """
        sizes = architecture_from(self.settings)
        most, seq_len = sizes["seq_len"], config["seq_len"]
        if seq_len > most and "seq_len" in chosen:
            raise ConfigError(f"config: seq_len={seq_len} is more than {self.name} has: try {most}")
        sizes["seq_len"] = min(seq_len, most)
        for key, size in sizes.items():
            if config[key] != size and (key in chosen or key == "seq_len"):
                log(f"notice    {key} {size}, not {config[key]}: as {self.name} has it")
        return {**sizes, "share_unused_tokens": False}

    def build_model(
        self,
        seq_len: int | None = None,
        *,
        dropout: float = 0.0,
        device: torch.device | str = "cpu",
        finish: Finish | None = None,
    ) -> Transformer:
        """The model with these weights, which are copied tensor by tensor to where it lies.

        No random number is drawn. A shorter context keeps the first positions. `finish` has the say
        on what becomes of each part as soon as its weights are in, before the next one has any.
        """
        config = {**architecture_from(self.settings), "dropout": dropout}
        config["seq_len"] = seq_len or config["seq_len"]
        with torch.device("meta" if finish else device), checkpoint.undrawn():
            model = checkpoint.build_model(config, self.settings["n_vocab"])
        if finish:
            assert not list(model.buffers()), "no tables that a file does not hold"
            fill_in_turn(model, self.read(), device, finish)
        else:
            load_weights_into_gpt(model, self.read())
        return model


def fill_in_turn(
    model: Transformer, params: dict[str, Any], device: torch.device | str, finish: Finish
) -> None:
    """Puts the params into a model of shapes alone, part by part, each finished at once."""
    copies = copies_into(model, params)
    for name, part in list(model.named_modules()):
        is_unit = isinstance(part, (nn.Linear, InputEmbeddings))
        own = [key for key, weight in part.named_parameters(recurse=is_unit) if weight.is_meta]
        if not own:
            continue
        part.to_empty(device=device, recurse=is_unit)
        for key in own:
            copies[f"{name}.{key}"](part.get_parameter(key).data)
        model.set_submodule(name, finish(name, part))


def official(name: str) -> Pretrained:
    """One of OpenAI's models, by its full name, "gpt2-small (124M)", or the short "gpt2-small"."""
    sizes = MODEL_SIZES | {full.split()[0]: size for full, size in MODEL_SIZES.items()}
    if name not in sizes:
        raise ConfigError(f"no such model ({name!r}): choose from {', '.join(MODEL_SIZES)}")
    size = sizes[name]
    return Pretrained(name, MODELS[size].settings, lambda: nested(official_tensors(size)))


def from_safetensors(path: str | Path) -> Pretrained:
    """The GPT-2 in a Hugging Face folder or a .safetensors file, its table of our tokens alone."""
    settings, params = read_safetensors(path)  # the weights stay in the file until they are copied
    num_rows = settings["n_vocab"]
    if num_rows < NUM_TOKENS:
        raise WeightsError(f"tokens are missing ({path} has {num_rows:,} of {NUM_TOKENS:,})")
    if num_rows > NUM_TOKENS:
        warn(f"{path} has {num_rows:,} tokens: the first {NUM_TOKENS:,}, GPT-2's own, are used")
    params["wte"] = replace(params["wte"], shape=(NUM_TOKENS, settings["n_embd"]))
    return Pretrained(str(path), {**settings, "n_vocab": NUM_TOKENS}, lambda: params)
