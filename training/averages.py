"""Averages of the weights over the updates: they often predict better than the weights do."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from training.engines import Whole, spread

EMA_POWER = 7.94  # an average with a memory of a tenth of the run (Karras et al. 2024)
TAIL = 0.8  # the progress at which a tail begins
FIRST_UPDATES = 10  # about so many in which a fixed decay is less than that


class Averages:
    """What `average_weights` asks for, in float32; for "" there is nothing, and nothing is done.

    "ema" forgets at a rate that suits the length of the run so far, a number is the share that an
    update keeps of the average before it, "tail" is the mean since the last fifth began.
    """

    def __init__(self, model: nn.Module, engine: Whole, how: str | float) -> None:
        self.how, self.engine = how, engine
        named = model.named_parameters() if how else ()
        self.parameters = {name: p for name, p in named if p.requires_grad}
        self.values = {name: p.detach().float().clone() for name, p in self.parameters.items()}
        self.num_in_tail = 0
        self.loss = math.inf  # of the latest evaluation

    def add(self, step: int, progress: float) -> None:
        """Takes the weights after update number `step`, counted from 0, into the average."""
        self.num_in_tail = self.num_in_tail + 1 if self.values and progress >= TAIL else 0
        weight = self.weight_of_newest(step + 1)
        for name, value in self.values.items():
            local(value).lerp_(local(self.parameters[name]).float(), weight)

    def restart(self) -> None:
        """Forgets what there was: the weights are those of another model."""
        self.num_in_tail, self.loss = 0, math.inf
        for name, value in self.values.items():
            local(value).copy_(local(self.parameters[name]))

    def weight_of_newest(self, num_updates: int) -> float:
        """The newest weights' share of the average, 1 for the first ones."""
        if self.how == "tail":
            return 1 / max(1, self.num_in_tail)
        if self.how == "ema":
            return 1 - (1 - 1 / num_updates) ** EMA_POWER
        return 1 - min(self.how or 0, (num_updates - 1) / (num_updates + FIRST_UPDATES))

    @contextmanager
    def in_place(self, wanted: bool = True) -> Iterator[None]:
        """Inside, the model has the averages in place of its weights, if they are `wanted`."""
        if not (wanted and self.values):
            yield
            return
        kept = {name: local(p).clone() for name, p in self.parameters.items()}
        self.put(self.values)
        try:
            yield
        finally:
            self.put(kept)

    def put(self, tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            local(self.parameters[name]).copy_(local(tensor))
        self.engine.forget()

    def restore(self, tensors: dict[str, Tensor], num_in_tail: int) -> None:
        """Goes on from those of a checkpoint; ValueError if one has another shape."""
        for name in self.values.keys() & tensors.keys():
            if tensors[name].shape != self.values[name].shape:
                raise ValueError(f"the average of {name} has another shape")
            own = spread(tensors[name].float(), self.parameters[name])
            local(self.values[name]).copy_(local(own))
        self.num_in_tail = num_in_tail


def local(tensor: Tensor) -> Tensor:
    """What this process has of the tensor, sharing its memory, without a gradient."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
