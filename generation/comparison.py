"""Ways of sampling side by side: their texts, and numbers that tell them from human text."""

import textwrap
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from generation.generator import TextGenerator
from generation.row import printable
from generation.scoring import log_probabilities
from generation.settings import Settings
from generation.textstats import distinct_share, longest_copy, repeated_share
from system.files import write_durably
from tokenizer import END_OF_TEXT_ID, GPT2Tokenizer

COMPARISON_NAME = "sampling_comparison.png"
NUM_SAMPLES = 8  # texts of each setting that the numbers are taken of
SEARCHED_TOKENS = 1_000_000  # at the start of the training text, for copied passages
HUMAN = "held-out text"
# Settings of `TextGenerator.generate` whose texts are shown side by side.
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.5": {"temperature": 0.5},
    "temperature 1.0": {"temperature": 1.0},
    "temperature 1.5": {"temperature": 1.5},
    "top-k 10": {"top_k": 10},
    "top-k 50": {"top_k": 50},
    "top-k 100": {"top_k": 100},
    "top-p 0.9": {"top_p": 0.9},
}


@dataclass(frozen=True)
class Reference:
    """Human text to compare with, as token ids: what the model has read, and what it has not."""

    train_ids: np.ndarray
    val_ids: np.ndarray


@dataclass(frozen=True)
class Numbers:
    """Statistics of some texts; None where there is nothing to measure them with."""

    log_probability: float  # mean of a token, in nats, by the model as trained
    distinct_2: float  # share of the pairs of neighbours that differ from all others
    repeated_4: float  # share of the runs of four tokens that their text already had
    longest_copy: int | None  # tokens of the longest passage that is in the training text
    tokens_per_second: float | None = None


COLUMNS: dict[str, tuple[str, str]] = {  # field -> heading, format
    "tokens_per_second": ("tok/s", ",.0f"),
    "log_probability": ("log-prob", ".2f"),
    "distinct_2": ("distinct-2", ".2f"),
    "repeated_4": ("repeated-4", ".2f"),
    "longest_copy": ("copied", "d"),
}
COMPARED = ("log_probability", "distinct_2", "repeated_4", "longest_copy")


@dataclass(frozen=True)
class Comparison:
    """The first text of each setting, the numbers of all its texts, and those of human text."""

    texts: dict[str, str]
    numbers: dict[str, Numbers]
    human: Numbers | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def recommended(self) -> str | None:
        """The setting nearest to human text, None where there is none to compare with."""
        distances = self.distances()
        return min(distances, key=distances.get) if distances else None

    def distances(self) -> dict[str, float]:
        """Mean distance to human text over the statistics, the farthest setting of each being 1."""
        if self.human is None:
            return {}
        columns = []
        for name in COMPARED:
            target = getattr(self.human, name)
            gaps = [abs(getattr(numbers, name) - target) for numbers in self.numbers.values()]
            columns.append([gap / (max(gaps) or 1) for gap in gaps])
        return dict(zip(self.numbers, np.mean(columns, axis=0).tolist(), strict=True))

    def table(self) -> str:
        """The numbers as aligned text, human text last, with the recommendation."""
        rows = self.numbers | ({HUMAN: self.human} if self.human else {})
        margin = max(map(len, rows)) + 2
        lines = [" " * margin + "".join(f"{heading:>12}" for heading, _ in COLUMNS.values())]
        for name, numbers in rows.items():
            values = [(getattr(numbers, column), form) for column, (_, form) in COLUMNS.items()]
            cells = ["-" if value is None else format(value, form) for value, form in values]
            lines.append(f"{name:<{margin}}" + "".join(f"{cell:>12}" for cell in cells))
        if self.recommended:
            lines.append(f"nearest to the held-out text: {self.recommended}")
        return "\n".join([*lines, *self.notes])

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "recommended": self.recommended}

    def __str__(self) -> str:
        return f"{side_by_side(self.texts)}\n\n{self.table()}"


