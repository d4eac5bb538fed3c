"""The options of generate.py, in which mode each has an effect, and the prompts that they give."""

import argparse
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from corpus.text import decode_text
from generation.settings import RULES, SAMPLE, Settings
from system.command_line import Parser
from system.errors import ConfigError, DataError
from system.files import as_path
from system.process import is_open, note

OFFICIAL_NAMES = ("gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl")
PRECISIONS = ("auto", "float32", "bfloat16", "float16", "int8")
DRAW, SEARCH, TALK, COMPARE = "", "--num-beams", "--interactive", "--compare"  # the modes
ALL, WRITE, ONCE = {DRAW, SEARCH, TALK, COMPARE}, {DRAW, TALK}, {DRAW, SEARCH, COMPARE}
FILTERS = ("top_k", "top_p", "min_p", "typical_p")  # none of them takes away the likeliest token
HALF_A_PAIR = re.compile("[\ud800-\udfff]")  # no text that can be written holds one


class Option(NamedTuple):
    """An option of the command line."""

    modes: set[str]  # in which it has an effect; elsewhere it is an error
    remark: str
    default: Any = None
    form: dict[str, Any] | None = None  # for argparse; a setting's follows from its rule
    most: int = 10  # where a slider of a whole number ends


FLAG, REPEATABLE, PATH = {"action": "store_true"}, {"action": "append"}, {"type": as_path}
OPTIONS = {
    "prompt": Option(ONCE, "text to continue, may be empty; repeatable", [], REPEATABLE),
    "prompt_file": Option(ONCE, "a text file to continue; .jsonl has many prompts", None, PATH),
    "one_a_line": Option(ONCE, "each line of the file or the pipe is a prompt", False, FLAG),
    "interactive": Option({TALK}, "ask for prompts until Ctrl-D", False, FLAG),
    "compare": Option({COMPARE}, "show ways of sampling side by side, with numbers", False, FLAG),
    "json": Option(ONCE, "one JSON object a line for each text", False, FLAG),
    "checkpoint": Option(ALL, "model file or run's folder", Path("final_trained_model.pt"), PATH),
    "model": Option(ALL, "OpenAI's weights, untrained here", None, {"choices": OFFICIAL_NAMES}),
    "adapter": Option(ALL, "what was tuned, as DIR or DIR=WEIGHT; repeatable", [], REPEATABLE),
    "device": Option(ALL, "auto, cpu, mps, cuda or cuda:N", "auto"),
    "precision": Option(ALL, "type of the weights", "auto", {"choices": PRECISIONS}),
    "max_new_tokens": Option(ALL, "the longest continuation", 200, most=1000),
    "num_samples": Option({DRAW}, "texts for each prompt", 1),
    "num_beams": Option({DRAW, SEARCH}, "above 1: beam search with so many, no sampling", 1),
    "length_penalty": Option({SEARCH}, "above 0, beams favour long texts", 1.0),
    "stop": Option({DRAW, SEARCH, TALK}, "end before this string; repeatable", [], REPEATABLE),
    "seed": Option(ALL, "same seed, same text; drawn and printed where not given"),
    "temperature": Option(WRITE, "0 is greedy, 1 as trained", SAMPLE["temperature"]),
    "top_k": Option(WRITE, "draw from the k likeliest tokens only", most=200),
    "top_p": Option(WRITE, "draw from the fewest tokens that make up this probability"),
    "min_p": Option(WRITE, "leave out tokens less likely than this share of the likeliest"),
    "typical_p": Option(WRITE, "draw from the most typical tokens that make up this probability"),
    "repetition_penalty": Option(WRITE, "above 1, tokens that are there get less likely", 1.0),
    "no_repeat_ngram": Option(WRITE, "never repeat a run of so many tokens", 0),
}


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Every option, the `mode` that they choose, and `settings` of the texts."""
    parser = Parser(
        prog="generate.py",
        description="Continues a prompt with a trained model. Without --prompt and --prompt-file "
        "the prompt is read from a pipe.",
    )
    source = parser.add_mutually_exclusive_group()
    for name, option in OPTIONS.items():
        shown = f" ({option.default})" if option.default not in (None, False, []) else ""
        form = {"type": RULES[name].kind} if name in RULES else option.form or {}
        form = {**form, "default": argparse.SUPPRESS, "help": option.remark + shown}
        (source if name in ("checkpoint", "model") else parser).add_argument(flag(name), **form)
    given = vars(parser.parse_args(arguments))
    mode = mode_of(given)
    values = {name: option.default for name, option in OPTIONS.items()} | given
    return argparse.Namespace(**values, mode=mode, settings=settings_of(values, mode))


def settings_of(values: Mapping[str, Any], mode: str) -> Settings:
    """The settings among the values that have an effect in the mode."""
    wanted = [name for name in (*RULES, "stop") if mode in OPTIONS[name].modes]
    return Settings(**{name: values[name] for name in wanted})


def mode_of(given: dict[str, Any]) -> str:
    """The mode that the options choose; ConfigError names all that have no effect in it."""
    if "interactive" in given or "compare" in given:
        mode = TALK if "interactive" in given else COMPARE
    else:
        mode = SEARCH if given.get("num_beams", 1) > 1 else DRAW
    path, here = given.get("prompt_file"), f"with {mode}" if mode else "without --num-beams above 1"
    idle = {
        here: [name for name in given if mode not in OPTIONS[name].modes],
        "with --temperature 0": FILTERS if given.get("temperature") == 0 else (),
        "on --prompt": ["one_a_line"] if "prompt" in given and not path else (),
        "on a .jsonl file": ["one_a_line"] if str(path).lower().endswith(".jsonl") else (),
    }
    for place, names in idle.items():
        flags = ", ".join(flag(name) for name in names if name in given)
        if flags:
            raise ConfigError(f"no effect {place} ({flags}): leave it out")
    return mode


def prompts_of(options: argparse.Namespace) -> list[str]:
    """All prompts given: by --prompt, by --prompt-file, else through a pipe."""
    prompts = [text_of(prompt, "--prompt").removesuffix("\n") for prompt in options.prompt]
    path, name = options.prompt_file, str(options.prompt_file or "the pipe")
    if options.mode == TALK or (prompts and not path):
        return prompts
    if not path and (not is_open(sys.stdin) or sys.stdin.isatty()):
        sources = '--prompt "Once upon a time", --interactive, or a text on stdin'
        raise ConfigError(f"no prompt: give {sources}")
    try:  # a stream of text, as a notebook's, has no buffer
        raw = path.read_bytes() if path else getattr(sys.stdin, "buffer", sys.stdin).read()
    except (OSError, ValueError) as error:
        cause = f"cannot read the prompt ({name}: {getattr(error, 'strerror', None) or error})"
        raise ConfigError(f"{cause}: name a text file, or give --prompt") from error
    return prompts + prompts_in(raw, name, one_a_line=options.one_a_line)


def text_of(raw: bytes | str, name: str) -> str:
    """Read as a text to train on is; what is no text, and half a surrogate pair, is U+FFFD."""
    if isinstance(raw, str):
        raw = HALF_A_PAIR.sub("\0", raw).encode()
    text = decode_text(raw, name, replace_invalid=True)
    if text.count("\ufffd") > raw.count("\ufffd".encode()):
        note(f"notice: what is no text in {name} is read as U+FFFD")
    return text


def prompts_in(raw: bytes | str, name: str, *, one_a_line: bool) -> list[str]:
    """The prompts in a file or a pipe, whose last line end does not count.

    A .jsonl file has one on each line: a string, or an object with a `prompt`.
    """
    text = text_of(raw, name)
    lines = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if name.lower().endswith(".jsonl"):
        prompts = [prompt_in_json(line, f"{name}, line {number}") for number, line in lines]
    elif one_a_line:
        prompts = [line for _, line in lines]
    else:
        return [text.removesuffix("\n")]
    if not prompts:
        raise DataError(f"no prompts ({name}): put one on each line")
    return prompts


def prompt_in_json(line: str, place: str) -> str:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        value = None
    entries = value if isinstance(value, dict) else {"prompt": value}
    idle = [key for key in entries if key != "prompt"]
    if idle or not isinstance(entries.get("prompt"), str):
        cause = f"no effect of {', '.join(map(ascii, idle))}" if idle else "no prompt"
        wanted = '"Once upon a time", or {"prompt": "Once upon a time"}'
        raise DataError(f"{cause} ({place}): write {wanted}")
    return text_of(entries["prompt"], place)
