"""What a run is asked for: the dict of train.py, options beside it, and the checks of both."""

import argparse
import difflib
import json
import os
import reprlib
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from system.command_line import Parser
from system.errors import CheckpointError, ConfigError
from system.files import as_path
from training.parallel import is_launched
from training.settings import AUTO, DEFAULTS, EARLIER_DEFAULTS, KEYS

QUESTIONS = ("estimate", "find_lr", "plan")  # keys that are answered in place of a training
LORA = [key for key in KEYS if key.startswith("lora_")]
SHORT = {"max_minutes": ["--minutes"]}  # other names of options


@dataclass(frozen=True)
class Wanted:
    """A config as its two authors wrote it: the dict, complete, and the options given beside it.

    It `began` when it was checked; what minutes there are, count from then.
    """

    script: dict[str, Any]
    options: dict[str, Any]
    began: float = field(default_factory=lambda: time.monotonic(), compare=False)

    @property
    def config(self) -> dict[str, Any]:
        return {**self.script, **self.options}

    @property
    def question(self) -> str | None:
        """Which of QUESTIONS is asked; there is one at most."""
        return next((key for key in QUESTIONS if self.config[key]), None)

    @property
    def named_checkpoint(self) -> Path | None:
        """The file to go on from, None for the newest of the folder, or for a new run."""
        named = self.config["resume"]
        if not isinstance(named, str):
            return None
        path = as_path(named)
        return path if path.suffix == ".sharded" or not path.is_dir() else None

    @property
    def folder(self) -> Path:
        """Where the run's files go: beside the checkpoint that it goes on from, unless chosen."""
        named = self.config["resume"]
        if isinstance(named, str) and "output_dir" not in self.chosen:
            return self.named_checkpoint.parent if self.named_checkpoint else as_path(named)
        return as_path(self.config["output_dir"])

    @property
    def chosen(self) -> set[str]:
        """Keys that somebody set: given as an option, or other than the default in the dict."""
        edited = {key for key, value in self.script.items() if value != DEFAULTS[key]}
        return edited | self.options.keys()

    def command(self, decided: dict[str, Any]) -> str:
        """What to paste to train as it was asked, but for what was decided since."""
        given = {key: value for key, value in self.options.items() if key not in QUESTIONS}
        given |= {key: False for key in QUESTIONS if self.script[key]}  # it stands in the dict
        words = ["python", "train.py"]
        for key, value in {**given, **decided}.items():
            items = value if isinstance(value, list) else [value]
            words += [
                f"--{key}",
                *(json.dumps(i) if isinstance(i, dict) else str(i) for i in items),
            ]
        return shlex.join(words)

    def resumed(self, config: dict[str, Any], script: dict[str, Any]) -> dict[str, Any]:
        """The config to go on with: the run's own, changed by what was written since it began.

        `config` and `script` are what the run had, and what its dict said, when it was saved.
        """
        kept = {key: value for key, value in config.items() if key in KEYS}
        defaults = DEFAULTS if config.keys() >= KEYS.keys() else EARLIER_DEFAULTS
        before = {**defaults, **script}
        edited = {
            key: value
            for key, value in self.script.items()
            if value != before[key] and (value, before[key]) != (DEFAULTS[key], defaults[key])
        }
        return {**defaults, **kept, **edited, **self.options}


def wanted(config: dict[str, Any], options: dict[str, Any]) -> Wanted:
    """The checked config; ConfigError with everything that is wrong with it.

    CheckpointError if the checkpoint to go on from is not there: nothing was written by then.
    """
    config = {key: plain(value) for key, value in config.items()}
    check({**config, **options})
    asked = Wanted({**DEFAULTS, **config}, options)
    changed = {key for key, value in options.items() if value != DEFAULTS[key]}
    useless = [f"--{key} {why}" for key, why in without_effect(asked.config) if key in changed]
    if useless:
        raise ConfigError("command line: " + "; ".join(useless))
    named = asked.config["resume"]
    if isinstance(named, str) and not os.path.lexists(as_path(named)):
        raise CheckpointError(f"no checkpoint to resume ({named}): name one that is there")
    return asked


def without_effect(config: dict[str, Any]) -> list[tuple[str, str]]:
    """Options that would change nothing beside the others, and why."""
    is_resumed, weights = config["resume"], config["weights_path"]
    has_weights = is_resumed and config["seeds"] == 1  # of several seeds some may have not begun
    rows = [
        (has_weights, "weights_path", "a resumed run has weights already"),
        (has_weights, "use_pretrained", "a resumed run has weights already"),
        (has_weights or not config["use_pretrained"], "model_name", "it needs --use_pretrained"),
        (weights, "use_pretrained", "weights_path is given: choose one"),
        (not is_resumed, "allow_other_text", "it needs --resume"),
        (config["parallel"] == "fsdp" and not is_launched(), "parallel", "it needs torchrun"),
        *((not (config["adapter"] or is_resumed), key, "it needs --adapter lora") for key in LORA),
        (any(config[key] for key in QUESTIONS), "seeds", "nothing is trained"),
        (not is_partly_frozen(config), "base_precision", "it needs --adapter lora or --freeze"),
        (config["val_data"], "val_fraction", "val_data is given"),
        (config["max_minutes"], "num_epochs", "epochs repeat for max_minutes"),
        (config["lr_schedule"] == "constant", "lr_min_ratio", "the rate is constant"),
    ]
    return [(key, f"has no effect: {why}") for is_useless, key, why in rows if is_useless]


