"""Who reaches what in so many minutes on the same text: ours, nanoGPT, transformers' Trainer.

The losses are of the whole validation part, each token of which is predicted once, in windows as
long as the model's context. Peers get all of the time for updates, their start is not counted.
"""

import math
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import record
from benchmarks.turns import Rows
from corpus.corpus import Corpus, read_corpus
from corpus.text import PROJECT
from storage.checkpoint import FINAL_NAME, load
from system.errors import ConfigError
from system.process import log
from tokenizer import GPT2Tokenizer
from training.learner import evaluation_batches
from training.settings import DEFAULTS

NANOGPT = {  # "I only have a macbook", of its README; its vocabulary is GPT-2's here
    **{"device": "cpu", "compile": False, "eval_iters": 1, "block_size": 64, "batch_size": 12},
    **{"n_layer": 4, "n_head": 4, "n_embd": 128, "dropout": 0.0},
}
WHOLE = 10**9  # tokens to validate on: all that there are
PACED_STEPS = 10  # that tell how many there are time for


def measure_minutes(given: dict[str, Any], texts: Sequence[Path], path: Path | None) -> None:
    """Held-out loss after --max-seconds of training, by default 300: ours, --nanogpt, Trainer."""
    seconds, checkout = given.pop("max_seconds", 300.0), given.pop("nanogpt", None)
    problems = [f"minutes takes no --{name.replace('_', '-')}" for name in given]
    problems += [] if seconds > 0 else [f"max_seconds={seconds} is not above 0"]
    if checkout and not (checkout / "model.py").exists():
        problems.append(f"nanogpt={checkout} has no model.py: name a checkout's folder")
    if problems:
        raise ConfigError("command line: " + "; ".join(problems))
    rows: Rows = {}
    for text, label in record.labels(texts or [PROJECT / "example.txt"]).items():
        config = {**DEFAULTS, "data": str(text), "eval_tokens": WHOLE}
        corpus = read_corpus(config, GPT2Tokenizer(), share_rows=True)
        contestants = {"ours": partial(ours, text=text), "transformers' Trainer": trainer}
        contestants |= {"nanoGPT": partial(nanogpt, checkout=checkout)} if checkout else {}
        for name, train in contestants.items():
            loss, used = train(corpus, seconds)
            bits = loss * (len(corpus.val_ids) - 1) / math.log(2) / corpus.num_val_bytes
            found = {"seconds": used, "nats a token": loss, "bits a byte": bits}
            row = rows.setdefault(name, {})
            row |= {f"{label}, {what}": number for what, number in found.items()}
            log(f"{name}: {row}")
    print(record.table(rows))
    if path:
        record.save(path, {"part": "minutes", "seconds": seconds, "rows": rows})


def ours(corpus: Corpus, seconds: float, *, text: Path) -> tuple[float, float]:
    """Of `python train.py` with so much time for all of it, start and reading included.

    Here and below: the held-out loss, and the seconds that were used.
    """
    with TemporaryDirectory() as folder:
        options = {"data": text, "output_dir": folder, "max_minutes": seconds / 60}
        options |= {"eval_tokens": WHOLE, "sample_tokens": 0, "patience": 0}
        command = [str(part) for key, value in options.items() for part in (f"--{key}", value)]
        start = time.perf_counter()
        run([sys.executable, str(PROJECT / "train.py"), *command])
        used = time.perf_counter() - start
        return load(Path(folder) / FINAL_NAME)["history"]["evaluations"][-1]["loss"], used


def nanogpt(corpus: Corpus, seconds: float, *, checkout: Path) -> tuple[float, float]:
    """Of a nanoGPT checkout with its recipe for processors: the updates that there is time for."""
    with TemporaryDirectory() as folder:
        home = Path(folder, "nanoGPT")
        shutil.copytree(checkout, home, ignore=shutil.ignore_patterns(".git"))
        (home / "data" / "text").mkdir()
        for name, ids in (("train", corpus.train_ids[:]), ("val", corpus.val_ids)):
            np.asarray(ids).astype(np.uint16).tofile(home / "data" / "text" / f"{name}.bin")

        def train(num_steps: int) -> list[float]:
            """Seconds of each update but the first and the last, beside which it evaluates."""
            steps = dict.fromkeys(("max_iters", "lr_decay_iters", "eval_interval"), num_steps)
            options = {"dataset": "text", "log_interval": 1, **NANOGPT, **steps}
            words = [f"--{key}={value}" for key, value in options.items()]
            command = [sys.executable, "train.py", "config/train_shakespeare_char.py", *words]
            times = re.findall(r"iter \d+: .*time ([\d.]+)ms", run(command, cwd=home))
            return [float(milliseconds) / 1e3 for milliseconds in times[1:-1]]

        used = sum(train(round(seconds / np.median(train(PACED_STEPS)))))
        path = next(home.glob("out*/ckpt.pt"))
        found = torch.load(path, map_location="cpu", weights_only=True)
        theirs = runpy.run_path(str(home / "model.py"))
    model = theirs["GPT"](theirs["GPTConfig"](**found["model_args"]))
    model.load_state_dict(found["model"])
    val_ids, seq_len = corpus.val_ids, model.config.block_size
    return mean_loss(lambda x, y: model(x, y)[0], model, val_ids, seq_len), used


def trainer(corpus: Corpus, seconds: float) -> tuple[float, float]:
    """Of transformers' Trainer with its defaults, on a GPT-2 of our default shapes."""
    from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

    seq_len, width = DEFAULTS["seq_len"], DEFAULTS["embedding_dim"]
    sizes = {"n_positions": seq_len, "n_embd": width, "n_layer": 4, "n_head": 8}
    ids = torch.as_tensor(np.asarray(corpus.train_ids[:]).astype(np.int64))
    rows = ids[: len(ids) // seq_len * seq_len].view(-1, seq_len)
    rows = [{"input_ids": row, "labels": row} for row in rows]

    def train(num_steps: int) -> tuple[Any, float]:
        torch.manual_seed(0)
        model = GPT2LMHeadModel(GPT2Config(**sizes))
        with TemporaryDirectory() as folder:
            how = {"save_strategy": "no", "report_to": "none", "disable_tqdm": True}
            arguments = TrainingArguments(folder, max_steps=num_steps, use_cpu=True, **how)
            teacher = Trainer(model, arguments, train_dataset=rows)
            start = time.perf_counter()
            teacher.train()
        return model, time.perf_counter() - start

    few, more = (train(num_steps)[1] for num_steps in (2, 2 + PACED_STEPS))
    each = max(more - few, more / 100) / PACED_STEPS  # a busy machine may have the few take longer
    model, used = train(max(1, round(seconds / each)))
    return mean_loss(lambda x, y: model(x).logits, model, corpus.val_ids, seq_len), used


def mean_loss(
    logits: Callable[[Tensor, Tensor], Tensor], model: torch.nn.Module, ids: Tensor, seq_len: int
) -> float:
    """Nats a token of ids (N,): all but the first are predicted once."""
    model.eval()
    total = 0.0
    with torch.inference_mode():
        for x, y in evaluation_batches(ids, seq_len, 8):
            scores = logits(x, y).flatten(0, 1)
            total += F.cross_entropy(scores, y.flatten(), reduction="sum").item()
    return total / (len(ids) - 1)


def run(command: list[str], cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, check=False, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"{command[1]} ended with {done.returncode}: {done.stderr[-1500:]}")
    return done.stdout
