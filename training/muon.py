"""Muon: the update of a matrix is its momentum with all singular values set to about one."""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor

from training.engines import spread, whole

MOMENTUM = 0.95
COEFFICIENTS = ((3.4445, -4.7750, 2.0315),) * 5  # of a x + b x^3 + c x^5 (Jordan et al. 2024)
LEAST_NORM = 1e-7
LIKE_ADAMW = 0.2  # root mean square of AdamW's updates (Liu et al. 2025)


class Muon(torch.optim.AdamW):
    """Muon for parameter groups that have `num_parts`, AdamW for the others.

    A parameter is so many matrices, one below the other, each with an update of its own.
    """

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            if "num_parts" in group:
                self.update_matrices(group)
        super().step()  # passes over what has no gradient

    def update_matrices(self, group: dict[str, Any]) -> None:
        """Updates the group's parameters, and drops their gradients."""
        directions, by_shape = [], defaultdict(list)
        for parameter in group["params"]:
            directions.append(whole(self.direction(parameter)))
            for matrix in directions[-1].chunk(group["num_parts"]):
                by_shape[matrix.shape].append(matrix)
        for shape, matrices in by_shape.items():
            scale = LIKE_ADAMW * max(shape) ** 0.5
            updates = orthogonalized(torch.stack(matrices)).mul_(scale)
            torch._foreach_copy_(matrices, list(updates))
        for parameter, direction in zip(group["params"], directions, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(spread(direction, parameter), alpha=group["lr"])
            parameter.grad = None

    def direction(self, parameter: Tensor) -> Tensor:
        """The gradient and its running mean, as Nesterov weighs them."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())  # AdamW wants to find one in every state
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp(state["momentum"], MOMENTUM)


def orthogonalized(matrices: Tensor) -> Tensor:
    """Of each matrix (N, rows, columns) about U V^T, where U S V^T is its decomposition."""
    if matrices.size(1) > matrices.size(2):
        return orthogonalized(matrices.mT).mT
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=LEAST_NORM)
    for a, b, c in COEFFICIENTS:
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x
