"""Published weights: which there are, what they decide of a config, and the model they make."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.quantized import Packed
from exchange.huggingface import read_safetensors
from gpt_download import MODELS, official_tensors
from model import Transformer
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
Shrink = Callable[[Transformer], None]
Copies = dict[str, Callable[[Tensor], None]]  # by the name of a weight, what fills it
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
        shrink: Shrink | None = None,
    ) -> Transformer:
        """The model with these weights, which are copied tensor by tensor to where it lies.

        No random number is drawn. A shorter context keeps the first positions. `shrink` gets the
        model in shapes alone, to say which matrices are to be in few bits.
        """
        config = {**architecture_from(self.settings), "dropout": dropout}
        config["seq_len"] = seq_len or config["seq_len"]
        with torch.device("meta" if shrink else device), checkpoint.undrawn():
            model = checkpoint.build_model(config, self.settings["n_vocab"])
        if shrink:
            copies = copies_into(model, self.read())
            shrink(model)
            fill(model, copies, device)
        else:
            load_weights_into_gpt(model, self.read())
        return model


@torch.no_grad()
def fill(model: Transformer, copies: Copies, device: torch.device | str) -> None:
    """Gives memory to a model in shapes alone, then its weights, of which one is float32 at a time.

    The memory that stays is taken first: what comes and goes then leaves no holes in it.
    """
    modules, own = dict(model.named_modules()), model.to_empty(device=device).state_dict()
    packed = {f"{name}.weight": m for name, m in modules.items() if isinstance(m, Packed)}
    assert len(own) == len(copies) + len(packed), "nothing that no file holds"  # codes and scales
    for name, copy in copies.items():
        if name in packed:
            weight = torch.empty(packed[name].shape, device=device)
            copy(weight)
            packed[name].pack(weight)
        else:
            copy(own[name])


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