def compare_settings(
    writer: TextGenerator,
    prompt: str,
    *,
    max_new_tokens: int,
    seed: int,
    reference: Reference | None = None,
    strategies: dict[str, dict[str, Any]] = STRATEGIES,
    notes: Sequence[str] = (),
) -> Comparison:
    """Texts and numbers of each strategy; those of human text with a reference to take it from."""
    train_ids = None if reference is None else reference.train_ids[:SEARCHED_TOKENS]
    texts, numbers = {}, {}
    for name, settings in strategies.items():
        start = time.perf_counter()
        num_samples = 1 if settings.get("temperature") == 0 else NUM_SAMPLES
        wanted = {"max_new_tokens": max_new_tokens, "num_samples": num_samples, "seed": seed}
        rows = writer.write([prompt], Settings(**wanted, **settings))
        seconds = time.perf_counter() - start
        texts[name] = rows[0].prompt + rows[0].text
        speed = sum(len(row.ids) for row in rows) / seconds
        pairs = [(row.prompt_ids, row.ids) for row in rows]
        numbers[name] = measure(writer.model, pairs, train_ids, tokens_per_second=speed)
    human = None
    if reference is not None:
        passages = human_passages(reference.val_ids, max_new_tokens)
        human = measure(writer.model, passages, train_ids)
    return Comparison(texts, numbers, human, list(notes))


def measure(
    model: Any,
    texts: Sequence[tuple[list[int], list[int]]],
    train_ids: np.ndarray | None,
    *,
    tokens_per_second: float | None = None,
) -> Numbers:
    """The numbers of texts given as (what went before, the text itself), both ids."""
    bodies = [body for _, body in texts]
    logs = [log_probabilities(model, start + body)[len(start) - 1 :] for start, body in texts]
    return Numbers(
        log_probability=torch.cat(logs).mean().item(),
        distinct_2=distinct_share(bodies, 2),
        repeated_4=repeated_share(bodies, 4),
        longest_copy=None if train_ids is None else longest_copy(bodies, train_ids),
        tokens_per_second=tokens_per_second,
    )


def human_passages(ids: np.ndarray, num_tokens: int) -> list[tuple[list[int], list[int]]]:
    """Beginnings of documents of that length, spread over the ids, each with its start token."""
    starts = np.flatnonzero(np.r_[True, ids[:-1] == END_OF_TEXT_ID])
    starts = starts[np.linspace(0, len(starts) - 1, min(NUM_SAMPLES, len(starts))).astype(int)]
    return [([END_OF_TEXT_ID], ids[s : s + num_tokens].tolist()) for s in starts]


def find_reference(
    tokenizer: GPT2Tokenizer, state: dict[str, Any]
) -> tuple[Reference | None, list[str]]:
    """The text that a checkpoint's model was trained on, found again, else a note why not."""
    from corpus.corpus import (
        read_corpus,  # brings numpy and the whole data path; only --compare needs it
    )
    from system.errors import DataError

    lacks = "no comparison with human text, nor a search for copied passages"
    try:
        corpus = read_corpus({"data": "", **state["config"]}, tokenizer, share_rows=False)
    except (DataError, KeyError, OSError) as error:
        return None, [f"{lacks}: {error}"]
    if corpus.text_sha256 != state.get("text_sha256"):
        return None, [f"{lacks}: the model was not trained on {corpus.path}"]
    return Reference(corpus.train_ids, corpus.val_ids.numpy()), []


def side_by_side(texts: dict[str, str], *, width: int = 100) -> str:
    """A table of names and wrapped texts."""
    margin = max(map(len, texts)) + 2
    rows = []
    for name, text in texts.items():
        lines = textwrap.wrap(printable(text), width - margin) or [""]
        rows.append(f"{name:<{margin}}" + ("\n" + " " * margin).join(lines))
    return "\n\n".join(rows)


def plot_comparison(path: Path, comparison: Comparison) -> None:
    """Draws each statistic of each setting as a bar, that of human text as a line, into a PNG."""
    from matplotlib.figure import Figure  # not pyplot: needs no display and keeps no global state

    names = list(comparison.numbers)
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = figure.subplots(1, len(COLUMNS), sharey=True)
    for axes, (column, (heading, _)) in zip(panels, COLUMNS.items(), strict=True):
        values = [getattr(comparison.numbers[name], column) or 0 for name in names]
        colors = ["C2" if name == comparison.recommended else "C0" for name in names]
        axes.barh(names, values, color=colors)
        target = getattr(comparison.human, column, None)
        if target is not None:
            axes.axvline(target, color="black", ls="--", label=HUMAN)
        axes.set_title(heading)
    panels[0].invert_yaxis()
    if comparison.human:
        handles, labels = panels[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right")
    write_durably(path, lambda file: figure.savefig(file, format="png", dpi=120))
