"""The learning rate as a function of the step and of the progress of the run."""

import math
from collections.abc import Callable

PLATEAU = 0.03  # of a loss at the highest rate, if all of that is yet to fall (docs/recipe.md)
DECAY_PART = 0.2  # the share of the steps in which the "decay" schedule falls
SCHEDULES: dict[str, Callable[[float], float]] = {  # progress in [0, 1] -> what is left of the rate
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "decay": lambda progress: min(1.0, (1 - progress) / DECAY_PART),
    "linear": lambda progress: 1 - progress,
}


def learning_rate_at(
    step: int,
    progress: float,
    *,
    learning_rate: float,
    warmup_steps: int = 0,
    lr_schedule: str = "constant",
    lr_min_ratio: float = 0.1,
) -> float:
    """The rate of update number `step`, counted from 0, of a run that is so far: 0 to 1.

    It rises linearly to `learning_rate` over the warm-up. Then "constant" stays; "cosine" falls
    to `lr_min_ratio` of it at progress 1 (Loshchilov & Hutter 2017); "decay" stays and falls
    linearly in the last fifth (Hu et al. 2024); "linear" falls all the way.
    """
    if step < warmup_steps:
        return learning_rate * (step + 1) / warmup_steps
    remaining = SCHEDULES[lr_schedule](progress)
    return learning_rate * (lr_min_ratio + (1 - lr_min_ratio) * remaining)


def tolerance_at(progress: float, *, lr_schedule: str, lr_min_ratio: float) -> float:
    """How much worse than the best, as a share of it, an evaluation may be without a meaning.

    At a high rate losses go up and down on a plateau, and fall only as the rate does.
    """
    schedule = SCHEDULES[lr_schedule]
    return PLATEAU * (1 - lr_min_ratio) * (schedule(progress) - schedule(1.0))
