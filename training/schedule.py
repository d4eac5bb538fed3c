"""The learning rate as a function of the step."""

import math
from collections.abc import Callable

DECAY_PART = 0.2  # the share of the steps in which the "decay" schedule falls
SCHEDULES: dict[str, Callable[[float], float]] = {  # progress in [0, 1] -> what is left of the rate
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "decay": lambda progress: min(1.0, (1 - progress) / DECAY_PART),
}


def learning_rate_at(
    step: int,
    num_steps: int,
    *,
    learning_rate: float,
    warmup_steps: int = 0,
    lr_schedule: str = "constant",
    lr_min_ratio: float = 0.1,
) -> float:
    """The rate of update number `step` of `num_steps`, counted from 0.

    It rises linearly to `learning_rate` over the warm-up. Then "constant" stays; "cosine" falls
    to `lr_min_ratio` of it at the last step (Loshchilov & Hutter 2017); "decay" stays and falls
    linearly in the last fifth of what follows the warm-up (Hu et al. 2024).
    """
    if step < warmup_steps:
        return learning_rate * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, num_steps - 1 - warmup_steps))
    remaining = SCHEDULES[lr_schedule](progress)
    return learning_rate * (lr_min_ratio + (1 - lr_min_ratio) * remaining)
