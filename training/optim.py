"""How weights are updated: the optimizers by name, their parameter groups, clipping."""

from collections.abc import Callable, Iterable
from functools import partial
from itertools import chain
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from training.engines import whole
from training.muon import Muon

BETAS = (0.9, 0.95)  # Brown et al. 2020 (GPT-3), appendix B


def parameter_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """Every parameter that learns in one of two groups: matrices decay, biases and norms do not."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]


def muon_groups(model: nn.Module, *, weight_decay: float) -> list[dict[str, Any]]:
    """The same, then the matrices of the blocks by shape: queries, keys and values are three.

    Those of adapters are no such matrices: only their products are.
    """
    matrices: dict[tuple[torch.Size, int], list[nn.Parameter]] = {}
    for name, parameter in model.blocks.named_parameters():
        is_matrix = parameter.dim() == 2 and ".lora_" not in name
        if parameter.requires_grad and is_matrix:
            num_parts = 3 if name.endswith("qkv.weight") else 1
            matrices.setdefault((parameter.shape, num_parts), []).append(parameter)
    taken = set(chain(*matrices.values()))
    groups = parameter_groups(model, weight_decay=weight_decay)
    for group in groups:
        group["params"] = [p for p in group["params"] if p not in taken]
    for (_, num_parts), own in matrices.items():
        groups.append({"params": own, "weight_decay": weight_decay, "num_parts": num_parts})
    return groups


def adamw(
    groups: list[dict[str, Any]], kind: type[torch.optim.AdamW] = torch.optim.AdamW
) -> torch.optim.Optimizer:
    """AdamW (Loshchilov & Hutter 2019), one fused kernel where the device has it."""
    devices = {parameter.device.type for group in groups for parameter in group["params"]}
    return kind(groups, betas=BETAS, fused=devices <= {"cpu", "cuda"})


class OptimizerKind(NamedTuple):
    """How to build it from parameter groups, and how many numbers it keeps for each parameter."""

    build: Callable[[list[dict[str, Any]]], torch.optim.Optimizer]
    num_moments: int
    num_fewer_in_blocks: int = 0  # for each parameter of their matrices
    groups: Callable[..., list[dict[str, Any]]] = parameter_groups


OPTIMIZERS = {
    "adamw": OptimizerKind(adamw, num_moments=2),
    "muon": OptimizerKind(partial(adamw, kind=Muon), 2, 1, muon_groups),
}


def build_optimizer(
    model: nn.Module, name: str = "adamw", *, weight_decay: float
) -> torch.optim.Optimizer:
    """The named optimizer over the model's parameters; its rate is set before each update."""
    kind = OPTIMIZERS[name]
    return kind.build(kind.groups(model, weight_decay=weight_decay))


def set_weight_decay(
    optimizer: torch.optim.Optimizer, model: nn.Module, name: str, *, weight_decay: float
) -> None:
    """Gives each of its parameter groups the decay that it would be built with."""
    built = OPTIMIZERS[name].groups(model, weight_decay=weight_decay)
    for group, new in zip(optimizer.param_groups, built, strict=True):
        group["weight_decay"] = new["weight_decay"]


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Gives every parameter group the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Norm of all the gradients as it was; they are scaled down in place where it is larger.

    As torch's clip_grad_norm_, but gradients that are small enough are not multiplied by 1.
    """
    parameters = list(parameters)
    norm = whole(get_total_norm([p.grad for p in parameters if p.grad is not None]))
    if not norm.is_cpu or norm > max_norm:  # elsewhere, asking would wait for the device
        clip_grads_with_norm_(parameters, max_norm, norm)
    return norm
