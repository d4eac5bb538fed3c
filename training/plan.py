"""How large a model suits so many minutes, on this machine, for this text: measured, then told."""

import math
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from corpus.corpus import Corpus
from storage import checkpoint
from system.machine import Machine
from training.capacity import num_parameters
from training.learner import Learner, dropout_seeds
from training.wanted import Wanted

HEAD_SIZE, NUM_WORSE = 32, 3  # sizes in a row that are worse than the best: the next ones are, too
SIZES = (  # width, depth
    *((32, 1), (64, 1), (64, 2), (96, 2), (128, 2), (128, 3), (192, 3), (256, 4), (320, 5)),
    *((384, 6), (512, 8), (640, 10), (768, 12), (1024, 16)),
)
MOST_A_TOKEN = 40  # parameters for each token of the text: what more bring, nobody has measured
MEASURING = 20  # seconds after which no larger size is tried
BATCH_TOKENS, MOST_TOKENS = 1024, 8 * 10**6  # beyond so many, batches are larger
TRAINING = 0.85  # of the time: the rest is the start, evaluations and writes
# What parameters and tokens take off the loss, and how fast tokens that come again lose worth: the
# forms of Hoffmann et al. 2022 and Muennighoff et al. 2023, fitted to small runs (docs/recipe.md).
A, ALPHA, B, BETA, PASSES = 11.3, 0.34, 1117, 0.5, 2
WORTHLESS = 5 * PASSES  # so often, and tokens have no worth left


@dataclass(frozen=True)
class Size:
    """A model, and what it would be shown in the time."""

    width: int
    depth: int
    num_parameters: int
    num_tokens: float
    num_passes: float

    @property
    def excess(self) -> float:
        """Nats a token that more parameters and tokens could save, by the rule."""
        again = max(0.0, self.num_passes - 1)
        worth = min(1.0, self.num_passes) + PASSES * (1 - math.exp(-again / PASSES))
        num_different = self.num_tokens / self.num_passes
        return A / self.num_parameters**ALPHA + B / (num_different * worth) ** BETA

    def __str__(self) -> str:
        return (
            f"{self.width} x {self.depth}: {self.num_parameters / 1e6:.2f} M parameters, "
            f"{self.num_tokens / 1e6:.2f} M tokens, {self.num_passes:.1f} times the text"
        )


def planned(config: dict[str, Any], corpus: Corpus, machine: Machine, wanted: Wanted) -> str:
    """The proposal and its reasons; its last line is the command, which keeps other options.

    A context that somebody chose stays.
    """
    minutes, half = config["max_minutes"], corpus.facts["quantiles"][2]
    given = {"median_document": half, "num_tokens": len(corpus.train_ids)}
    context = context_for(config, **given, chosen=wanted.chosen)
    why = ", as chosen" if "seq_len" in wanted.chosen else f", for documents of {half:,} tokens"
    config = {**config, **context}
    sizes = list(measured(config, corpus, machine))
    best = min(sizes, key=lambda size: size.excess)
    kept = {key: context[key] for key in context if key in wanted.chosen}
    decided = changes(best, context) | kept
    lines = [
        f"plan      {minutes:g} minutes, of which updates get {TRAINING:.0%}; width x depth:",
        *(
            f"          {size}, {size.excess - best.excess:+.3f} nats"
            for size in around(best, sizes)
        ),
        f"          speeds of {len(sizes)} sizes were measured here, nats follow from the rule",
        f"          {A:g} / parameters^{ALPHA:g} + {B:g} / tokens^{BETA:g}, for which the same",
        f"          tokens again are worth less, after {WORTHLESS} times nothing: {advice(best)}",
        f"          context {config['seq_len']}{why}",
        f"next      {wanted.command({'max_minutes': f'{minutes:g}', **decided})}",
    ]
    return "\n".join(lines)


def context_for(
    config: dict[str, Any], *, median_document: int, num_tokens: int, chosen: Collection[str]
) -> dict[str, int]:
    """Windows that half of the documents fit into, as far as time and text reach."""
    most = 256 if config["max_minutes"] >= 60 else 128
    seq_len = min(most, max(64, 2 ** (median_document - 1).bit_length()))
    while 2 * seq_len > num_tokens and seq_len > 1:
        seq_len //= 2
    seq_len = config["seq_len"] if "seq_len" in chosen else seq_len
    context = {"seq_len": seq_len, "stride": max(1, seq_len // 2)}
    context["batch_size"] = max(1, BATCH_TOKENS // seq_len)
    return {key: config[key] if key in chosen else value for key, value in context.items()}


def measured(config: dict[str, Any], corpus: Corpus, machine: Machine) -> Iterator[Size]:
    """What each size would be shown in the time, from small to large, as long as it may be best."""
    excesses: list[float] = []
    num_rows, start = corpus.vocabulary.size, time.monotonic()
    for width, depth in SIZES:
        changed = {**config, **shape(width, depth)}
        is_beyond = num_parameters(changed, num_rows) > MOST_A_TOKEN * len(corpus.train_ids)
        if excesses and (is_beyond or time.monotonic() - start > MEASURING):
            return
        speed = 1 / seconds_a_token(changed, num_rows, machine)
        num_tokens = 60 * config["max_minutes"] * TRAINING * speed
        num_passes = num_tokens / len(corpus.train_ids)
        size = Size(width, depth, num_parameters(changed, num_rows), num_tokens, num_passes)
        excesses.append(size.excess)
        yield size
        if len(excesses) - excesses.index(min(excesses)) > NUM_WORSE:
            return


def seconds_a_token(config: dict[str, Any], num_rows: int, machine: Machine) -> float:
    """Of the fastest of a few updates of such a model, by tokens without sense."""
    learner = Learner(checkpoint.build_model(config, num_rows).to(machine.device), machine, config)
    size = config["batch_size"] * config["grad_accum_steps"], config["seq_len"]
    ids = torch.arange(math.prod(size), device=machine.device).view(size) % num_rows
    times = []
    for _ in range(4):
        start = time.perf_counter()
        learner.update(ids, ids, learning_rate=1e-4, seeds=dropout_seeds(0, 0, len(ids)))
        times.append(time.perf_counter() - start)
    return min(times) / ids.numel()


def shape(width: int, depth: int) -> dict[str, int]:
    sizes = {"embedding_dim": width, "num_layers": depth, "num_heads": width // HEAD_SIZE}
    return {**sizes, "ffn_hidden_dim": 4 * width}


def around(best: Size, sizes: list[Size]) -> list[Size]:
    """The best size between its neighbours."""
    place = sizes.index(best)
    return sizes[max(0, place - 1) : place + 2]


def advice(best: Size) -> str:
    """What the passes over the text say of it."""
    if best.num_passes > WORTHLESS:
        return "more text would help"
    return "it still pays here" if best.num_passes > 1 else "here there is text enough"


def changes(best: Size, context: dict[str, int]) -> dict[str, int]:
    """The config's keys that the plan decides; very many updates become fewer, larger ones."""
    doublings = max(0, math.ceil(math.log2(best.num_tokens / MOST_TOKENS)))
    batch_size = context["batch_size"] * 2**doublings
    return {**shape(best.width, best.depth), **context, "batch_size": batch_size}
