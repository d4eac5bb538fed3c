"""What generate.py shows besides plain texts: JSON lines, prompts one by one, the comparison."""

import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from generation.comparison import Reference, compare_settings, plot_comparison
from generation.generator import TextGenerator
from generation.options import OPTIONS, TALK, flag
from generation.row import Row, printable
from generation.settings import RULES, Settings
from storage.run_folder import COMPARISON_NAME
from system.errors import ConfigError, DataError, SamplingError
from system.process import note
from tokenizer import GPT2Tokenizer

HINT = (
    "Type a prompt and Enter. Ctrl-C stops a text, Ctrl-D ends the program. "
    "/help shows the settings and how to change them."
)
CHANGING = "Type /top-k 40 to change a setting, /top-k off to drop it, // to begin a prompt with /"
CHANGEABLE = [name for name in RULES if TALK in OPTIONS[name].modes]
BETWEEN = "---"  # between two texts


def print_json(value: dict[str, Any]) -> None:
    """A line of JSON as every program reads it: null for a number that is not finite."""

    def strict(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: strict(inner) for key, inner in part.items()}
        return None if isinstance(part, float) and not math.isfinite(part) else part

    print(json.dumps(strict(value), allow_nan=False))


def show(
    rows: Sequence[Row], steps: Iterable[dict[int, str]], settings: Settings, *, as_json: bool
) -> None:
    """Prints what the steps write into the rows: a single text as it comes, several at the end."""
    start = time.perf_counter()
    is_streamed = len(rows) == 1 and not as_json
    print(printable(rows[0].prompt) if is_streamed else "", end="", flush=True)
    for pieces in steps:
        print(printable(pieces[0]) if is_streamed else "", end="", flush=True)
    seconds = time.perf_counter() - start
    num_tokens = sum(len(row.ids) for row in rows)
    speed = num_tokens / seconds
    if as_json:
        for row in rows:
            text = {"prompt": row.prompt, "text": row.text, "seed": row.seed}
            print_json({**text, "num_tokens": len(row.ids), "tokens_per_second": speed})
    else:
        texts = [printable(row.prompt + row.text) for row in rows]
        print("" if is_streamed else f"\n{BETWEEN}\n".join(texts))
    first, last = min(row.seed for row in rows), max(row.seed for row in rows)
    seeds = f"seed {first}" if first == last else f"seeds {first} to {last}"
    note(f"({settings}, {seeds}, {num_tokens} tokens, {speed:,.1f} tokens/s)")


def notice_long(generator: TextGenerator, prompts: Sequence[str]) -> None:
    """Says of each prompt that exceeds the context what the model reads of it."""
    seq_len = generator.model.seq_len
    for prompt in prompts:
        num_tokens = len(generator.tokenizer.encode(prompt))
        if num_tokens > seq_len:
            note(f"notice: the prompt has {num_tokens} tokens, the model reads the last {seq_len}")


# ---------------------------------------------------------------- prompts one by one


def converse(generator: TextGenerator, settings: Settings) -> None:
    """Asks for prompts and continues them until the input ends; `/name value` changes a setting."""
    if sys.stdin is None:
        raise ConfigError("no input for --interactive: start it in a terminal")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    note(HINT)
    for line in asked(input):
        if line.startswith("/") and not line.startswith("//"):
            settings = changed(settings, line)
            continue
        prompt = line[line.startswith("//") :]
        notice_long(generator, [prompt])
        rows = generator.rows([prompt], settings)
        try:
            show(rows, generator.steps(rows, settings), settings, as_json=False)
        except KeyboardInterrupt:
            note("\n(stopped)")
        settings = replace(settings, seed=settings.seed + 1)


def asked(read_line: Callable[[str], str]) -> Iterator[str]:
    """The lines that the user types; Ctrl-C at the question asks again."""
    while True:
        try:
            yield read_line("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            note(f"\n{HINT}")


def changed(settings: Settings, line: str) -> Settings:
    """The settings after a line like "/top-k 40" or "/top-k off"; what is wrong is said."""
    word, _, value = line[1:].rstrip().partition(" ")
    name = word.replace("-", "_")
    if word == "help":
        note(described(settings))
    elif name not in CHANGEABLE:
        note(f"error: no such setting (/{word}): /help shows them all")
    else:
        try:
            number = None if value == "off" else RULES[name].kind(value)
            return replace(settings, **{name: number})
        except SamplingError as error:
            note(f"error: {error}")
        except ValueError:
            note(f"error: {name}={value!r} is not {RULES[name].words}")
    return settings


def described(settings: Settings) -> str:
    """Every setting that can be changed: how, its value, what it means."""
    values = {name: getattr(settings, name) for name in CHANGEABLE}
    lines = [
        f"/{flag(name)[2:]:<20}{'off' if value is None else value!s:<12}{OPTIONS[name].remark}"
        for name, value in values.items()
    ]
    return "\n".join([*lines, CHANGING])


# ---------------------------------------------------------------- the comparison


def compare(
    generator: TextGenerator, prompts: Sequence[str], options: Namespace, state: dict[str, Any]
) -> None:
    """Shows every strategy from each prompt, with numbers, and draws the first prompt's."""
    reference = find_reference(generator.tokenizer, state)
    sizes = {"max_new_tokens": options.max_new_tokens, "seed": options.settings.seed}
    comparisons = [
        compare_settings(generator, prompt, reference=reference, **sizes) for prompt in prompts
    ]
    for comparison in comparisons:
        print_json(comparison.as_dict()) if options.json else print(comparison)
    plot_comparison(Path(COMPARISON_NAME), comparisons[0])
    note(f"({COMPARISON_NAME}, seed {options.settings.seed})")


def find_reference(tokenizer: GPT2Tokenizer, state: dict[str, Any]) -> Reference | None:
    """The text that a checkpoint's model was trained on, found again, else a note why not."""
    from corpus.corpus import read_corpus  # brings the whole data path; only --compare needs it

    cause = "the model does not say which text it was trained on"
    if "text_sha256" in state:
        try:
            corpus = read_corpus({"data": "", **state["config"]}, tokenizer, share_rows=False)
        except (DataError, KeyError, OSError) as error:
            cause = str(error)
        else:
            if corpus.text_sha256 == state["text_sha256"]:
                return Reference(corpus.train_ids, corpus.val_ids.numpy())
            cause = f"the model was not trained on {corpus.path}"
    note(f"no comparison with human text, nor a search for copied passages: {cause}")
    return None
