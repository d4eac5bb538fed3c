"""The ways with equal results by which a run can be computed; which of them, its start measures.

Shapes: B batch, T time, C channels, H heads, D = C / H head size, N = B * T tokens, V rows.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from model import ATTENTIONS, InputEmbeddings
from system.choice import Choices, Piece, Way, noise
from system.machine import Machine, Shape, choose_device, choose_precision, products
from training.loss import CHUNK_SIZE, NextTokenLoss

Config = Mapping[str, Any]
SIZES = ("batch_size", "seq_len", "embedding_dim", "num_layers", "num_heads", "ffn_hidden_dim")
ASKED = (*SIZES, "dropout", "precision")  # keys that the answers depend on
FEW_CORES = 4  # too few for some of them to be of a slower kind
LEAST_ROWS = 2048  # of a head in chunks: with fewer, the start of a chunk is most of it
NEAR = {"float32": 1e-3, "bfloat16": 3e-2, "float16": 3e-3}  # results, as a share of their norm


def machine_for(config: Config, num_rows: int, *, kept: Any = None) -> Machine:
    """The machine, and the ways to train the config's model with so many rows on it.

    What the config names is not measured, nor what a run that goes on has `kept` of its own.
    """
    device, _ = choose_device(config["device"])
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    kept = kept if isinstance(kept, dict) and kept.get("device", card) == card else {}
    choices = Choices(card, num_rows, *((name, config[name]) for name in ASKED), kept=kept)
    shapes = product_shapes(config, num_rows)
    threads = choices.of("threads", thread_ways(device, shapes), tolerance=NEAR["float32"])
    torch.set_num_threads(int(threads.name))
    _, reason = choose_device(config["device"])  # it names the threads
    precision = choose_precision(device, config["precision"], choices, shapes=shapes)
    said = f"{device} ({reason}), {precision}"
    said += " a core" if device.type == "cpu" and precision.rates else ""
    machine = Machine(device, getattr(torch, precision.name), said, {})
    for question, ways in tables(config, num_rows, machine).items():
        choices.of(question, ways, tolerance=NEAR[precision.name])
    choices.remember()
    names = {question: choice.name for question, choice in choices.made.items()}
    return replace(machine, ways={"device": card, "precision": precision.name, **names})


def product_shapes(config: Config, num_rows: int) -> list[Shape]:
    """The products of N tokens with the layers' weights, and with the head's."""
    N, C = config["batch_size"] * config["seq_len"], config["embedding_dim"]
    F, num_layers = config["ffn_hidden_dim"], config["num_layers"]
    blocks = [(N, *pair, num_layers) for pair in ((C, 3 * C), (C, C), (C, F), (F, C))]
    return [*blocks, (N, C, num_rows, 1)]


def thread_ways(device: torch.device, shapes: list[Shape]) -> dict[str, Way]:
    """All cores, or half of them where the others are slow.

    Only all if they are few, if a user has set how many, or if others are at work on them.
    """
    most = torch.get_num_threads()
    is_open = device.type == "cpu" and most >= FEW_CORES and "OMP_NUM_THREADS" not in os.environ
    is_free = psutil.getloadavg()[0] + most < (os.cpu_count() or 1) + 0.5
    counts = (most, most // 2) if is_open and is_free else (most,)
    return {str(count): partial(in_threads, count=count, shapes=shapes) for count in counts}


def in_threads(share: float, *, count: int, shapes: list[Shape]) -> list[Piece]:
    """The products, each in so many threads."""

    def run(product: Callable[[], Tensor]) -> Tensor:
        torch.set_num_threads(count)
        return product()

    pieces = products(share, shapes=shapes, device=torch.device("cpu"), dtype=torch.float32)
    return [piece._replace(run=partial(run, piece.run)) for piece in pieces]


def tables(config: Config, num_rows: int, machine: Machine) -> dict[str, dict[str, Way]]:
    """For each question about the rest of a step its ways by name."""
    common = {"config": config, "machine": machine}
    num_tokens = config["batch_size"] * config["seq_len"]
    sizes = (CHUNK_SIZE, 4 * CHUNK_SIZE) if num_tokens > CHUNK_SIZE else (CHUNK_SIZE,)
    first = "written" if config["dropout"] > 0 else "torch"  # the mask has to be made anyhow
    return {
        "attention": {
            name: partial(attention, attend=ATTENTIONS[name], **common)
            for name in dict.fromkeys([first, *ATTENTIONS])
        },
        "chunk_size": {
            str(size): partial(loss, chunk_size=size, num_rows=num_rows, **common) for size in sizes
        },
    }


def attention(
    share: float, *, attend: Callable[..., Tensor], config: Config, machine: Machine
) -> list[Piece]:
    """Attention forward and backward: the time is that with dropout, the result that without."""
    B, T, H = config["batch_size"], config["seq_len"], config["num_heads"]
    D = config["embedding_dim"] // H
    B, H = max(1, round(B * share)), max(1, round(H * min(1, B * share)))  # rows, or heads of one
    qkv = noise(B, T, 3, H, D).to(machine.device, machine.dtype).requires_grad_()
    d_mixed = noise(B, H, T, D).to(qkv)

    def gradient(dropout: float) -> Tensor:
        seeds = torch.arange(B)
        mixed = attend(*qkv.permute(2, 0, 3, 1, 4), dropout=dropout, seeds=seeds)
        return torch.autograd.grad((mixed * d_mixed).sum(), qkv)[0]

    exact = gradient(0.0)

    def run() -> Tensor:
        gradient(config["dropout"])
        return exact

    return [Piece(run, amount=12.0 * B * H * T * T * D)]


def loss(
    share: float, *, chunk_size: int, config: Config, num_rows: int, machine: Machine
) -> list[Piece]:
    """The loss of some chunks and its gradients, by a share of the head, but not a small one."""
    N, C = min(config["batch_size"] * config["seq_len"], 4 * CHUNK_SIZE), config["embedding_dim"]
    V = max(min(num_rows, LEAST_ROWS), round(num_rows * share))
    hidden, table = (noise(rows, C).to(machine.device).requires_grad_() for rows in (N, V))
    embedding = InputEmbeddings(1, 1)
    embedding.embedding.weight = nn.Parameter(table.detach())
    targets = (torch.arange(N) % V).to(machine.device)[None]
    model = SimpleNamespace(
        hidden_states=lambda *_, **given: hidden[None], input_embedding=embedding
    )
    objective = NextTokenLoss(model, chunk_size=chunk_size)

    def run() -> Tensor:
        with machine.autocast():
            total = objective(targets, targets, num_tokens=N)
        return torch.autograd.grad(total, hidden)[0]

    return [Piece(run, amount=6.0 * N * C * V)]
