"""How weights are updated: parameter groups, AdamW, the learning rate of each step."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

BETAS = (0.9, 0.95)  # Brown et al. 2020 (GPT-3), appendix B
DECAY_PART = 0.2  # the share of the steps in which the "decay" schedule falls
SCHEDULES: dict[str, Callable[[float], float]] = {  # progress in [0, 1] -> what is left of the rate
    "constant": lambda progress: 1.0,
    "cosine": lambda progress: 0.5 * (1 + math.cos(math.pi * progress)),
    "decay": lambda progress: min(1.0, (1 - progress) / DECAY_PART),
}


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Every parameter in one of two groups: matrices decay, vectors (biases, norms) do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def build_optimizer(model: nn.Module, *, weight_decay: float) -> torch.optim.AdamW:
    """AdamW (Loshchilov & Hutter 2019), one fused kernel where the device has it; rate not set."""
    device_type = next(model.parameters()).device.type
    return torch.optim.AdamW(
        parameter_groups(model, weight_decay=weight_decay),
        betas=BETAS,
        fused=device_type in ("cpu", "cuda"),
    )


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


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Norm of all the gradients as it was; they are scaled down in place where it is larger.

    As torch's clip_grad_norm_, but gradients that are small enough are not multiplied by 1.
    """
    parameters = list(parameters)
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not norm.is_cpu or norm > max_norm:  # elsewhere, asking would wait for the device
        clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every parameter group the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
