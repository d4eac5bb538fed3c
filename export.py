"""The final model for other programs: a Hugging Face folder, or a GGUF file for llama.cpp.

python export.py --to hf DIR
python export.py --to gguf FILE --type q8_0

What is written is read back and compared with the model: the receipt. Nothing is overwritten.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import checkpoint
from files import check_writable, sweep_parts, whole_folder
from generate import TextGenerator
from gguf_file import FILE_TYPES, read_gguf, write_gguf
from merges import vocabulary_and_merges
from metrics import History
from model import Transformer, model_size
from runtime import StopSignals, run_command
from settings import Parser
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID, GPT2Tokenizer
from weights import SAME, huggingface_weights, load_weights_into_gpt, read_safetensors

RECEIPT_TOKENS = 50
PACKAGES = {"hf": "safetensors", "gguf": "gguf"}
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


class ExportError(ValueError):
    """A model that cannot be exported, or not to there."""

    exit_code = 2


@dataclass(frozen=True)
class Receipt:
    """What was written, read back by `reader`, beside the model on a greedy text of the model."""

    reader: str
    logit_difference: float
    num_agreeing: int
    num_tokens: int

    def __str__(self) -> str:
        return (
            f"read back by {self.reader}: largest logit difference {self.logit_difference:.1e}, "
            f"greedy tokens that agree {self.num_agreeing} of {self.num_tokens}"
        )


@torch.no_grad()
def compare(
    model: Transformer, prompt: str, reader: str, logits_of: Callable[[Tensor], Tensor]
) -> Receipt:
    """The receipt for what computes `logits_of(ids)`, (1, T) -> (1, T, V).

    One pass over our greedy text will do: where the likeliest next token is the same at all its
    positions, greedy decoding writes the same text.
    """
    generator = TextGenerator(model, GPT2Tokenizer())
    start = torch.tensor([generator.prompt_ids(prompt)[: max(1, model.seq_len // 2)]])
    num_prompt, num_new = start.size(1), min(RECEIPT_TOKENS, model.seq_len - start.size(1))
    continuation = generator.stream_tokens(start, num_new, temperature=0.0)
    ids = torch.cat([start, *(token[:, None] for token in continuation)], dim=1)
    ours, theirs = model(ids), logits_of(ids)
    agrees = theirs.argmax(-1)[0, num_prompt - 1 : -1] == ids[0, num_prompt:]
    difference = (ours - theirs).abs().max().item()
    return Receipt(reader, difference, int(agrees.sum()), agrees.numel())


def prompt_of(config: dict[str, Any]) -> str:
    return config.get("sample_prompt", "Once upon a time")


# ---------------------------------------------------------------- Hugging Face


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


# ---------------------------------------------------------------- the command


def check_target(path: Path, *, is_folder: bool) -> None:
    """ExportError if something is there already; an empty folder may be filled."""
    is_fillable = is_folder and path.is_dir() and not any(path.iterdir())
    if path.exists() and not is_fillable:
        raise ExportError(f"there is something already ({path}): remove it, or choose another name")
    check_writable(path.parent)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description="Writes a trained model for other programs.", allow_abbrev=False)
    add = parser.add_argument
    add("--to", choices=PACKAGES, required=True, help="Hugging Face folder, or GGUF file")
    add("path", type=Path, help="the folder or the file to write")
    add("--checkpoint", type=Path, default=Path(checkpoint.FINAL_NAME), help="model file")
    add("--type", choices=FILE_TYPES, help="how GGUF holds the matrices (f16)")
    options = parser.parse_args(arguments)
    if options.to == "hf" and options.type:
        parser.error("--type is for --to gguf")
    return options


def load_exportable(path: Path) -> tuple[dict[str, Any], Transformer]:
    """(state, model) of a checkpoint; ExportError unless its vocabulary is GPT-2's."""
    state = checkpoint.load(path)
    num_tokens = len(state["model_state_dict"][checkpoint.EMBEDDING])
    if num_tokens != END_OF_TEXT_ID + 1:
        raise ExportError(
            f"not GPT-2's vocabulary ({path} has {num_tokens:,} tokens): cannot export"
        )
    return state, checkpoint.model_from(state).float()


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    package, path = PACKAGES[options.to], options.path.resolve()
    if find_spec(package) is None:
        raise ExportError(f"a package is missing ({package}): pip install {package}")
    check_target(path, is_folder=options.to == "hf")
    sweep_parts(path.parent)
    with StopSignals():
        state, model = load_exportable(options.checkpoint)
        if options.to == "hf":
            receipt = export_huggingface(path, state, model)
        else:
            write_gguf(path, model, state["config"], options.type or "f16")
            reader = f"gguf {version('gguf')}"
            receipt = compare(model, prompt_of(state["config"]), reader, read_gguf(path))
    print(f"saved     {path}\nreceipt   {receipt}")


if __name__ == "__main__":
    run_command(main)
