"""How far a run is on its way, from 0 at its first update to 1 at its last: by steps or by time."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from corpus.order import Batches
from training.processes import Processes

EXIT_SECONDS = 1.0  # that Python takes to end: half of it alone on a machine, 1.4 on a busy one
# What follows the last update but one; a checkpoint is as large as two models.
AT_THE_END = {"update": 1, "evaluation": 1, "write": 3, "report": 1}
PARTS = 1 << 40  # the processes agree on a share as on so many of these


def limits_of(config: dict[str, Any], batches: Batches) -> dict[str, float]:
    """The step at which each limit is reached, inf for one that is not set.

    With `max_minutes` the epochs repeat, so that `num_epochs` is none.
    """
    num_windows = -(-config["max_tokens"] // config["seq_len"])
    num_epochs, rest = divmod(num_windows, len(batches.dataset))
    steps = {
        "num_epochs": 0 if config["max_minutes"] else config["num_epochs"] * batches.num_per_epoch,
        "max_steps": config["max_steps"],
        "max_tokens": num_epochs * batches.num_per_epoch + -(-rest // batches.batch_size),
    }
    return {key: step or math.inf for key, step in steps.items()}


def last_step(config: dict[str, Any], batches: Batches) -> float:
    """The step at which the nearest of the limits is reached, inf where time alone is one."""
    return min(limits_of(config, batches).values())


class Progress:
    """The limits of a run and where it stands between them.

    Time is the first process's. What the end will take is taken from what the latest update,
    evaluation, write and report took, so that the rate has reached its end by then.
    """

    def __init__(self, config: dict[str, Any], batches: Batches, team: Processes) -> None:
        self.limits, self.team, self.began = limits_of(config, batches), team, time.monotonic()
        self.last_step = min(self.limits.values())
        self.seconds = 60 * config["max_minutes"] or math.inf
        self.used_before = 0.0  # in earlier sessions of the run
        self.used = 0.0  # by now, with what comes before the first update
        self.first: float | None = None  # what was used when time began to count
        self.first_step = 0  # how many updates there had been by then
        self.share = 0.0  # of the time for updates
        self.costs = dict.fromkeys(AT_THE_END, 0.0)  # seconds of the latest

    @contextmanager
    def timed(self, cost: str) -> Iterator[None]:
        """Takes down what happens inside as what it costs."""
        start = time.monotonic()
        yield
        self.costs[cost] = time.monotonic() - start

    def read(self) -> None:
        """Looks at the clock, the same one for all processes; what is over stays over."""
        if math.isinf(self.seconds) or self.share >= 1:
            return
        self.used = self.used_before + time.monotonic() - self.began
        at_the_end = sum(count * self.costs[cost] for cost, count in AT_THE_END.items())
        first = self.used if self.first is None else self.first
        whole = self.seconds - EXIT_SECONDS - at_the_end - first
        share = 1.0 if self.used - first >= whole else (self.used - first) / whole
        self.share = self.team.highest(round(share * PARTS) * self.team.is_first) / PARTS

    @property
    def lacks_a_report(self) -> bool:
        """Whether time is limited and nobody knows yet what a report takes."""
        return math.isfinite(self.seconds) and not self.costs["report"]

    def start(self, step: int) -> None:
        """Notes that an update begins after so many; the first one is where progress is 0."""
        if self.first is None:
            self.first, self.first_step = self.used, step

    def is_over(self, step: int) -> bool:
        """Whether no update may follow after so many."""
        return step >= self.last_step or self.share >= 1

    @property
    def limit(self) -> str:
        """The key of the nearest limit."""
        is_time = self.share >= 1 or math.isinf(self.last_step)
        return "max_minutes" if is_time else min(self.limits, key=self.limits.get)

    def place(self, step: int) -> str:
        """Where a run is that has made so many updates, in words."""
        of_steps = "" if math.isinf(self.last_step) else f" of {self.last_step:,}"
        minutes = f", {self.used / 60:.1f} of {self.seconds / 60:g} minutes used"
        return f"step {step:,}{of_steps}" + minutes * math.isfinite(self.seconds)

    def expected_steps(self, step: int) -> int | None:
        """How many updates the run will have had, None where that is not known yet."""
        timed = step - self.first_step
        by_time = self.first_step + timed / self.share if self.share > 0 else math.inf
        nearest = min(self.last_step, by_time)
        return None if math.isinf(nearest) else round(nearest)

    def at(self, step: int, *, warmup_steps: int) -> float:
        """Progress in [0, 1] of update number `step`, counted from 0, past the warm-up."""
        by_steps = (step - warmup_steps) / max(1, self.last_step - 1 - warmup_steps)
        return min(1.0, max(0.0, by_steps, self.share))

    def state_dict(self) -> dict[str, float]:
        """The time used, for a checkpoint; a run that is over will have used all of it."""
        if math.isinf(self.seconds) or self.first is None:
            return {}
        used = self.seconds if self.share >= 1 else self.used
        return {"used": used, "first": self.first, "first_step": self.first_step, **self.costs}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Goes on with what an earlier session has left of the time."""
        self.used_before, self.first = state.get("used", 0.0), state.get("first")
        self.first_step = state.get("first_step", 0)
        self.costs = {cost: state.get(cost, 0.0) for cost in AT_THE_END}
        self.read()
