"""Histories of runs that nobody has trained: quick to make, and of any length."""

import json
import math
from pathlib import Path
from typing import Any

NASTY = "</script><script>alert(1)</script>\x1b[31m\u202egnp.exe \udcff & \"x\" 'y' $title ${x}"
COMPARISON = {
    "texts": {"greedy": NASTY},
    "human": {"log_probability": -3.0, "distinct_2": 0.9, "repeated_4": 0.1, "longest_copy": 5},
    "numbers": {"greedy": {"log_probability": -1.0, "distinct_2": None}},
    "nearest": ["greedy"],
}


def recorded(
    folder: Path, *, num_reports: int = 40, evaluated: int = 10, worse: float = 0.0, **config: Any
) -> Path:
    """The folder of a run with so many reports, every `evaluated`-th of them an evaluation."""
    head = {
        "run_id": "a" * 32,
        "config": {"seed": 1, "embedding_dim": 8, "sample_prompt": NASTY, **config},
        "num_steps": 10 * num_reports + 10,
        "about": [["text", NASTY], ["note", "one"], ["note", "two"]],
        "facts": {"histogram": [0, 3, 0, 9]},
        "environment": {"torch": "2.13.0"},
        "comparison": COMPARISON,
    }
    lines = [head]
    for i in range(num_reports + 1):
        loss = 3 + 7 * math.exp(-10 * i / num_reports) + worse
        line = {"step": 10 * i, "tokens": 1000 * i, "train_loss": loss if i else None, "xz": 2.0}
        line |= {"learning_rate": 3e-4, "grad_norm": 1 + i % 7, "tokens_per_second": 100.0 + i}
        line |= {"memory_bytes": 10**9, "seconds": 60.0 * i, "val_loss": None}
        if i % evaluated == 0:
            line |= {
                "val_loss": loss + 0.1,
                "perplexity": math.exp(loss),
                "bits_per_byte": loss / 3,
            }
            line |= {"sample": f"{i} {NASTY}"}
        lines.append(line)
    folder.mkdir(parents=True, exist_ok=True)
    text = "\n".join(map(json.dumps, lines)) + "\n"
    (folder / "history.jsonl").write_text(text, encoding="utf-8")
    return folder
