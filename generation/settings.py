"""How a text is written: every setting, its rule, and its value where none is given."""

import math
import numbers
import operator
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

from system.errors import SamplingError

SAMPLE = {"temperature": 0.8}  # of the samples in training and of generate.py


class Rule(NamedTuple):
    """What a setting may be: its type, a test of the number, and both in words."""

    kind: type[int] | type[float]
    is_right: Callable[[Any], bool]
    words: str


def is_share(value: float) -> bool:
    return 0 < value <= 1


SHARE = Rule(float, is_share, "a number in (0, 1]")
COUNT = Rule(int, lambda value: value >= 1, "a whole number >= 1")
LENGTH = Rule(int, lambda value: value >= 0, "a whole number >= 0")
RULES = {
    "temperature": Rule(float, lambda value: 0 <= value < math.inf, "a number >= 0"),
    "top_k": COUNT,
    "top_p": SHARE,
    "min_p": SHARE,
    "typical_p": SHARE,
    "repetition_penalty": Rule(float, lambda value: 0 < value < math.inf, "a number > 0"),
    "no_repeat_ngram": LENGTH,
    "max_new_tokens": LENGTH,
    "num_samples": COUNT,
    "num_beams": COUNT,
    "length_penalty": Rule(float, math.isfinite, "a number"),
    "seed": Rule(int, lambda value: 0 <= value < 2**63, "a whole number in [0, 2**63)"),
}


def plain_number(value: Any, kind: type) -> int | float | None:
    """The value as Python's own int or float, None if it is no such number: True is none."""
    try:
        if isinstance(value, bool) or not isinstance(value, numbers.Real):
            return None
        return operator.index(value) if kind is int else float(value)
    except (TypeError, OverflowError):
        return None


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; SamplingError names every setting that is out of range.

    Temperature 0 is greedy: the likeliest token, after the two rules against repetition.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise SamplingError("sampling: " + "; ".join(problems))

    def _problems(self) -> list[str]:
        """What is wrong; numbers of other libraries become Python's own."""
        problems = []
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if name not in RULES or (value is None and field.default is None):
                continue
            rule = RULES[name]
            number = plain_number(value, rule.kind)
            if number is None or not rule.is_right(number):
                problems.append(f"{name}={value!r} is not {rule.words}")
            object.__setattr__(self, name, number)
        return problems

    def __str__(self) -> str:
        """What is not as by default: "temperature 0.8, top-k 40", or "greedy"."""
        values = {field.name: getattr(self, field.name) for field in fields(Sampling)[1:]}
        given = {name: value for name, value in values.items() if value != getattr(Sampling, name)}
        shown = [f"{name.replace('_', '-')} {value}" for name, value in given.items()]
        return ", ".join(
            [f"temperature {self.temperature}" if self.temperature else "greedy", *shown]
        )


@dataclass(frozen=True)
class Settings(Sampling):
    """All settings of `TextGenerator`: how tokens are chosen, how many, and where a text ends.

    A seed that is not given is drawn. The samples of a prompt have the seeds seed, seed + 1, ...
    With `num_beams` above 1 nothing is drawn, see beam.py.
    """

    max_new_tokens: int = 100
    num_samples: int = 1
    num_beams: int = 1
    length_penalty: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()  # strings at which a text ends
    stop_tokens: Collection[int] = ()  # ids that end it too; none of both is shown

    def _problems(self) -> list[str]:
        problems = super()._problems()
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        if not all(isinstance(text, str) and text for text in stop):
            problems.append(f"stop={self.stop!r} has something else than strings of some text")
        idle = [f.name for f in fields(Sampling) if getattr(self, f.name) != f.default]
        idle += ["num_samples"] * (self.num_samples != 1)
        if not problems and self.num_beams > 1 and idle:
            problems.append(f"beams are searched, not drawn: leave out {', '.join(idle)}")
        object.__setattr__(self, "stop", stop)
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbelow(2**31))
        return problems

    def __str__(self) -> str:
        return f"{self.num_beams} beams" if self.num_beams > 1 else super().__str__()
