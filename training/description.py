"""What a run consists of and what is amiss with it, line by line."""

import math
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import torch

from corpus.report import Facts, in_words, warnings
from generation.settings import SAMPLE, Sampling
from reports.history import in_time
from system.machine import name_of
from tokenizer import GPT2Tokenizer
from training.capacity import Learning, num_parameters
from training.estimate import peak_of
from training.learner import dropout_seeds
from training.run import Run
from training.samples import SAMPLING

Rows = list[tuple[str, str]]  # a name, and one or more lines about it
MAX_LINES = 12  # at the start of a run, for which notes are left out; `python data.py` shows all


def rows_about(run: Run, facts: Facts, *, measured: float = 0) -> Rows:
    """The machine, the text with its facts, the model and the training, and notes on them.

    `measured` are seconds to take for how long a step is.
    """
    config, batches = run.config, run.corpus.batches
    num_rows, machine = run.corpus.vocabulary.size, run.learner.machine
    peak = peak_of(config, num_rows, machine, run.team.size, resident=run.resident_bytes)
    known = facts and {**facts, "parameters": num_parameters(config, num_rows)}
    limit, last_step = run.progress.seconds, run.progress.last_step
    steps = "steps" if math.isinf(last_step) else f"{last_step:,} steps"
    steps += "" if math.isinf(limit) else f" in {limit / 60:g} minutes at most"
    inputs, targets = run.batch(0)
    seeds = dropout_seeds(config["seed"], 0, len(inputs))
    seconds = run.learner.seconds_per_update(inputs, targets, seeds, measured=measured)
    training = (
        f"{steps}, {batches.num_per_epoch:,} an epoch, of {batches.batch_size} "
        f"windows of {config['seq_len']} tokens\n"
        f"about {in_time(seconds)} a step here, {in_time(min(limit, seconds * last_step))} in all, "
        f"and {peak / 1e9:.1f} GB of memory"
    )
    return [
        ("device", f"{run.team}{machine}"),
        ("text", "\n".join([str(run.corpus), *in_words(facts)])),
        ("model", sizes(config)),
        ("training", training),
        ("samples", f"{Sampling(**SAMPLE)}, seed {SAMPLING['seed']}"),
        *(("note", text) for text in (known and warnings(known, config))),
    ]


def environment(run: Run) -> dict[str, Any]:
    """When, where and with what the run was started, as plain values."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "processor": name_of(run.learner.machine.device),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "processes": run.team.size,
        **run.learner.machine.ways,
    }


def title(run: Run) -> str:
    """Model, text and machine in two lines."""
    total = num_parameters(run.config, GPT2Tokenizer().encoding.n_vocab)
    machine = run.learner.machine
    return (
        f"{total / 1e6:.1f} million parameters, trained on {run.corpus.path.name}\n"
        f"{name_of(machine.device)}, {str(machine.dtype).removeprefix('torch.')}"
    )


def sizes(config: dict[str, Any]) -> str:
    """Parameters of the whole model, and what they take."""
    num_tokens, C = GPT2Tokenizer().encoding.n_vocab, config["embedding_dim"]
    total, table = num_parameters(config, num_tokens), num_tokens * C
    positions = config["seq_len"] * C
    learns = Learning.of(config, num_tokens)
    trained = 4 * (total + learns.num_weights) + learns.moment_bytes
    is_part = config["adapter"] or config["freeze"]
    part = f", and what learns, {learns.num_weights:,}" if is_part else ""
    return (
        f"{total:,} parameters (embedding and head {table:,}, positions {positions:,}, blocks "
        f"{total - table - positions:,}{part}): {4e-6 * total:,.0f} MB, "
        f"{1e-6 * trained:,.0f} MB with gradients and moments"
    )


def as_text(rows: Sequence[tuple[str, str]], *, max_lines: int = MAX_LINES) -> str:
    """A line for each line of the rows, its name before the first; as many notes as there is room.

    The first one always.
    """
    notes = [row for row in rows if row[0] == "note"]
    num_lines = sum(value.count("\n") + 1 for name, value in rows if name != "note")
    shown = [row for row in rows if row not in notes[max(1, max_lines - num_lines) :]]
    return "\n".join(f"{name:<10}{value}".replace("\n", "\n" + " " * 10) for name, value in shown)
