"""What generate.py shows besides plain texts: JSON lines, prompts one by one, the comparison."""

import json
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from generation.comparison import Reference, compare_settings, plot_comparison
from generation.decoding import window_start
from generation.generator import TextGenerator
from generation.options import OPTIONS, TALK, flag
from generation.row import Row, printable
from generation.settings import RULES, Settings, setting_of
from storage.run_folder import COMPARISON_NAME
from system.errors import ConfigError, SamplingError, UserError
from system.process import is_open, note, only_warn
from tokenizer import GPT2Tokenizer

HINT = (
    "Type a prompt and Enter. Ctrl-C stops a text, Ctrl-D ends the program. "
    "/help shows the settings and how to change them."
)
CHANGING = "Type /top-k 40 to change a setting, /top-k off to drop it, // to begin a prompt with /"
CHANGEABLE = [name for name in RULES if TALK in OPTIONS[name].modes]
BETWEEN = "---"  # between two texts


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
            print(json.dumps({**text, "num_tokens": len(row.ids), "tokens_per_second": speed}))
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
        if start := window_start(num_tokens, seq_len):
            read = f"the model reads the last {num_tokens - start}"
            note(f"notice: the prompt has {num_tokens} tokens, {read}")


def converse(generator: TextGenerator, settings: Settings) -> None:
    """Asks for prompts and continues them until the input ends; `/name value` changes a setting."""
    if not is_open(sys.stdin):
        raise ConfigError("no input for --interactive: start it in a terminal")
    if hasattr(sys.stdin, "reconfigure"):
        sys.stdin.reconfigure(errors="replace")
    note(HINT)
    for line in asked():
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


def asked() -> Iterator[str]:
    """The lines that the user types; Ctrl-C at the question asks again."""
    while True:
        try:
            yield input("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            note(f"\n{HINT}")


def changed(settings: Settings, line: str) -> Settings:
    """The settings after "/top-k 40", "/top-k off" or "/help", which shows all; errors are said."""
    word, _, value = line[1:].rstrip().partition(" ")
    name = word.replace("-", "_")
    if word == "help":
        for setting in CHANGEABLE:
            present = getattr(settings, setting)
            shown = "off" if present is None else str(present)
            note(f"/{flag(setting)[2:]:<20}{shown:<12}{OPTIONS[setting].remark}")
        note(CHANGING)
    elif name not in CHANGEABLE:
        note(f"error: no such setting (/{word}): /help shows them all")
    else:
        try:
            number = None if value == "off" else setting_of(name, value)
            return replace(settings, **{name: number})
        except SamplingError as error:
            note(f"error: {error}")
    return settings


def compare(
    generator: TextGenerator, prompts: Sequence[str], options: Namespace, state: dict[str, Any]
) -> None:
    """Shows every strategy from each prompt, with numbers, and draws the first prompt's."""
    reference = find_reference(generator.tokenizer, state)
    sizes = {"max_new_tokens": options.max_new_tokens, "seed": options.settings.seed}
    compared = [compare_settings(generator, p, reference=reference, **sizes) for p in prompts]
    for comparison in compared:
        print(json.dumps(comparison.as_dict()) if options.json else comparison)
    said = f"seed {options.settings.seed}"
    with only_warn(f"no picture of the comparison ({COMPARISON_NAME})"):
        plot_comparison(Path(COMPARISON_NAME), compared[0])
        said = f"{COMPARISON_NAME}{' of the first prompt' * (len(compared) > 1)}, {said}"
    note(f"({said})")


def find_reference(tokenizer: GPT2Tokenizer, state: dict[str, Any]) -> Reference | None:
    """The text that a checkpoint's model was trained on, found again, else a note why not."""
    from corpus.corpus import read_corpus  # brings the whole data path; only --compare needs it
    from corpus.order import EARLIER

    cause = "the model does not say which text it was trained on"
    try:
        if "text_sha256" in state:
            config = {"data": "", "data_field": "text", "data_errors": "stop", **state["config"]}
            order = state.get("order", EARLIER)
            corpus = read_corpus(config, tokenizer, share_rows=False, order=order)
            if corpus.text_sha256 == state["text_sha256"]:
                return Reference(corpus.train_ids, corpus.val_ids.numpy())
            cause = f"the model was not trained on {corpus.path}"
    except (UserError, KeyError, OSError) as error:
        cause = str(error)
    note(f"no comparison with human text, nor a search for copied passages: {cause}")
    return None
