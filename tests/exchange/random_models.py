"""GPT-2s whose every weight, biases and norms too, is drawn at random: ours and transformers'."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from model import Transformer
from storage import checkpoint
from tokenizer import END_OF_TEXT_ID

EVEN = {"seq_len": 64, "embedding_dim": 64, "num_layers": 2, "num_heads": 4, "ffn_hidden_dim": 96}
ODD = {"seq_len": 57, "embedding_dim": 15, "num_layers": 3, "num_heads": 5, "ffn_hidden_dim": 7}
SETTINGS = {"n_vocab": 11, "n_ctx": 7, "n_embd": 12, "n_head": 3, "n_layer": 2, "n_inner": 20}
NUM_TOKENS = END_OF_TEXT_ID + 1


def drawn(model: nn.Module, *, seed: int = 0) -> Any:
    """The same model, in evaluation mode."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    return model.eval()


def random_model(
    sizes: dict[str, int], num_tokens: int = NUM_TOKENS, *, seed: int = 0
) -> Transformer:
    return drawn(checkpoint.build_model({**sizes, "dropout": 0.1}, num_tokens), seed=seed)


def publish(folder: Path, **changes: int) -> Any:
    """transformers' own model of SETTINGS, which it saves in the folder."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = SETTINGS | changes
    names = {"n_vocab": "vocab_size", "n_ctx": "n_positions"}
    config = GPT2Config(**{names.get(key, key): size for key, size in settings.items()})
    model = drawn(GPT2LMHeadModel(config))
    model.save_pretrained(folder)
    return model