def is_partly_frozen(config: dict[str, Any]) -> bool:
    """Whether there are weights that do not learn; a resumed run's config says it later."""
    return bool(config["adapter"] or config["freeze"] or config["resume"])


def learns_anew(config: dict[str, Any]) -> bool:
    """Whether all weights of a model learn, from random ones on."""
    others = ("weights_path", "use_pretrained", "adapter", "freeze")
    return not any(config[key] for key in others)


def is_new(config: dict[str, Any]) -> bool:
    """Whether the run begins with a model that has learned nothing and learns as a whole."""
    return learns_anew(config) and not config["resume"]


def plain(value: Any) -> Any:
    """A path as text and a number of numpy's or torch's as Python's own; the rest as it is.

    The same of what lists, tuples and dicts hold.
    """
    if isinstance(value, dict):
        return {plain(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    is_scalar = getattr(value, "shape", None) == ()
    return value.item() if is_scalar else value


def check(config: dict[str, Any]) -> None:
    """ConfigError with everything that is wrong with the config; keys that it lacks are right."""
    if problems := problems_of(config):
        raise ConfigError("config: " + "; ".join(problems))


def problems_of(config: dict[str, Any]) -> list[str]:
    problems = [unknown_key(key) for key in config if key not in KEYS]
    wrong = [key for key in KEYS if key in config and not KEYS[key].rule.is_met(config[key])]
    problems += [f"{key}={shown(config[key])} is not {KEYS[key].rule.wants}" for key in wrong]
    if not {"embedding_dim", "num_heads"} & {*wrong}:
        dim, heads = ({**DEFAULTS, **config}[key] for key in ("embedding_dim", "num_heads"))
        if rest := dim % heads:
            problems.append(
                f"embedding_dim={dim} is not a multiple of num_heads={heads} ({dim} = "
                f"{dim // heads} x {heads} + {rest}): try {max(1, round(dim / heads)) * heads}"
            )
    asked = [key for key in QUESTIONS if config.get(key) is True]
    if len(asked) > 1:
        problems.append(f"{' and '.join(asked)}: ask for one of them at a time")
    several = "generations" not in wrong and config.get("generations", 1) not in (1, AUTO)
    if several and not learns_anew({**DEFAULTS, **config}):
        problems.append(
            f"generations={shown(config['generations'])} is for new models that learn as a whole: "
            "leave it at auto beside published weights, adapter or freeze"
        )
    if config.get("plan") is True and not config.get("max_minutes"):
        problems.append("plan is for a time: give it as --max_minutes 30, say")
    if config.get("plan") is True and not is_new({**DEFAULTS, **config}):
        problems.append(
            "plan is for a new model: leave out resume, published weights, adapter and freeze"
        )
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
    nearest = difflib.get_close_matches(str(key), KEYS, n=1)
    return f"unknown key {shown(key)}" + (f", did you mean {nearest[0]}?" if nearest else "")


def options_from(arguments: Sequence[str], script: dict[str, Any]) -> dict[str, Any]:
    """What `--key value` says; --help shows the remarks, and the values of the dict."""
    parser = Parser(
        prog="train.py",
        description="Trains a GPT on the first of TinyStories.txt, data.txt and example.txt.",
    )
    for name, key in KEYS.items():
        parser.add_argument(
            f"--{name}",
            *SHORT.get(name, ()),
            default=argparse.SUPPRESS,
            type=key.rule.read,
            help=f"{key.remark} ({script.get(name, key.default)!r})".replace("%", "%%"),
            metavar="VALUE",
            **({"nargs": "?", "const": True} if type(key.default) is bool else {}),
            **({"nargs": "+"} if name == "data" else {}),
        )
    known, unknown = parser.parse_known_args(arguments)
    if len(getattr(known, "data", ())) == 1:
        known.data = known.data[0]
    if unknown:
        names = [text.lstrip("-").split("=")[0] for text in unknown if text.startswith("--")]
        problems = [unknown_key(name) for name in names] or [f"stray argument {unknown[0]!r}"]
        raise ConfigError("command line: " + "; ".join(problems + problems_of(vars(known))))
    return vars(known)
