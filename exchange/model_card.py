"""The README.md of an exported folder: what the model is, how it was trained, who reads it."""

import json
from typing import Any

from model import Transformer, num_parameters
from reports.history import History

PRIVATE_KEYS = ("data", "val_data", "output_dir", "resume", "weights_path")  # paths of this machine
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
mlx-lm and CTranslate2 read this folder too, llama.cpp converts it: give none a longer context.

## Training config

```json
{config}
```
"""


def model_card(name: str, state: dict[str, Any], model: Transformer, receipt: str) -> str:
    """Says what the checkpoint tells; one that holds the weights alone tells less."""
    config = state["config"]
    facts = {
        "parameters": f"{num_parameters(model):,}",
        "layers": config["num_layers"],
        "width": config["embedding_dim"],
        "attention heads": config["num_heads"],
        "context": f"{config['seq_len']} tokens",
    }
    if "history" in state:
        latest = History.from_state_dict(state["history"]).evaluations[-1]
        facts |= {
            "training steps": f"{state['step']:,}",
            "last evaluation": f"step {latest.step:,}, {latest.tokens_seen:,} training tokens",
            "validation loss": f"{latest.loss:.4f} nats a token",
            "perplexity": f"{latest.perplexity:,.2f}",
            "SHA-256 of the text": state["text_sha256"],
        }
    for library, version in state.get("versions", {}).items():
        facts[f"trained with {library}"] = version
    shown = {key: value for key, value in config.items() if key not in PRIVATE_KEYS}
    return CARD.format(
        name=name,
        facts="\n".join(f"| {key} | {value} |" for key, value in facts.items()),
        receipt=receipt,
        prompt=config.get("sample_prompt", "Once upon a time"),
        num_tokens=min(100, config["seq_len"] // 2),
        seq_len=config["seq_len"],
        config=json.dumps(shown, indent=2),
    )
