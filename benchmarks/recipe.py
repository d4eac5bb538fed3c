"""What a recipe is worth: runs of train.py that differ in a few keys, each told by its loss."""

import re
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import record
from benchmarks.turns import Rows
from corpus.text import PROJECT
from storage.checkpoint import FINAL_NAME, load
from system.errors import ConfigError
from system.process import log

EARLIER = {  # the default before Muon
    "optimizer": "adamw",
    "learning_rate": 3e-4,
    "lr_schedule": "decay",
    "lr_min_ratio": 0.1,
    "grad_accum_steps": 1,
    "rare_as_unused": 0.0,
    "generations": 1,
}
RECIPES: dict[str, dict[str, Any]] = {  # changes to the default, a row of the table each
    "the default": {},
    "the default before": EARLIER,
    "AdamW at 2e-3": {**EARLIER, "learning_rate": 2e-3},
    "half the rate": {"learning_rate": 4e-3},
    "twice the rate": {"learning_rate": 1.6e-2},
    "1,024 tokens an update": {"grad_accum_steps": 1},
    "decay 0.1": {"weight_decay": 0.1},
    "decay 3": {"weight_decay": 3},
    "dropout 0.1": {"dropout": 0.1},
    "rare tokens as themselves": {"rare_as_unused": 0.0},
    "two generations": {"generations": 2, "num_epochs": 10},
    "falls in the last fifth": {"lr_schedule": "decay", "lr_min_ratio": 0.1},
}
COMMON = {"eval_tokens": 10**9, "sample_tokens": 0, "patience": 0}  # all of the validation part


def measure_recipes(given: dict[str, Any], texts: Sequence[Path], path: Path | None) -> None:
    """Validation loss of each recipe on each text: median and spread over seeds, and minutes.

    Each run has its epochs, or --max-seconds for all of it. Recipes take turns.
    """
    num_seeds, only = given.pop("seeds", 1), given.pop("only", "")
    seconds = given.pop("max_seconds", None)
    chosen = {name: changes for name, changes in RECIPES.items() if re.search(only, name)}
    problems = [f"recipe takes no --{name.replace('_', '-')}" for name in given]
    problems += [f"seeds={num_seeds} is not a whole number >= 1"] if num_seeds < 1 else []
    problems += [] if seconds is None or seconds > 0 else [f"max_seconds={seconds} is not above 0"]
    problems += [] if chosen else [f"only={only} is in none of: {', '.join(RECIPES)}"]
    if problems:
        raise ConfigError("command line: " + "; ".join(problems))
    rows: Rows = {name: {} for name in chosen}
    for text, label in record.labels(texts or [PROJECT / "example.txt"]).items():
        runs: dict[str, list[tuple[float, float]]] = {name: [] for name in chosen}
        for seed in range(42, 42 + num_seeds):
            for name, changes in chosen.items():
                given = {**limited(changes, seconds), "seed": seed}
                runs[name].append(outcome(text, given))
                log(f"{label}, {name}, seed {seed}: loss, minutes {runs[name][-1]}")
        for name in chosen:
            losses, minutes = zip(*runs[name], strict=True)
            found = {"loss": statistics.median(losses), "spread": max(losses) - min(losses)}
            found["minutes"] = statistics.median(minutes)
            rows[name] |= {f"{label}, {what}": number for what, number in found.items()}
    print(record.table(rows))
    if path:
        record.save(path, {"part": "recipe", "rows": rows})


def limited(changes: dict[str, Any], seconds: float | None) -> dict[str, Any]:
    """The changes, with so much time in place of epochs, where it is limited."""
    if seconds is None:
        return changes
    others = {key: value for key, value in changes.items() if key != "num_epochs"}
    return {**others, "max_minutes": seconds / 60}


def outcome(text: Path, changes: dict[str, Any]) -> tuple[float, float]:
    """The lowest validation loss of a run, in nats a token, and its minutes from start to end."""
    with TemporaryDirectory() as folder:
        options = {"data": text, "output_dir": folder, **COMMON, **changes}
        command = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
        start = time.monotonic()
        done = subprocess.run([sys.executable, str(PROJECT / "train.py"), *command], check=False)
        minutes = (time.monotonic() - start) / 60
        if done.returncode:
            raise ConfigError(f"train.py ended with {done.returncode} ({changes}): see above")
        evaluations = load(Path(folder) / FINAL_NAME)["history"]["evaluations"]
    return min(evaluation["loss"] for evaluation in evaluations), minutes
