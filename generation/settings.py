"""How a text is written: every setting, its rule, and its value where none is given."""

import math
import numbers
import secrets
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

from system.errors import SamplingError

SAMPLE = {"temperature": 0.8}  # of the samples in training and of generate.py


class Rule(NamedTuple):
    """What a setting may be: its type, a test of the number, and both in words."""

    kind: type[int] | type[float]
    is_right: Callable[[Any], bool]
    words: str

    def number(self, value: Any) -> int | float | None:
        """The value as Python's own int or float, None if it is none of the kind: True is not."""
        wanted = numbers.Integral if self.kind is int else numbers.Real
        is_number = isinstance(value, wanted) and not isinstance(value, bool)
        with suppress(OverflowError):  # 10**400 is no float
            return self.kind(value) if is_number else None


NUMBER = Rule(float, math.isfinite, "a number")
POSITIVE = Rule(float, lambda value: 0 < value < math.inf, "a number > 0")
NOT_NEGATIVE = Rule(float, lambda value: 0 <= value < math.inf, "a number >= 0")
SHARE = Rule(float, lambda value: 0 < value <= 1, "a number in (0, 1]")
COUNT = Rule(int, lambda value: value >= 1, "a whole number >= 1")
LENGTH = Rule(int, lambda value: value >= 0, "a whole number >= 0")
SEED = Rule(int, lambda value: 0 <= value < 2**63, "a whole number in [0, 2**63)")


def is_collection_of(kind: type, value: Any) -> bool:
    return isinstance(value, Collection) and all(isinstance(item, kind) for item in value)


def ruled(default: float | None, rule: Rule) -> Any:
    return field(default=default, metadata={"rule": rule})


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; SamplingError names every setting that is out of range.

    Temperature 0 is greedy: the likeliest token, after the two rules against repetition.
    """

    temperature: float = ruled(1.0, NOT_NEGATIVE)
    top_k: int | None = ruled(None, COUNT)
    top_p: float | None = ruled(None, SHARE)
    min_p: float | None = ruled(None, SHARE)
    typical_p: float | None = ruled(None, SHARE)
    repetition_penalty: float = ruled(1.0, POSITIVE)
    no_repeat_ngram: int = ruled(0, LENGTH)

    def __post_init__(self) -> None:
        problems = self._problems()
        if problems:
            raise SamplingError("sampling: " + "; ".join(problems))

    def _problems(self) -> list[str]:
        """What is wrong; numbers of other libraries become Python's own."""
        problems = []
        for setting in fields(self):
            name, value = setting.name, getattr(self, setting.name)
            if not setting.metadata or (value is None and setting.default is None):
                continue
            rule = setting.metadata["rule"]
            number = rule.number(value)
            if number is None or not rule.is_right(number):
                problems.append(f"{name}={value!r} is not {rule.words}")
            object.__setattr__(self, name, number)
        return problems

    def __str__(self) -> str:
        """What is not as by default: "temperature 0.8, top-k 40", or "greedy"."""
        shown = [f"temperature {self.temperature}" if self.temperature else "greedy"]
        for setting in fields(Sampling)[1:]:
            value = getattr(self, setting.name)
            if value != setting.default:
                shown.append(f"{setting.name.replace('_', '-')} {value}")
        return ", ".join(shown)


@dataclass(frozen=True)
class Settings(Sampling):
    """All settings of `TextGenerator`: how tokens are chosen, how many, and where a text ends.

    A seed that is not given is drawn. The samples of a prompt have the seeds seed, seed + 1, ...
    With `num_beams` above 1 nothing is drawn, see beam.py.
    """

    max_new_tokens: int = ruled(100, LENGTH)
    num_samples: int = ruled(1, COUNT)
    num_beams: int = ruled(1, COUNT)
    length_penalty: float = ruled(1.0, NUMBER)
    seed: int | None = ruled(None, SEED)
    stop: str | Sequence[str] = ()  # strings at which a text ends
    stop_tokens: Collection[int] = ()  # ids that end it too; none of both is shown

    def _problems(self) -> list[str]:
        problems = super()._problems()
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        if is_collection_of(str, stop) and "" not in stop:
            object.__setattr__(self, "stop", tuple(stop))
        else:
            problems.append(f"stop={stop!r} is neither a string of some text nor several of them")
        if not is_collection_of(numbers.Integral, self.stop_tokens):
            problems.append(f"stop_tokens={self.stop_tokens!r} is no collection of ids")
        idle = [f.name for f in fields(Sampling) if getattr(self, f.name) != f.default]
        idle += ["num_samples"] * (self.num_samples != 1)
        if not problems and self.num_beams > 1 and idle:
            problems.append(f"beams are searched, not drawn: leave out {', '.join(idle)}")
        if self.seed is None:
            object.__setattr__(self, "seed", secrets.randbelow(2**31))
        return problems

    def __str__(self) -> str:
        return f"{self.num_beams} beams" if self.num_beams > 1 else super().__str__()


RULES = {setting.name: setting.metadata["rule"] for setting in fields(Settings) if setting.metadata}


def setting_of(name: str, text: Any) -> int | float:
    """What somebody has typed, as the setting's number; SamplingError where it is none."""
    rule = RULES[name]
    try:
        return rule.kind(text)
    except (ValueError, OverflowError) as error:  # the latter: of inf as a whole number
        raise SamplingError(f"{name}={text!r:.99} is not {rule.words}") from error
