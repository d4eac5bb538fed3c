"""How much memory training will take on each device, from the config and one block of the model.

Shapes: B windows at once, T tokens of each, C channels, L blocks, V rows of the table. Bytes that a
block keeps for its backward pass depend on how attention and dropout are computed here, so they
are counted in a forward pass of one real block; all else is arithmetic.
"""

from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from model import ATTENTIONS, TransformerBlock
from system.machine import Machine
from training.capacity import Learning, num_parameters
from training.loss import CHUNK_SIZE

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
        names = ("embedding_dim", "num_heads", "dropout", "ffn_hidden_dim")
        with torch.random.fork_rng(devices=[]), torch.device(machine.device):
            block = TransformerBlock(**{name: config[name] for name in names})
            way = machine.ways.get("attention", "torch")
            block.attention.causal_attention = ATTENTIONS[way]
            one, two = (
                kept_bytes(
                    block, torch.zeros(n, config["seq_len"], config["embedding_dim"]), machine
                )
                for n in (1, 2)
            )
        return cls(sum(4 * p.numel() for p in block.parameters()), two - one, 2 * one - two)


def kept_bytes(block: nn.Module, x: Tensor, machine: Machine) -> int:
    """Bytes that a forward pass keeps for the backward pass, beside the parameters."""
    known = {parameter.data_ptr() for parameter in block.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), machine.autocast():
        output = block(x.requires_grad_())
    del output
    return sum(kept.values())


def peak_bytes(
    config: dict[str, Any], num_rows: int, machine: Machine, block: Block, num_devices: int = 1
) -> int:
    """Bytes of the fullest moment of an update on each of so many devices."""
    T, C, L = config["seq_len"], config["embedding_dim"], config["num_layers"]
    itemsize, is_cpu = machine.dtype.itemsize, machine.device.type == "cpu"
    batch = config["batch_size"] * config["grad_accum_steps"]
    B = min(config["batch_size"], -(-batch // num_devices))
    weights, table = 4 * num_parameters(config, num_rows), 4 * num_rows * C
    kept = block.kept + B * block.kept_per_window
    activations = L * kept
    if config["checkpoint_activations"]:  # but casts of weights are kept either way
        activations = L * (block.kept + 4 * B * T * C) + B * block.kept_per_window
    chunk = min(int(machine.ways.get("chunk_size", CHUNK_SIZE)), B * T)
    logits = chunk * num_rows * itemsize + B * T * C * (8 + itemsize)
    head_copy = num_rows * C * itemsize if itemsize < 4 else 0
    learns = Learning.of(config, num_rows)
    states = weights + learns.moment_bytes
    gradients = 4 * learns.num_weights
    is_spread = num_devices > 1 and config["parallel"] == "fsdp"
    if is_spread:
        root = weights - L * block.weights  # gathered for a whole update, one block after the other
        states = states // num_devices + root + 2 * block.weights
        gradients = weights // num_devices + (4 if is_cpu else 2) * root
    elif num_devices > 1:
        states += weights  # the buckets that DDP exchanges
    one_product = num_rows * C * itemsize  # of the table's gradient, which is a sum of them
    in_loss = states + activations + logits + head_copy + table + one_product
    at_the_end = states + gradients + table + kept
    heap = HOLES["fsdp" if is_spread else "ddp"] if is_cpu else 1
    return round(max(in_loss, at_the_end) * heap) + resident_bytes(machine)


def peak_of(config: dict[str, Any], num_rows: int, machine: Machine, num_devices: int) -> int:
    """Bytes of the fullest moment, as `peak_bytes`, of a block that is measured first."""
    return peak_bytes(config, num_rows, machine, Block.measured(config, machine), num_devices)


def table(config: dict[str, Any], num_rows: int, machine: Machine) -> str:
    """The peak on each of some numbers of devices, a column for each way to train."""
    block = Block.measured(config, machine)
    ways = [(way, twice) for way in ("ddp", "fsdp") for twice in (False, True)]
    names = [way + ", activations twice" * twice for way, twice in ways]
    lines = ["devices  " + "  ".join(f"{name:>23}" for name in names)]
    for num_devices in NUM_DEVICES:
        cells = []
        for way, twice in ways:
            changed = {**config, "parallel": way, "checkpoint_activations": twice}
            peak = peak_bytes(changed, num_rows, machine, block, num_devices)
            cells.append(f"{peak / 1e9:>20.2f} GB")
        lines.append(f"{num_devices:>7}  " + "  ".join(cells))
    return "\n".join(lines)


def resident_bytes(machine: Machine) -> int:
    """What the process takes beside its tensors: on a CPU that counts."""
    return psutil.Process().memory_info().rss + LIBRARIES if machine.device.type == "cpu" else 0
