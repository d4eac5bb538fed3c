"""How much memory training will take on each device, from the config and one block of the model.

Shapes: B windows at once, T tokens of each, C channels, L blocks, V rows of the table. Bytes that a
block keeps for its backward pass depend on how attention and dropout are computed here, so they
are counted in a forward pass of one real block; all else is arithmetic.
"""

from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from adapters.products import FrozenProduct
from model import ATTENTIONS
from system.machine import Machine
from training.capacity import Learning, outline
from training.loss import CHUNK_SIZE
from training.settings import AUTO

NUM_DEVICES = (1, 2, 4, 8)
HOLES = {"ddp": 1.12, "fsdp": 1.3}  # in a heap that keeps what is freed (docs/cluster.md)
LIBRARIES = 60_000_000  # bytes that they take at their first products


@dataclass(frozen=True)
class Block:
    """Bytes of one block: its parameters, and what it keeps for each window and in any case."""

    weights: int
    kept_per_window: int
    kept: int

    @classmethod
    def measured(cls, config: dict[str, Any], machine: Machine) -> "Block":
        """Of the last block, through which a gradient goes if any does."""
        block = outline(config, 1, dropout=config["dropout"]).blocks[-1]
        shape = config["seq_len"], config["embedding_dim"]
        with torch.random.fork_rng(devices=[]), torch.device(machine.device):
            block = deepcopy(block).to_empty(device=machine.device)
            way = machine.ways.get("attention", "torch")
            block.attention.causal_attention = ATTENTIONS[way]
            one, two = (kept_bytes(block, torch.zeros(n, *shape), machine) for n in (1, 2))
        return cls(sum(4 * p.numel() for p in block.parameters()), two - one, 2 * one - two)


def kept_bytes(block: nn.Module, x: Tensor, machine: Machine) -> int:
    """Bytes that a forward pass keeps beside the weights: for the backward pass, or for good."""
    known = {weight.data_ptr() for weight in block.state_dict().values()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), machine.autocast():
        output = block(x.requires_grad_())
    del output
    products = (module for module in block.modules() if isinstance(module, FrozenProduct))
    return sum(kept.values()) + sum(product.nbytes for product in products)


def peak_bytes(
    config: dict[str, Any], num_rows: int, machine: Machine, block: Block, num_devices: int = 1
) -> int:
    """Bytes of the fullest moment of an update on each of so many devices, for tensors."""
    T, C, L = config["seq_len"], config["embedding_dim"], config["num_layers"]
    itemsize, is_cpu = machine.dtype.itemsize, machine.device.type == "cpu"
    batch = config["batch_size"] * config["grad_accum_steps"]
    B = min(config["batch_size"], -(-batch // num_devices))
    learns = Learning.of(config, num_rows)
    weights = learns.model_bytes
    kept = block.kept + B * block.kept_per_window
    activations = L * kept
    if config["checkpoint_activations"]:  # but casts of weights are kept either way
        activations = L * (block.kept + 4 * B * T * C) + B * block.kept_per_window
    chunk = min(int(machine.ways.get("chunk_size", CHUNK_SIZE)), B * T)
    logits = chunk * num_rows * itemsize + B * T * C * (8 + itemsize)
    is_copied = itemsize < 4 or learns.has_packed_table
    head_copy = num_rows * C * itemsize if is_copied else 0
    states = weights - learns.packed_bytes + learns.moment_bytes
    states += weights * (config["generations"] not in (1, AUTO))  # the teacher's
    gradients = 4 * learns.num_weights
    is_spread = num_devices > 1 and config["parallel"] == "fsdp"
    if is_spread:
        root = (
            weights - learns.packed_bytes - L * block.weights
        )  # gathered for a whole update, one block after the other
        states = states // num_devices + root + 2 * block.weights
        gradients = gradients // num_devices + (4 if is_cpu else 2) * root * learns.has_table
    elif num_devices > 1:
        states += gradients  # the buckets that DDP exchanges
    states += learns.packed_bytes  # which every process has
    # The table's gradient is a sum of products.
    table, one_product = (num_rows * C * size * learns.has_table for size in (4, itemsize))
    in_loss = states + activations + logits + head_copy + table + one_product
    at_the_end = states + gradients + table + kept
    heap = HOLES["fsdp" if is_spread else "ddp"] if is_cpu else 1
    return round(max(in_loss, at_the_end) * heap)


def peak_of(
    config: dict[str, Any],
    num_rows: int,
    machine: Machine,
    num_devices: int,
    *,
    resident: int | None = None,
) -> int:
    """Bytes of the fullest moment, as `peak_bytes`, of a block that is measured first.

    `resident` is what the process took before there was a model, if there is one.
    """
    resident = resident_bytes(machine) if resident is None else resident
    block = Block.measured(config, machine)
    return resident + peak_bytes(config, num_rows, machine, block, num_devices)


def table(config: dict[str, Any], num_rows: int, machine: Machine) -> str:
    """The peak on each of some numbers of devices, a column for each way to train."""
    resident, block = resident_bytes(machine), Block.measured(config, machine)
    ways = [(way, twice) for way in ("ddp", "fsdp") for twice in (False, True)]
    names = [way + ", activations twice" * twice for way, twice in ways]
    lines = ["devices  " + "  ".join(f"{name:>23}" for name in names)]
    for num_devices in NUM_DEVICES:
        cells = []
        for way, twice in ways:
            changed = {**config, "parallel": way, "checkpoint_activations": twice}
            peak = resident + peak_bytes(changed, num_rows, machine, block, num_devices)
            cells.append(f"{peak / 1e9:>20.2f} GB")
        lines.append(f"{num_devices:>7}  " + "  ".join(cells))
    return "\n".join(lines)


def resident_bytes(machine: Machine) -> int:
    """What the process takes beside its tensors: on a CPU that counts."""
    return psutil.Process().memory_info().rss + LIBRARIES if machine.device.type == "cpu" else 0
