"""Muon: the update of a matrix is its momentum, all singular values of which have become about one.

Shapes: N matrices of R rows and C columns.
"""

from typing import Any

import torch
from torch import Tensor, nn

from training.engines import spread, whole

MOMENTUM = 0.9  # with Nesterov's look ahead (Jordan et al. 2024: 0.95, for longer runs)
LIKE_ADAMW = 0.2  # root mean square of AdamW's updates: rates carry over (Liu et al. 2025)
AT_ONCE = 8  # parameters that are updated together: more would only take more memory
LEAST = 1e-7  # norm
# Each triple (a, b, c) is the a x + b x^3 + c x^5 that comes nearest to 1 for all that the one
# before leaves of [0.01, 1], and 2% more for roundings (Amsel et al. 2025). The three together take
# that to [0.71, 1.29]: as near as five times the same polynomial does.
COEFFICIENTS = (
    (7.9424, -22.2873, 15.8239),
    (3.5875, -2.5845, 0.4893),
    (2.6604, -1.9134, 0.4194),
)


class Muon(torch.optim.AdamW):
    """Muon for parameter groups that have `num_parts`, AdamW for the others.

    A parameter of such a group is so many matrices, one below the other; all have the same shape.
    """

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            matrices = group["params"] if "num_parts" in group else []
            for start in range(0, len(matrices), AT_ONCE):
                self.update_matrices(matrices[start : start + AT_ONCE], group)
        super().step()  # passes over what has no gradient

    def update_matrices(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        """Updates the parameters, and drops their gradients.

        Weights decay where the update makes them smaller too (Chen et al. 2025).
        """
        directions = torch.stack([whole(self.direction(parameter)) for parameter in parameters])
        matrices = directions.unflatten(1, (group["num_parts"], -1)).flatten(0, 1)  # (N, R, C)
        updates = orthogonalized(matrices).view_as(directions)
        size = group["lr"] * LIKE_ADAMW * max(matrices.shape[1:]) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            own = spread(update, parameter)
            shrinks = (own * parameter).gt_(0)
            parameter.addcmul_(parameter, shrinks, value=-group["lr"] * group["weight_decay"])
            parameter.sub_(own, alpha=size)
            parameter.grad = None

    def direction(self, parameter: nn.Parameter) -> Tensor:
        """The gradient and its running mean, as Nesterov weighs them, in place of the gradient."""
        state = self.state[parameter]
        if not state:
            state["step"] = torch.zeros(())  # AdamW wants to find one in every state
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        return parameter.grad.lerp_(state["momentum"], MOMENTUM)


def orthogonalized(matrices: Tensor) -> Tensor:
    """About U V^T of each (N, R, C), where U S V^T is its singular value decomposition.

    It is x times a polynomial of x x^T or x^T x, the smaller: only two of the products have the
    longer side. The type of autocast suffices for them.
    """
    is_tall = matrices.size(1) > matrices.size(2)
    device = matrices.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else torch.float32
    x = (matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=LEAST)).to(dtype)
    gram = x.mT @ x if is_tall else x @ x.mT
    bound = gram.norm(dim=(1, 2), keepdim=True).clamp(min=LEAST)  # of squared singular values
    gram = gram / bound
    factor = polynomial(gram, *COEFFICIENTS[0])
    for coefficients in COEFFICIENTS[1:]:
        factor = polynomial(factor @ gram @ factor, *coefficients) @ factor
    return (x @ factor.mT if is_tall else factor @ x).to(matrices.dtype) / bound.sqrt()


def polynomial(gram: Tensor, a: float, b: float, c: float) -> Tensor:
    """a + b gram + c gram^2: times x it is a x + b x^3 + c x^5."""
    result = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
    result.diagonal(dim1=1, dim2=2).add_(a)
    return result
