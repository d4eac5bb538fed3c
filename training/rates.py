"""Which learning rate suits a run: it grows from update to update, until the loss rises.

The loss falls fastest while a model learns how often each token occurs. AdamW's rate for a whole
run lies before the end of that fall, Muon's at its end (docs/recipe.md). How long the loss stays
low after the fall says nothing.
"""

import math
from collections.abc import Sequence
from itertools import count

from reports.plot import plot_rates
from system.errors import ConfigError, NonFiniteError
from system.process import only_warn
from training.learner import dropout_seeds
from training.run import Run
from training.wanted import Wanted

LOWEST, HIGHEST = 1e-5, 1.0
SECONDS, LEAST_STEPS, MOST_STEPS = 40, 10, 240
MEASURED_SECONDS = 1.0  # for how long an update takes
KEPT = 0.7  # of the mean loss so far, by each update
TOO_BAD = 1.2  # times the lowest mean loss: what comes then is worse still
PARTS = {"adamw": 0.7, "muon": 0.95}  # of the fall, at whose end the recommended rate lies
PART = 0.9  # for other optimizers
LEAST_FALL = 0.03  # of the first loss: less of it may be chance
NAME = "learning_rates.png"


def find_rate(run: Run, wanted: Wanted) -> str:
    """Tries rates from low to high and draws the losses; what it found, and a command to paste."""
    rates, losses = tried(run, num_rates=num_rates_in_time(run))
    means = smooth(losses)
    part = PARTS.get(run.config["optimizer"], PART)
    has_fallen = min(means) < (1 - LEAST_FALL) * means[0]
    found = rate_of_fall(rates, means, part=part) if has_fallen else math.nan
    recommended = float(f"{found:.2g}")
    path = run.folder / NAME
    if run.team.is_first:
        with only_warn(f"no {NAME}"):
            plot_rates(path, rates, means, recommended=recommended)
    tested = f"rates     {len(rates)} updates from {rates[0]:.0e} to {rates[-1]:.0e}: {path}\n"
    if not has_fallen:
        return f"{tested}          the loss has hardly fallen at any: none is recommended"
    return (
        f"{tested}          {part:.0%} of the fall of the loss is over at {recommended:g}\n"
        f"next      {wanted.command({'learning_rate': f'{recommended:g}'})}"
    )


def num_rates_in_time(run: Run) -> int:
    """How many updates the test may take, the same in all processes; ConfigError if too few."""
    inputs, targets = run.batch(0)
    seeds = dropout_seeds(run.config["seed"], 0, len(inputs))
    seconds = run.learner.seconds_per_update(inputs, targets, seeds, measured=MEASURED_SECONDS)
    num_rates = run.team.highest(min(MOST_STEPS, round(SECONDS / seconds)) * run.team.is_first)
    if num_rates < LEAST_STEPS:
        raise ConfigError(
            f"config: find_lr has {SECONDS} s for {LEAST_STEPS} updates or more, and one takes "
            f"{seconds:.1f} s here: lower batch_size x grad_accum_steps"
        )
    return num_rates


def tried(run: Run, *, num_rates: int) -> tuple[list[float], list[float]]:
    """Rates and the loss of an update at each, up to where the loss has become much worse."""
    rates: list[float] = []
    losses: list[float] = []
    for step in range(num_rates):
        rate = LOWEST * (HIGHEST / LOWEST) ** (step / (num_rates - 1))
        inputs, targets = run.batch(step)
        seeds = dropout_seeds(run.config["seed"], step, len(inputs))
        try:
            record = run.learner.update(inputs, targets, learning_rate=rate, seeds=seeds)
        except NonFiniteError:
            if not rates:
                raise
            break
        rates.append(rate)
        losses.append(record.loss)
        means = smooth(losses)
        if means[-1] > TOO_BAD * min(means):
            break
    return rates, losses


def rate_of_fall(rates: Sequence[float], means: Sequence[float], *, part: float) -> float:
    """The lowest rate at which this part of the fall from the first mean to the lowest is over."""
    low_enough = means[0] - part * (means[0] - min(means))
    return next(rate for rate, mean in zip(rates, means, strict=True) if mean <= low_enough)


def smooth(losses: Sequence[float]) -> list[float]:
    """Of each loss and those before it the mean, in which older ones count for less."""
    means, total = [], 0.0
    for number, loss in zip(count(1), losses, strict=False):
        total = KEPT * total + (1 - KEPT) * loss
        means.append(total / (1 - KEPT**number))
    return means
