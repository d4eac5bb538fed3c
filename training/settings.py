"""The keys of a config: default, remark, rule, and what a resume may change. One table of them.

The dict in train.py is what people edit; a key that it lacks has the default. The command line, the
checks, `--help`, resume and docs/settings.md all read this table. It imports no torch.
"""

import json
import os
import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from training.schedule import SCHEDULES

AUTO = "auto"  # a rule of training/rules.py chooses
# What a resume may do with a key.
FIXED = "fixed"  # the weights have that shape
ORDERED = "ordered"  # the batches or the moments depend on it: only another text may change it
FREE = "free"  # may change, which is said
SILENT = "silent"  # of no consequence to what is learned
MOST_CHARS = 300  # of patterns


@dataclass(frozen=True)
class Rule:
    """What a value must be, as a test and in words, and how an option's text becomes one."""

    is_met: Callable[[Any], bool]
    wants: str
    read: Callable[[str], Any] = str


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


def is_number(value: Any) -> bool:
    """Whether it is one that float32 can reckon with."""
    return is_whole(value) or (isinstance(value, float) and abs(value) <= 1e30)


def is_word(value: Any, *words: str) -> bool:
    return isinstance(value, str) and value in words  # an array would compare part by part


def is_path(value: Any) -> bool:
    """Whether the system can take the value for a path: text, not empty, encodable, without NUL."""
    with suppress(UnicodeEncodeError):
        return isinstance(value, str) and bool(value.strip()) and b"\0" not in os.fsencode(value)
    return False


