"""How weights are updated: parameter groups, AdamW, the learning rate of each step."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

BETAS = (0.9, 0.95)  # Brown et al. 2020 (GPT-3), appendix B


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


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Norm of all the gradients as it was; they are scaled down in place where it is larger.

    As torch's clip_grad_norm_, but gradients that are small enough are not multiplied by 1.
    """
    parameters = list(parameters)
    norm = get_total_norm([p.grad for p in parameters if p.grad is not None])
    if not norm.is_cpu or norm > max_norm:  # elsewhere, asking would wait for the device
        clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
