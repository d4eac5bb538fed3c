"""How gradients and weights are spread over the processes: not at all, copied, or in parts.

Pieces of a batch add to the gradients, each within `piece()`; after `synchronise()` the gradients
are their means over the processes. Nobody waits for another process between the two, unless the
weights themselves are spread.
"""

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from torch import Tensor, distributed, nn

from adapters.lora import plain_weights
from adapters.products import FrozenProduct
from system.errors import OutOfRoomError
from system.machine import Machine
from training.loss import NextTokenLoss
from training.memory import NO_ROOM, Attempt, attempt, enduring
from training.processes import Processes


class Whole:
    """One process has everything."""

    is_sharded = False
    attempt = staticmethod(attempt)  # it ends with the first lack of memory

    def __init__(self, objective: NextTokenLoss, machine: Machine, config: dict[str, Any]) -> None:
        self.bare, self.machine = objective, machine
        self.model = objective.model
        self.renew(config)

    def renew(self, config: dict[str, Any]) -> None:
        """Compiles the objective, which has changed."""
        self.objective = self.trained = self.machine.compiled(self.bare, config["compile"])

    def piece(self, is_last: bool) -> AbstractContextManager:
        """Around forward and backward of a piece."""
        return nullcontext()

    def synchronise(self, inputs: Tensor, targets: Tensor) -> None:
        """After the last piece of an update."""

    def weights(self) -> dict[str, Tensor]:
        """The weights of the plain model by name, whole; all processes have to ask."""
        return plain_weights(self.model)

    def forget(self) -> None:
        """After weights were changed by other than the optimizer: copies of them are old."""


class Replicated(Whole):
    """Every process has all the weights (DistributedDataParallel)."""

    def renew(self, config: dict[str, Any]) -> None:
        super().renew(config)
        is_cuda = self.machine.device.type == "cuda"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 has a new name for the last
            self.trained = nn.parallel.DistributedDataParallel(
                self.objective,
                device_ids=[self.machine.device.index] if is_cuda else None,
                gradient_as_bucket_view=True,
                broadcast_buffers=False,  # those are matrices in few bits, which never change
            )

    def piece(self, is_last: bool) -> AbstractContextManager:
        return self.trained.no_sync()

    def synchronise(self, inputs: Tensor, targets: Tensor) -> None:
        """Adds a piece of no rows, the only one that DDP exchanges gradients after.

        So a process that runs out of memory does that before it has begun an exchange, and all
        can go back. What that costs: the exchange does not overlap with the last backward pass.
        """
        self.trained(inputs[:0], targets[:0], num_tokens=1).backward()


class Sharded(Whole):
    """Every process has a part of each weight, gradient and moment (FSDP2)."""

    is_sharded = True

    def __init__(self, objective: NextTokenLoss, machine: Machine, config: dict[str, Any]) -> None:
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard  # takes a second

        mesh = init_device_mesh(machine.device.type, (distributed.get_world_size(),))
        model, self.tried = objective.model, Attempt()
        for module in (*model.blocks, objective):
            fully_shard(module, mesh=mesh)
        objective._of_hidden = enduring(objective._of_hidden, self.tried)
        for module in (model.input_embedding, model.positional_encoding, model.final_norm):
            module.forward = enduring(module.forward, self.tried)
        for module in objective.modules():
            if isinstance(module, FrozenProduct):
                module.may_keep = False
        super().__init__(objective, machine, config)

    def renew(self, config: dict[str, Any]) -> None:
        self.objective = self.trained = self.bare
        for block in self.model.blocks:
            block.forward = enduring(block.forward, self.tried)

    @contextmanager
    def attempt(self) -> Iterator[Attempt]:
        """Inside, a process without room goes on: the others wait for its part of each weight."""
        self.tried.has_failed = False
        with attempt() as whole:
            yield self.tried
        if whole.has_failed:  # in an exchange
            raise OutOfRoomError(NO_ROOM + ", then --resume")

    def piece(self, is_last: bool) -> AbstractContextManager:
        self.objective.set_requires_gradient_sync(is_last)
        return nullcontext()

    def weights(self) -> dict[str, Tensor]:
        return {name: whole(weight) for name, weight in super().weights().items()}

    def forget(self) -> None:
        self.objective.reshard()  # a forward pass without a backward one leaves the table whole


def engine_for(
    team: Processes, objective: NextTokenLoss, machine: Machine, config: dict[str, Any]
) -> Whole:
    """The way to train that the config asks for."""
    if not team.is_launched:
        return Whole(objective, machine, config)
    return {"ddp": Replicated, "fsdp": Sharded}[config["parallel"]](objective, machine, config)


def whole(tensor: Tensor) -> Tensor:
    """The tensor that all processes have parts of; a whole one as it is."""
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def spread(moment: Tensor, parameter: Tensor) -> Tensor:
    """Of a whole tensor like the parameter what this process has of it; a number as it is."""
    if moment.shape != parameter.shape or not hasattr(parameter, "full_tensor"):
        return moment
    from torch.distributed.tensor import distribute_tensor

    place = parameter.device_mesh, parameter.placements
    return distribute_tensor(moment.to(parameter.device), *place, src_data_rank=None)
