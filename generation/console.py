"""The terminal side of generate.py: options, streaming, the prompt loop, JSON lines."""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from generation.comparison import COMPARISON_NAME, compare_settings, find_reference, plot_comparison
from generation.fast_weights import PRECISIONS
from generation.generator import TextGenerator
from generation.row import Row, printable
from generation.settings import Settings
from storage import checkpoint
from system.command_line import Parser
from system.errors import ConfigError

OFFICIAL_NAMES = ("gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl")
SAMPLING_OPTIONS = {  # name -> type, help
    "temperature": (float, "0 is greedy, 1 as trained"),
    "top_k": (int, "draw from the k likeliest tokens only"),
    "top_p": (float, "draw from the fewest tokens that make up this probability"),
    "min_p": (float, "leave out tokens less likely than this share of the likeliest"),
    "typical_p": (float, "draw from the most typical tokens that make up this probability"),
    "repetition_penalty": (float, "above 1, tokens that are there already get less likely"),
    "no_repeat_ngram": (int, "never repeat a run of so many tokens"),
}
DEFAULTS = {"temperature": 0.8, "repetition_penalty": 1.0, "no_repeat_ngram": 0}
HINT = "Type a prompt and Enter. Ctrl-C stops a text, Ctrl-D ends the program."


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        description="Continues a prompt with a trained model. Without --prompt and --prompt-file "
        "the prompt is read from a pipe.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--prompt", action="append", default=[], help="text to continue, may be empty; repeatable")
    add("--prompt-file", type=Path, help="a UTF-8 text file to continue")
    add("--interactive", action="store_true", help="ask for prompts until Ctrl-D")
    add("--compare", action="store_true", help="show ways of sampling side by side, with numbers")
    add("--json", action="store_true", help="one JSON object a line for each text")
    source = parser.add_mutually_exclusive_group()
    source.add_argument(
        "--checkpoint", type=Path, default=Path(checkpoint.FINAL_NAME), help="file (%(default)s)"
    )
    source.add_argument("--model", choices=OFFICIAL_NAMES, help="OpenAI's weights, untrained here")
    add("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N")
    add("--precision", choices=PRECISIONS, default="auto", help="type of the weights (%(default)s)")
    add("--max-new-tokens", type=int, default=200, help="the longest continuation (%(default)s)")
    add("--num-samples", type=int, default=1, help="texts for each prompt (%(default)s)")
    add("--num-beams", type=int, default=1, help="above 1: beam search with so many, no sampling")
    add("--length-penalty", type=float, default=1.0, help="above 0, beams favour long texts")
    add("--stop", action="append", default=[], help="end a text before this string; repeatable")
    add("--seed", type=int, help="same seed, same text; drawn and printed where not given")
    for name, (kind, remark) in SAMPLING_OPTIONS.items():
        default = DEFAULTS.get(name)
        shown = "" if default is None else f" ({default})"
        add(option(name), type=kind, default=default, help=remark + shown)
    options = parser.parse_args(arguments)
    check(options)
    return options


def option(name: str) -> str:
    return "--" + name.replace("_", "-")


def check(options: argparse.Namespace) -> None:
    """ConfigError for numbers out of range and for options that exclude each other."""
    least_1 = {name: getattr(options, name) for name in ("num_samples", "num_beams")}
    problems = [
        f"{option(name)} {value} is below 1" for name, value in least_1.items() if value < 1
    ]
    if options.num_beams > 1 and options.num_samples > 1:
        problems.append("--num-beams finds one text a prompt, --num-samples asks for more")
    if options.interactive and (options.compare or options.prompt or options.prompt_file):
        problems.append("--interactive asks for its prompts and shows one text at a time")
    if "" in options.stop:
        problems.append("--stop wants some text")
    if problems:
        raise ConfigError("; ".join(problems))


def settings_of(options: argparse.Namespace) -> Settings:
    names = [field.name for field in fields(Settings) if hasattr(options, field.name)]
    if options.num_beams > 1:
        names = [name for name in names if name not in SAMPLING_OPTIONS]
    return Settings(**{name: getattr(options, name) for name in names})


def prompts_of(options: argparse.Namespace) -> list[str]:
    """All prompts given: by --prompt, by --prompt-file, else through a pipe."""
    prompts = list(options.prompt)
    if options.prompt_file:
        prompts.append(options.prompt_file.read_text(encoding="utf-8", errors="replace"))
    if prompts or options.interactive:
        return prompts
    return [piped_text().removesuffix("\n")]


