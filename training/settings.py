"""Which configs make sense, and how the command line changes one."""

import difflib
import math
import os
import re
import reprlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from system.command_line import Parser
from system.errors import ConfigError

REMARK = re.compile(r'^    "(\w+)": .*?  # (.+)$', re.MULTILINE)


@dataclass(frozen=True)
class Rule:
    """What a value must be, as a test and in words."""

    is_met: Callable[[Any], bool]
    wants: str


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_number(value: Any) -> bool:
    return is_whole(value) or (isinstance(value, float) and math.isfinite(value))


def is_path(value: Any) -> bool:
    """Whether the system can take the value for a path: text, not empty, encodable, without NUL."""
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        return False
    try:
        os.fsencode(value)
    except UnicodeEncodeError:
        return False
    return True


def whole(least: int) -> Rule:
    return Rule(lambda value: is_whole(value) and value >= least, f"a whole number >= {least}")


def number(test: Callable[[float], bool], wants: str) -> Rule:
    return Rule(lambda value: is_number(value) and test(value), f"a number {wants}")


def one_of(*choices: str) -> Rule:
    return Rule(
        lambda value: isinstance(value, str) and value in choices, "one of " + ", ".join(choices)
    )


AT_LEAST_0, AT_LEAST_1 = whole(0), whole(1)
NOT_NEGATIVE = number(lambda value: value >= 0, ">= 0")
POSITIVE = number(lambda value: value > 0, "> 0")
SHARE_BELOW_1 = number(lambda value: 0 <= value < 1, "in [0, 1)")
SWITCH = Rule(lambda value: isinstance(value, bool), "True or False")
TEXT = Rule(lambda value: isinstance(value, str), "a string")
DEVICE_NAME = re.compile(r"auto|cpu|mps|cuda(:\d+)?")

RULES = {
    "seq_len": AT_LEAST_1,
    "embedding_dim": AT_LEAST_1,
    "num_layers": AT_LEAST_1,
    "num_heads": AT_LEAST_1,
    "dropout": SHARE_BELOW_1,
    "ffn_hidden_dim": AT_LEAST_1,
    "batch_size": AT_LEAST_1,
    "grad_accum_steps": AT_LEAST_1,
    "learning_rate": POSITIVE,
    "lr_schedule": one_of("constant", "cosine", "decay"),
    "lr_min_ratio": number(lambda value: 0 <= value <= 1, "in [0, 1]"),
    "warmup_steps": AT_LEAST_0,
    "weight_decay": NOT_NEGATIVE,
    "max_grad_norm": POSITIVE,
    "num_epochs": AT_LEAST_1,
    "patience": AT_LEAST_0,
    "data": TEXT,
    "stride": AT_LEAST_1,
    "val_fraction": number(lambda value: 0 < value <= 0.5, "in (0, 0.5]"),
    "replace_invalid_utf8": SWITCH,
    "share_unused_tokens": SWITCH,
    "eval_freq": AT_LEAST_1,
    "eval_tokens": whole(2),
    "save_freq": AT_LEAST_1,
    "keep_checkpoints": AT_LEAST_1,
    "sample_prompt": TEXT,
    "sample_tokens": AT_LEAST_0,
    "output_dir": Rule(lambda value: is_path(value), "a folder's path"),
    "weights_path": TEXT,
    "seed": number(lambda value: is_whole(value) and 0 <= value < 2**31, "in [0, 2**31), whole"),
    "device": Rule(
        lambda value: isinstance(value, str) and DEVICE_NAME.fullmatch(value) is not None,
        "auto, cpu, mps, cuda or cuda:N",
    ),
    "precision": one_of("auto", "float32", "bfloat16", "float16"),
    "compile": one_of("auto", "on", "off"),
    "resume": Rule(
        lambda value: isinstance(value, bool) or is_path(value),
        "True, False or a checkpoint's path",
    ),
    "allow_other_text": SWITCH,
}


def check(config: dict[str, Any]) -> None:
    """ConfigError with every problem: unknown and missing keys, wrong values, impossible pairs."""
    problems = problems_of(config)
    if problems:
        raise ConfigError("config: " + "; ".join(problems))


def problems_of(config: dict[str, Any]) -> list[str]:
    """What is wrong with a config, each problem in a few words."""
    problems = [unknown_key(key) for key in config if key not in RULES]
    problems += [f"{key} is missing" for key in RULES if key not in config]
    wrong = [key for key in RULES if key in config and not RULES[key].is_met(config[key])]
    problems += [f"{key}={shown(config[key])} is not {RULES[key].wants}" for key in wrong]
    if not {"embedding_dim", "num_heads"} & {*wrong, *(RULES.keys() - config.keys())}:
        problems += head_problems(config["embedding_dim"], config["num_heads"])
    return problems


def shown(value: Any) -> str:
    """The value as it is typed, of bounded length."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of {value.bit_length()} bits"
    brief = reprlib.Repr()
    brief.maxstring = brief.maxother = 80
    return brief.repr(value)


def unknown_key(key: Any) -> str:
    """What is said of a key that does not exist, with the nearest one that does."""
    nearest = difflib.get_close_matches(str(key), RULES, n=1)
    return f"unknown key {key!r}" + (f", did you mean {nearest[0]}?" if nearest else "")


def head_problems(embedding_dim: int, num_heads: int) -> list[str]:
    if embedding_dim % num_heads == 0:
        return []
    nearest = max(1, round(embedding_dim / num_heads)) * num_heads
    return [
        f"embedding_dim={embedding_dim} is not a multiple of num_heads={num_heads} "
        f"({embedding_dim} = {embedding_dim // num_heads} x {num_heads} + "
        f"{embedding_dim % num_heads}): try {nearest}"
    ]


def check_warmup(warmup_steps: int, num_steps: int) -> None:
    """ConfigError if the warm-up is longer than the run."""
    if warmup_steps > num_steps:
        raise ConfigError(
            f"config: warmup_steps={warmup_steps} is more than the run's {num_steps} steps "
            f"(num_epochs x batches per epoch): try {num_steps // 10}"
        )


def from_command_line(
    arguments: Sequence[str], defaults: dict[str, Any], *, source: str
) -> dict[str, Any]:
    """The defaults with what `--key value` changes; --help shows the remarks beside the keys.

    `source` is the script that holds the defaults, one `"key": value,  # remark` a line.
    """
    parser = Parser(
        description="Trains a GPT on the first of TinyStories.txt, data.txt and example.txt.",
        allow_abbrev=False,
    )
    remarks = dict(REMARK.findall(source))
    for key, default in defaults.items():
        parser.add_argument(
            *dict.fromkeys([f"--{key}", f"--{key.replace('_', '-')}"]),
            default=default,
            type=lambda text, default=default: parsed(text, default),
            help=f"{remarks[key]} (default: {default!r})".replace("%", "%%"),
            metavar="VALUE",
            **({"nargs": "?", "const": True} if key == "resume" else {}),
        )
    known, unknown = parser.parse_known_args(arguments)
    if unknown:
        names = [text.lstrip("-").split("=")[0] for text in unknown if text.startswith("--")]
        problems = [unknown_key(name) for name in names] or [f"stray argument {unknown[0]!r}"]
        raise ConfigError("command line: " + "; ".join(problems + problems_of(vars(known))))
    return vars(known)


def parsed(text: str, default: Any) -> Any:
    """The text as the default's type, or unchanged for `check` to complain of it."""
    if isinstance(default, bool):
        return {"true": True, "false": False}.get(text.lower(), text)
    for kind in {int: (int,), float: (int, float)}.get(type(default), ()):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
