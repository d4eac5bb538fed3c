"""What a run consists of, what is amiss with it, and how long it will take, line by line."""

import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from typing import Any

import torch

from corpus.report import warnings
from generation.settings import SAMPLE, Sampling
from storage import checkpoint
from tokenizer import GPT2Tokenizer
from training.capacity import moments_of, num_parameters
from training.estimate import peak_of
from training.learner import dropout_seeds
from training.run import SAMPLING, Run

Rows = list[tuple[str, str]]  # a name, and one or more lines about it
MAX_LINES = 12  # at the start of a run, for which notes are left out; `python data.py` shows all
MOST_SECONDS = 1e9  # a run may have no limit but its time
UNITS = {"days": 86_400, "hours": 3600, "minutes": 60, "s": 1}


def rows_about(run: Run) -> Rows:
    """The machine, the text, the model and the training of a run, and notes on them."""
    config, batches = run.config, run.corpus.batches
    inputs, targets = run.batch(0)
    seeds = dropout_seeds(config["seed"], 0, len(inputs))
    seconds = run.learner.seconds_per_update(inputs, targets, seeds)
    num_rows, machine = run.corpus.vocabulary.size, run.learner.machine
    peak = peak_of(config, num_rows, machine, run.team.size)
    facts = {**run.corpus.facts, "parameters": num_parameters(config, num_rows)}
    limit, last_step = run.progress.seconds, run.progress.last_step
    num_steps = min(last_step, round(min(limit, MOST_SECONDS) / seconds))
    training = (
        f"{'about ' * (num_steps < last_step)}{num_steps:,} steps, {batches.num_per_epoch:,} an "
        f"epoch, of {batches.batch_size} windows of {config['seq_len']} tokens\n"
        f"about {in_time(seconds)} a step here, {in_time(min(limit, seconds * last_step))} in all, "
        f"and {peak / 1e9:.1f} GB of memory"
    )
    return [
        ("device", f"{run.team}{machine}"),
        ("text", str(run.corpus)),
        ("model", sizes(config)),
        ("training", training),
        ("samples", f"{Sampling(**SAMPLE)}, seed {SAMPLING['seed']}"),
        *(("note", text) for text in warnings(facts, config)),
    ]


def environment(run: Run) -> dict[str, Any]:
    """When, where and with what the run was started, as plain values."""
    return {
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "processes": run.team.size,
        **run.learner.machine.ways,
    }


def sizes(config: dict[str, Any]) -> str:
    """Parameters of the whole model, and what they take."""
    with torch.device("meta"):
        model = checkpoint.build_model(config, GPT2Tokenizer().encoding.n_vocab)
    total = sum(parameter.numel() for parameter in model.parameters())
    table = model.input_embedding.embedding.weight.numel()
    positions = model.positional_encoding.pe.numel()
    trained = 8 * total + moments_of(config, total)
    return (
        f"{total:,} parameters (embedding and head {table:,}, positions {positions:,}, blocks "
        f"{total - table - positions:,}): {4e-6 * total:,.0f} MB, "
        f"{1e-6 * trained:,.0f} MB with gradients and moments"
    )


def in_time(seconds: float) -> str:
    """In a unit that suits: in_time(90) is 1.5 minutes."""
    unit = next((unit for unit, size in UNITS.items() if seconds >= size), "s")
    return f"{seconds / UNITS[unit]:.2g} {unit}"


def as_text(rows: Sequence[tuple[str, str]], *, max_lines: int = MAX_LINES) -> str:
    """A line for each line of the rows, its name before the first; as many notes as there is room.

    The first one always.
    """
    notes = [row for row in rows if row[0] == "note"]
    num_lines = sum(value.count("\n") + 1 for name, value in rows if name != "note")
    shown = [row for row in rows if row not in notes[max(1, max_lines - num_lines) :]]
    return "\n".join(f"{name:<10}{value}".replace("\n", "\n" + " " * 10) for name, value in shown)