def piped_text() -> str:
    """What comes through the pipe; ConfigError where there is none."""
    missing = 'no prompt: give --prompt "Once upon a time", --interactive, or a text on stdin'
    if sys.stdin is None or sys.stdin.isatty():
        raise ConfigError(missing)
    try:
        return sys.stdin.buffer.read().decode("utf-8", errors="replace")
    except OSError as error:
        raise ConfigError(missing) from error


# ---------------------------------------------------------------- texts


def write(generator: TextGenerator, prompts: Sequence[str], options: argparse.Namespace) -> None:
    """Prints the continuations: a single one as it is written, several one after the other."""
    notice_long(generator, prompts)
    start = time.perf_counter()
    is_single = len(prompts) == options.num_samples == options.num_beams == 1
    if is_single and not options.json:
        rows = [stream(generator, prompts[0], options, seed=options.seed)]
    else:
        rows = generator.write(prompts, settings_of(options))
    seconds = time.perf_counter() - start
    if options.json:
        print_json(rows, seconds)
    elif not is_single:
        texts = (printable(row.prompt + row.text) for row in rows)
        print("\n---\n".join(texts))
    report(rows, seconds)


def stream(generator: TextGenerator, prompt: str, options: argparse.Namespace, *, seed: int) -> Row:
    """Prints prompt and continuation while it is written."""
    settings = replace(settings_of(options), seed=seed)
    [row] = generator.rows([prompt], settings)
    print(printable(prompt), end="", flush=True)
    for pieces in generator.steps([row], settings):
        print(printable(pieces[0]), end="", flush=True)
    print()
    return row


def notice_long(generator: TextGenerator, prompts: Sequence[str]) -> None:
    """Says of each prompt that exceeds the context what the model reads of it."""
    seq_len = generator.model.seq_len
    for prompt in prompts:
        num_tokens = len(generator.tokenizer.encode(prompt))
        if num_tokens > seq_len:
            print(
                f"notice: the prompt has {num_tokens} tokens, the model reads the last {seq_len}",
                file=sys.stderr,
            )


def print_json(rows: Sequence[Row], seconds: float) -> None:
    speed = sum(len(row.ids) for row in rows) / seconds
    for row in rows:
        result = {"prompt": row.prompt, "text": row.text, "seed": row.seed}
        print(json.dumps({**result, "num_tokens": len(row.ids), "tokens_per_second": speed}))


def report(rows: Sequence[Row], seconds: float) -> None:
    num_tokens = sum(len(row.ids) for row in rows)
    seeds = sorted({row.seed for row in rows})
    shown = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {seeds[0]} to {seeds[-1]}"
    pace = f"{num_tokens} tokens, {num_tokens / seconds:,.1f} tokens/s"
    print(f"({shown}, {pace})", file=sys.stderr)


# ---------------------------------------------------------------- prompts one by one


def converse(generator: TextGenerator, options: argparse.Namespace) -> None:
    """Asks for prompts and continues them until the input ends."""
    print(HINT, file=sys.stderr)
    for number, prompt in enumerate(asked(input)):
        notice_long(generator, [prompt])
        start = time.perf_counter()
        try:
            row = stream(generator, prompt, options, seed=options.seed + number)
        except KeyboardInterrupt:
            print("\n(stopped)", file=sys.stderr)
        else:
            report([row], time.perf_counter() - start)


def asked(read_line: Callable[[str], str]) -> Iterator[str]:
    """The lines that the user types; Ctrl-C at the question asks again."""
    while True:
        try:
            yield read_line("> ")
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print(f"\n{HINT}", file=sys.stderr)


# ---------------------------------------------------------------- the comparison


def compare(
    generator: TextGenerator,
    prompts: Sequence[str],
    options: argparse.Namespace,
    state: dict[str, Any],
) -> None:
    """Shows every strategy from each prompt, with numbers, and draws the first prompt's."""
    reference, notes = find_reference(generator.tokenizer, state)
    comparisons = [
        compare_settings(
            generator,
            prompt,
            max_new_tokens=options.max_new_tokens,
            seed=options.seed,
            reference=reference,
            notes=notes,
        )
        for prompt in prompts
    ]
    for comparison in comparisons:
        print(json.dumps(comparison.as_dict()) if options.json else comparison)
    plot_comparison(Path(COMPARISON_NAME), comparisons[0])
    print(f"({COMPARISON_NAME}, seed {options.seed})", file=sys.stderr)
