"""A model as a folder that Hugging Face's libraries read."""

import json
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import Tensor

from exchange.bpe_files import vocabulary_and_merges
from exchange.receipt import Receipt, compare, prompt_of
from model import Transformer, model_size
from reports.history import History
from storage import checkpoint
from system.files import whole_folder
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID, GPT2Tokenizer
from weights import SAME, huggingface_weights, load_weights_into_gpt, read_safetensors

PRIVATE_KEYS = ("output_dir", "resume", "weights_path")  # paths of this machine
END_IDS = {"bos_token_id": END_OF_TEXT_ID, "eos_token_id": END_OF_TEXT_ID}
CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags: [gpt2]
---

# {name}

| what | value |
|---|---|
{facts}

The files of this folder, {receipt}.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name!r})
model = AutoModelForCausalLM.from_pretrained({name!r})
prompt = tokenizer({prompt!r}, return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, do_sample=True, max_new_tokens={num_tokens})[0]))
```

The positions are learned: prompt and continuation together have at most {seq_len} tokens.

## Training config

```json
{config}
```
"""


def export_huggingface(folder: Path, state: dict[str, Any], model: Transformer) -> Receipt:
    """Writes the folder, which gets its name when all of it is compared and on the disk."""
    config = state["config"]
    with whole_folder(folder) as part:
        write_safetensors(part / "model.safetensors", model)
        for name, text in small_files(config).items():
            (part / name).write_text(text, encoding="utf-8")
        receipt = compare(model, prompt_of(config), *read_huggingface(part, config))
        card = model_card(folder.name, state, model, receipt)
        (part / "README.md").write_text(card, encoding="utf-8")
    return receipt


def write_safetensors(path: Path, model: Transformer) -> None:
    from safetensors.torch import save_file

    weights = huggingface_weights(model)
    tensors = {f"transformer.{name}": weight for name, weight in weights.items()}
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # the library's own temporary file lets nobody else read it


def small_files(config: dict[str, Any]) -> dict[str, str]:
    """Texts by file name: the network's sizes, the tokenizer, how to generate."""
    vocabulary, merges = vocabulary_and_merges(GPT2Tokenizer())
    network = {
        "architectures": ["GPT2LMHeadModel"],
        **SAME,
        "vocab_size": len(vocabulary),
        "n_positions": config["seq_len"],
        "n_ctx": config["seq_len"],
        "n_embd": config["embedding_dim"],
        "n_layer": config["num_layers"],
        "n_head": config["num_heads"],
        "n_inner": config["ffn_hidden_dim"],
        **dict.fromkeys(("embd_pdrop", "attn_pdrop", "resid_pdrop"), config["dropout"]),
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
        "vocab.json": json.dumps(vocabulary),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]),
    }


def read_huggingface(
    folder: Path, config: dict[str, Any]
) -> tuple[str, Callable[[Tensor], Tensor]]:
    """The reader's name and the logits of its model: transformers if installed, else weights.py."""
    if find_spec("transformers") is None:
        settings, params = read_safetensors(folder)
        model = checkpoint.build_model(config, settings["n_vocab"]).eval()
        load_weights_into_gpt(model, params)
        return "weights.py", model
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).eval()
    return f"transformers {version('transformers')}", lambda ids: model(ids).logits


def model_card(name: str, state: dict[str, Any], model: Transformer, receipt: Receipt) -> str:
    config = state["config"]
    shown = {key: value for key, value in config.items() if key not in PRIVATE_KEYS}
    return CARD.format(
        name=name,
        facts="\n".join(f"| {key} | {value} |" for key, value in facts(state, model).items()),
        receipt=receipt,
        prompt=prompt_of(config),
        num_tokens=min(100, config["seq_len"] // 2),
        seq_len=config["seq_len"],
        config=json.dumps(shown, indent=2),
    )


def facts(state: dict[str, Any], model: Transformer) -> dict[str, Any]:
    """What the checkpoint tells about the model; one that holds the weights alone tells less."""
    config = state["config"]
    known = {
        "parameters": f"{model_size(model).total:,}",
        "layers": config["num_layers"],
        "width": config["embedding_dim"],
        "attention heads": config["num_heads"],
        "context": f"{config['seq_len']} tokens",
    }
    if "history" in state:
        latest = History.from_state_dict(state["history"]).evaluations[-1]
        known |= {
            "training steps": f"{state['step']:,}",
            "last evaluation": f"step {latest.step:,}, {latest.tokens_seen:,} training tokens",
            "validation loss": f"{latest.loss:.4f} nats a token",
            "perplexity": f"{latest.perplexity:,.2f}",
            "SHA-256 of the text": state["text_sha256"],
        }
    versions = state.get("versions", {})
    return known | {f"trained with {name}": number for name, number in versions.items()}
