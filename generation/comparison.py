"""Ways of sampling side by side: their texts, and numbers that tell them from human text."""

import shutil
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from generation.generator import TextGenerator
from generation.row import Row, printable
from generation.scoring import log_probabilities
from generation.settings import SAMPLE, Sampling, Settings
from generation.textstats import distinct_share, longest_copies
from system.files import as_path, write_durably
from tokenizer import END_OF_TEXT_ID

NUM_OPENINGS = 8  # that every setting continues, greedy too
OPENING_TOKENS = 8
SEARCHED_TOKENS = 1_000_000  # at the start of the training text, for copied passages
HUMAN = "held-out text"
NEAREST = f"nearest to the {HUMAN}"
# Settings of `TextGenerator.generate` whose texts are shown side by side.
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.5": {"temperature": 0.5},
    str(Sampling(**SAMPLE)): SAMPLE,
    "temperature 1.0": {"temperature": 1.0},
    "temperature 1.5": {"temperature": 1.5},
    "top-k 10": {"top_k": 10},
    "top-k 50": {"top_k": 50},
    "top-k 100": {"top_k": 100},
    "top-p 0.9": {"top_p": 0.9},
}
COLUMNS = {  # of the table: its heading, the format of a number, what the number is
    "tokens_per_second": ("tok/s", ",.0f", "tokens written a second, all texts at once"),
    "log_probability": ("log-prob", ".2f", "how likely the model finds a token, in nats"),
    "distinct_2": ("distinct-2", ".2f", "share of different pairs among neighbouring tokens"),
    "repeated_4": ("repeated-4", ".2f", "share of runs of four tokens that were there before"),
    "longest_copy": ("copied", ".1f", "tokens of the longest passage that the training text has"),
}
CELL = 12  # characters of a number in the table
COMPARED = list(COLUMNS)[1:]  # what is measured of each text
Passage = tuple[list[int], list[int]]  # ids: an opening, and what follows it


class Reference(NamedTuple):
    """Human text to compare with, as token ids: what the model has read, and what it has not."""

    train_ids: np.ndarray
    val_ids: np.ndarray