def is_names(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= MOST_CHARS


def is_data(value: Any) -> bool:
    """Whether it is a path, or empty, or some paths, or a positive weight for each of some."""
    if isinstance(value, dict):
        is_weighted = all(is_number(weight) and weight > 0 for weight in value.values())
        return bool(value) and is_weighted and all(map(is_path, value))
    if isinstance(value, list):
        return bool(value) and all(map(is_path, value))
    return is_word(value, "") or is_path(value)


def is_optimizer(value: Any) -> bool:
    from training.optim import OPTIMIZERS  # brings torch, which --help need not wait for

    return isinstance(value, str) and value in OPTIMIZERS


def read_number(text: str) -> int | float | str:
    """3, 0.3 or 3e-4; another text as it is, for the check to complain of it."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def read_data(text: str) -> Any:
    """A path as it is; what begins as a list or a dict does is read as JSON."""
    with suppress(ValueError):
        return json.loads(text) if text.lstrip().startswith(("[", "{")) else text
    return text


def read_switch(text: str) -> bool | str:
    words = dict.fromkeys(("true", "yes", "on", "1"), True)
    words |= dict.fromkeys(("false", "no", "off", "0"), False)
    return words.get(text.lower(), text)


def number(test: Callable[[Any], bool], wants: str) -> Rule:
    return Rule(lambda value: is_number(value) and test(value), wants, read_number)


def or_auto(rule: Rule) -> Rule:
    """The rule, which "auto" meets as well."""
    return replace(
        rule,
        is_met=lambda value: is_word(value, AUTO) or rule.is_met(value),
        wants=f"{rule.wants}, or {AUTO}",
    )


def whole(least: int) -> Rule:
    return number(lambda value: is_whole(value) and value >= least, f"a whole number >= {least}")


def one_of(*names: str) -> Rule:
    return Rule(lambda value: is_word(value, *names), "one of " + ", ".join(names))


AT_LEAST_0, AT_LEAST_1 = whole(0), whole(1)
NOT_NEGATIVE = number(lambda value: value >= 0, "a number >= 0")
POSITIVE = number(lambda value: value > 0, "a number > 0")
SHARE = number(lambda value: 0 <= value <= 1, "a number in [0, 1]")
SHARE_BELOW_1 = number(lambda value: 0 <= value < 1, "a number in [0, 1)")
UP_TO_HALF = number(lambda value: 0 < value <= 0.5, "a number in (0, 0.5]")
SEED = number(lambda value: is_whole(value) and 0 <= value < 2**31, "a whole number in [0, 2**31)")
SWITCH = Rule(lambda value: isinstance(value, bool), "True or False", read_switch)
TEXT = Rule(lambda value: isinstance(value, str), "a string")
ADAPTER = Rule(lambda value: is_word(value, "", "lora"), "lora, or empty")
NAMES = Rule(is_names, "parts of names with commas between them, or empty")
LAYERS = Rule(
    lambda value: is_names(value) and bool(value.strip(" ,")),
    "parts of names with commas between them",
)
FOLDER = Rule(is_path, "a folder's path")
ERRORS = one_of("stop", "skip")
PATH_OR_EMPTY = Rule(lambda value: is_word(value, "") or is_path(value), "a path, or empty")
DATA = Rule(is_data, "a path, a list of paths, {path: weight > 0}, or empty", read_data)
RESUME = Rule(
    lambda value: isinstance(value, bool) or is_path(value),
    "True, False or a checkpoint's path",
    read_switch,
)
DEVICE = Rule(
    lambda value: isinstance(value, str) and bool(re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", value)),
    "auto, cpu, mps, cuda or cuda:N",
)
OPTIMIZER = Rule(is_optimizer, "the name of an optimizer in training/optim.py")
SCHEDULE = one_of(*SCHEDULES)
PRECISION = one_of("auto", "float32", "bfloat16", "float16")
AVERAGE = Rule(
    lambda value: is_word(value, "", "ema", "tail") or (is_number(value) and 0 < value < 1),
    "ema, tail, a number in (0, 1), or empty",
    read_number,
)
PARALLEL = one_of("ddp", "fsdp")
BASE = one_of("float32", "int8", "nf4")
COMPILE = one_of("auto", "on", "off")
OFFICIAL = one_of("gpt2-small (124M)", "gpt2-medium (355M)", "gpt2-large (774M)", "gpt2-xl (1558M)")


@dataclass(frozen=True)
class Key:
    """A key of the config."""

    default: Any
    remark: str
    rule: Rule
    on_resume: str = FREE


KEYS = {
    # the model
    "seq_len": Key(128, "tokens that the model sees at once, its context", AT_LEAST_1, FIXED),
    "embedding_dim": Key(256, "width of the model, a multiple of num_heads", AT_LEAST_1, FIXED),
    "num_layers": Key(4, "transformer blocks", AT_LEAST_1, FIXED),
    "num_heads": Key(8, "attention heads in each block", AT_LEAST_1, FIXED),
    "dropout": Key(
        0.1, "share of activations zeroed; unchanged, muon's rule decides", or_auto(SHARE_BELOW_1)
    ),
    "embedding_dropout": Key(
        AUTO, "that of the embedding; auto: dropout's, or by muon's rule", or_auto(SHARE_BELOW_1)
    ),
    "ffn_hidden_dim": Key(1024, "width inside the feed-forward layers", AT_LEAST_1, FIXED),
    # the optimisation
    "batch_size": Key(8, "windows in memory at once; lower it when memory runs out", AT_LEAST_1),
    "grad_accum_steps": Key(2, "batches per update: 8 x 4 learns as 32 x 1 does", AT_LEAST_1),
    "num_epochs": Key(5, "times that every training window is shown", AT_LEAST_1),
    "max_steps": Key(0, "updates that end a run, if nothing else has; 0: any number", AT_LEAST_0),
    "max_tokens": Key(0, "the same in tokens shown; 0: any number", AT_LEAST_0),
    "max_minutes": Key(0, "time for all of it: epochs repeat till then; 0: any", NOT_NEGATIVE),
    "optimizer": Key("muon", "adamw, or muon, which learns more from a step", OPTIMIZER, ORDERED),
    "learning_rate": Key(
        3e-4, "the highest rate; unchanged, muon's rule decides", or_auto(POSITIVE)
    ),
    "lr_schedule": Key("linear", "constant, cosine, linear, or decay in the last fifth", SCHEDULE),
    "lr_min_ratio": Key(0.0, "a rate that falls ends at this share of learning_rate", SHARE),
    "warmup_steps": Key(0, "updates in which the rate rises to learning_rate", AT_LEAST_0),
    "weight_decay": Key(
        0.1, "pull of the matrices towards 0; unchanged, muon's rule decides", or_auto(NOT_NEGATIVE)
    ),
    "average_weights": Key("", "ema, tail, or a decay below 1: judged too; empty: no", AVERAGE),
    "generations": Key(
        AUTO, "models, each taught by the one before; auto: as many as help", or_auto(AT_LEAST_1)
    ),
    "max_grad_norm": Key(1.0, "longer gradients are cut to this length", POSITIVE),
    "patience": Key(5, "evaluations without a better one that end a run; 0: none do", AT_LEAST_0),
    "seed": Key(42, "same seed, same machine: the same bits", SEED, ORDERED),
    "seeds": Key(
        1, "trainings, one after the other, each with its seed and folder", AT_LEAST_1, SILENT
    ),
    # what it starts from
    "use_pretrained": Key(False, "True fine-tunes the GPT-2 of model_name", SWITCH, SILENT),
    "model_name": Key("gpt2-small (124M)", "an official GPT-2", OFFICIAL, SILENT),
    "weights_path": Key("", "folder or .safetensors of a GPT-2 to tune", PATH_OR_EMPTY, SILENT),
    "adapter": Key("", "lora tunes small matrices beside frozen ones; empty: all", ADAPTER, FIXED),
    "lora_rank": Key(8, "rows of a small matrix: more learn more", AT_LEAST_1, FIXED),
    "lora_alpha": Key(16, "what they learn counts lora_alpha / lora_rank times", POSITIVE, FIXED),
    "lora_dropout": Key(0.0, "share of what they read zeroed", SHARE_BELOW_1),
    "lora_layers": Key("blocks", "parts of the names of layers with them", LAYERS, FIXED),
    "freeze": Key("", "parts of names of weights that learn no more", NAMES, ORDERED),
    "base_precision": Key("float32", "of frozen matrices: float32, int8 or nf4", BASE, ORDERED),
    # the text
    "data": Key("", "text, list of them, or {text: weight}; empty: found here", DATA, SILENT),
    "val_data": Key("", "text to validate on; empty: a part of data", PATH_OR_EMPTY, SILENT),
    "data_field": Key("text", "where a record of JSON, CSV or Parquet has its text", TEXT, ORDERED),
    "data_errors": Key("stop", "at what cannot be read: stop, or skip and count", ERRORS, ORDERED),
    "stride": Key(64, "tokens from window to window; fewer overlap", AT_LEAST_1, ORDERED),
    "val_fraction": Key(0.1, "share of the text, its end, for validation", UP_TO_HALF, ORDERED),
    "replace_invalid_utf8": Key(False, "True reads invalid bytes as U+FFFD", SWITCH, ORDERED),
    "mask_documents": Key(False, "True reads each document of a window alone", SWITCH, ORDERED),
    "share_unused_tokens": Key(True, "one row for all tokens that the text lacks", SWITCH, ORDERED),
    "rare_as_unused": Key(0.5, "how often a token that comes once is read as an unused one", SHARE),
    # reports and files
    "eval_freq": Key(500, "updates between evaluations; an epoch ends with one too", AT_LEAST_1),
    "eval_tokens": Key(50_000, "validation tokens read at most in an evaluation", whole(2)),
    "sample_prompt": Key("Once upon a time", "continued at each evaluation and at the end", TEXT),
    "sample_tokens": Key(60, "length of these samples; 0 is none", AT_LEAST_0),
    "save_freq": Key(1000, "updates between checkpoints", AT_LEAST_1),
    "keep_checkpoints": Key(3, "how many of them stay, the newest", AT_LEAST_1),
    "tensorboard": Key(False, "True writes what TensorBoard shows, an extra", SWITCH, SILENT),
    "wandb": Key(False, "True writes what Weights & Biases shows, an extra", SWITCH, SILENT),
    "output_dir": Key(".", "where checkpoints, the final model and the plot go", FOLDER, SILENT),
    "resume": Key(False, "True: from the newest checkpoint; a path: from that", RESUME, SILENT),
    "allow_other_text": Key(False, "True resumes on another text, moments anew", SWITCH, SILENT),
    # the machine
    "device": Key("auto", "auto, cpu, mps, cuda or cuda:N", DEVICE),
    "estimate": Key(False, "True prints how much memory training takes, and ends", SWITCH, SILENT),
    "find_lr": Key(
        False, "True tries learning rates for a minute, and recommends one", SWITCH, SILENT
    ),
    "plan": Key(
        False, "True proposes a model for max_minutes on this machine and text", SWITCH, SILENT
    ),
    "checkpoint_activations": Key(False, "True keeps fewer: less memory, a third slower", SWITCH),
    "parallel": Key("ddp", "with torchrun: ddp copies the model, fsdp spreads it", PARALLEL),
    "precision": Key("auto", "float32, bfloat16, float16 or auto: the fastest here", PRECISION),
    "compile": Key("auto", "on, off or auto: on with CUDA, where it pays", COMPILE),
}
DEFAULTS = {name: key.default for name, key in KEYS.items()}
# What a run had of a key that its checkpoint, of an earlier version, does not name.
EARLIER_DEFAULTS = DEFAULTS | {
    "grad_accum_steps": 1,
    "optimizer": "adamw",
    "lr_schedule": "decay",
    "lr_min_ratio": 0.1,
    "generations": 1,
    "rare_as_unused": 0.0,
}