@dataclass(frozen=True)
class Comparison:
    """A text of each setting, and the numbers of its continuations of the same openings.

    `values` has for each setting, and for human text where there is some, an array (openings,
    COMPARED).
    """

    texts: dict[str, str]
    values: dict[str, np.ndarray]
    speeds: dict[str, float]

    @property
    def numbers(self) -> dict[str, dict[str, float]]:
        """Of each setting and of human text the mean of its texts; NaN where there is none."""
        return {
            name: dict(zip(COLUMNS, [self.speeds.get(name, np.nan), *values.mean(0)], strict=True))
            for name, values in self.values.items()
        }

    @property
    def nearest(self) -> list[str]:
        """The settings nearest to human text, first the nearest, then those as near as chance.

        As near is one whose distance exceeds the smallest by less than two standard errors, which
        leaving out one opening after the other tells (the jackknife).
        """
        num_openings = len(self.values.get(HUMAN, ()))
        if num_openings < 2:
            return []
        every = np.arange(num_openings)
        distances = self.distances(every)
        first = distances.argmin()
        partial = np.stack([self.distances(every[every != left_out]) for left_out in every])
        excess = partial - partial[:, [first]]
        errors = np.sqrt((num_openings - 1) * excess.var(0))
        is_near = distances - distances[first] <= 2 * errors
        order = [number for number in distances.argsort(kind="stable") if is_near[number]]
        return [list(self.texts)[number] for number in order]

    def gaps(self, openings: np.ndarray) -> np.ndarray:
        """From each setting to human text in each of COMPARED; the farthest setting has 1."""
        means = {name: values[openings].mean(0) for name, values in self.values.items()}
        gaps = np.abs(np.stack([means[name] - means[HUMAN] for name in self.texts]))
        return gaps / np.where(gaps.max(0) > 0, gaps.max(0), 1)

    def distances(self, openings: np.ndarray) -> np.ndarray:
        """Of each setting to human text, mean over the statistics."""
        return self.gaps(openings).mean(1)

    def table(self, width: int) -> str:
        """The numbers as aligned text, human text last, and what they are."""
        margin = max(map(len, self.values)) + 2
        rows = {"": "".join(f"{heading:>{CELL}}" for heading, _, _ in COLUMNS.values())}
        for name, numbers in self.numbers.items():
            cells = [format(numbers[column], form) for column, (_, form, _) in COLUMNS.items()]
            rows[name] = "".join(f"{cell.replace('nan', '-'):>{CELL}}" for cell in cells)
        step = CELL * max(1, (width - margin) // CELL)
        blocks = [
            "\n".join(f"{name:<{margin}}{row[start : start + step]}" for name, row in rows.items())
            for start in range(0, CELL * len(COLUMNS), step)
        ]
        form = {"width": max(2 * CELL, width), "subsequent_indent": " " * CELL}
        legend = "\n".join(textwrap.fill(line, **form) for line in self.legend())
        return "\n\n".join([*blocks, legend])

    def legend(self) -> list[str]:
        """What the table shows, a line for each column, and which setting is nearest."""
        lines = [f"{heading:<{CELL}}{meaning}" for heading, _, meaning in COLUMNS.values()]
        lines.append(f"Numbers are means over continuations of the same {NUM_OPENINGS} openings.")
        lines.append(f"Samples in training and generate.py use {Sampling(**SAMPLE)}.")
        if self.nearest:
            lines.append(f"{NEAREST}: {', '.join(self.nearest)}")
        if len(self.nearest) > 1:
            lines.append("They differ by chance alone, so none is recommended.")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """For JSON, None for what is not finite; recommended is what is nearest beyond chance."""
        numbers = {
            name: {key: value if np.isfinite(value) else None for key, value in values.items()}
            for name, values in self.numbers.items()
        }
        return {
            "texts": self.texts,
            "human": numbers.pop(HUMAN, None),
            "numbers": numbers,
            "nearest": self.nearest,
            "recommended": self.nearest[0] if len(self.nearest) == 1 else None,
        }

    def __str__(self) -> str:
        width = shutil.get_terminal_size((100, 24)).columns
        return f"{side_by_side(self.texts, width=width)}\n\n{self.table(width)}"


def compare_settings(
    generator: TextGenerator,
    prompt: str,
    *,
    max_new_tokens: int,
    seed: int,
    reference: Reference | None = None,
) -> Comparison:
    """Texts and numbers of all STRATEGIES; those of human text with a reference to take it from.

    They continue the prompt and the same openings in one batch. The openings are those of
    passages of the held-out text, else what the model makes of the prompt.
    """
    if reference is None:
        settings = Settings(max_new_tokens=OPENING_TOKENS, num_samples=NUM_OPENINGS, seed=seed)
        rows = generator.write(generator.rows([prompt], settings), settings)
        openings = [row.prompt_ids + row.ids for row in rows]
        passages = {}
    else:
        human = human_passages(reference.val_ids, max_new_tokens)
        openings, passages = [opening for opening, _ in human], {HUMAN: human}
    texts, speeds, written = {}, {}, {}
    write_openings(generator, prompt, openings, Settings(max_new_tokens=3))  # the device warms up
    for name, strategy in STRATEGIES.items():
        settings = Settings(max_new_tokens=max_new_tokens, seed=seed, **strategy)
        start = time.perf_counter()
        first, *rows = write_openings(generator, prompt, openings, settings)
        seconds = time.perf_counter() - start
        speeds[name] = sum(len(row.ids) for row in [first, *rows]) / seconds
        texts[name] = first.prompt + first.text
        written[name] = [(row.prompt_ids, row.ids) for row in rows]
    train_ids = None if reference is None else reference.train_ids[:SEARCHED_TOKENS]
    return Comparison(texts, measure(generator, written | passages, train_ids), speeds)


def write_openings(
    generator: TextGenerator, prompt: str, openings: Sequence[list[int]], settings: Settings
) -> list[Row]:
    """The rows that continue the prompt and each opening, with the seeds seed, seed + 1, ..."""
    rows = generator.rows([prompt], replace(settings, num_samples=1 + len(openings)))
    for row, opening in zip(rows[1:], openings, strict=True):
        row.prompt_ids = opening
    return generator.write(rows, settings)


def measure(
    generator: TextGenerator, passages: dict[str, list[Passage]], train_ids: np.ndarray | None
) -> dict[str, np.ndarray]:
    """What COMPARED names of each passage, by the name of its group; NaN where there is nothing."""
    bodies = [body for group in passages.values() for _, body in group]
    found = [np.nan] * len(bodies) if train_ids is None else longest_copies(bodies, train_ids)
    copied, result = iter(found), {}
    for name, group in passages.items():
        rows = []
        for start, body in group:
            logs = log_probabilities(generator.model, start + body)[len(start) - 1 :]
            distinct = distinct_share(body, 2), distinct_share(body, 4)
            rows.append([logs.mean().item(), distinct[0], 1 - distinct[1], next(copied)])
        result[name] = np.array(rows)
    return result


def human_passages(ids: np.ndarray, num_tokens: int) -> list[Passage]:
    """Passages spread over the ids: a start token and OPENING_TOKENS, and what follows, to its end.

    They begin where documents do, or with fewer documents than openings anywhere.
    """
    length = OPENING_TOKENS + num_tokens
    starts = np.flatnonzero(np.r_[True, ids[:-1] == END_OF_TEXT_ID])
    starts = starts[starts + length <= len(ids)]
    if len(starts) < NUM_OPENINGS:
        starts = np.arange(max(1, len(ids) - length + 1))
    starts = starts[np.linspace(0, len(starts) - 1, min(NUM_OPENINGS, len(starts))).astype(int)]
    passages = []
    for start in starts:
        opening, body = np.split(ids[start : start + length], [OPENING_TOKENS])
        ends = np.flatnonzero(body == END_OF_TEXT_ID)
        body = body[: ends[0] + 1] if len(ends) else body
        passages.append(([END_OF_TEXT_ID, *opening.tolist()], body.tolist()))
    return passages


def side_by_side(texts: dict[str, str], *, width: int) -> str:
    """A table of names and wrapped texts."""
    margin = max(map(len, texts)) + 2
    rows = []
    for name, text in texts.items():
        lines = textwrap.wrap(printable(text), max(20, width - margin)) or [""]
        rows.append(f"{name:<{margin}}" + ("\n" + " " * margin).join(lines))
    return "\n\n".join(rows)


def plot_comparison(path: str | Path, comparison: Comparison) -> None:
    """Draws the statistics of each setting into a PNG: the darker, the less like human text."""
    from matplotlib.figure import Figure  # not pyplot: no display, no global state

    figure = Figure(figsize=(8, 6), layout="constrained")
    draw_table(figure.subplots(), comparison)
    write_durably(as_path(path), lambda file: figure.savefig(file, format="png", dpi=120))


def draw_table(axes: Any, comparison: Comparison) -> None:
    """A row for each setting, human text first, then the nearest; a column for each of COMPARED."""
    names, gaps = list(comparison.texts), np.zeros((len(comparison.texts), len(COMPARED)))
    what = f"means of {NUM_OPENINGS} continuations"
    if human := len(comparison.values.get(HUMAN, ())):
        gaps = comparison.gaps(np.arange(human))
        order = gaps.mean(1).argsort(kind="stable")
        names = [HUMAN, *(names[number] for number in order)]
        gaps = np.vstack([np.zeros(len(COMPARED)), gaps[order]])
        what += f"; the darker, the less like the {HUMAN}"
    axes.imshow(np.nan_to_num(gaps), cmap="Blues", vmin=0, vmax=1.2, aspect="auto")
    for row, name in enumerate(names):
        for number, column in enumerate(COMPARED):
            text = format(comparison.numbers[name][column], COLUMNS[column][1])
            color = "white" if gaps[row, number] > 0.7 else "black"
            cell = {"ha": "center", "va": "center", "color": color, "fontsize": 14}
            axes.text(number, row, text.replace("nan", "-"), **cell)
    bold = {HUMAN, *comparison.nearest}
    for label in axes.set_yticks(range(len(names)), names, fontsize=13, minor=False):
        label.label1.set_fontweight("bold" if label.label1.get_text() in bold else "normal")
    described = [COLUMNS[column][::2] for column in COMPARED]
    headings = ["\n".join([name, *textwrap.wrap(what_it_is, 24)]) for name, what_it_is in described]
    axes.set_xticks(range(len(COMPARED)), headings, fontsize=9)
    axes.tick_params(top=True, labeltop=True, bottom=False, labelbottom=False, length=0)
    bold_ones = f"\nbold: {NEAREST}, as far as {NUM_OPENINGS} texts tell" if human else ""
    axes.set_title(f"Ways of sampling: {what}{bold_ones}", fontsize=11, loc="right")
