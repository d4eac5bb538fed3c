"""Who takes part in a benchmark: our training, its peers, its losses, and the floor below them all.

Each contestant is a function of the task and of the machine it runs on; it returns its step.

Shapes: B batch, T time, N = B * T tokens, C channels, V rows of the embedding.
"""

import importlib.util
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.turns import Step
from corpus.vocabulary import Vocabulary
from model import InputEmbeddings, Transformer, build_transformer
from system.machine import Machine, tune_process
from training.loss import ALIGNED_ROWS, NextTokenLoss
from training.optim import BETAS, build_optimizer, clip_gradients, set_learning_rate

LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 3e-4, 0.1, 1.0
LossOf = Callable[[Tensor, Tensor], Tensor]  # inputs and targets (B, T) -> the mean loss


@dataclass(frozen=True)
class Task:
    """What is trained: the model, the batch, and how many different tokens the text has."""

    batch_size: int = 8
    seq_len: int = 128
    embedding_dim: int = 256
    num_layers: int = 4
    num_heads: int = 8
    ffn_hidden_dim: int = 1024
    dropout: float = 0.1
    vocab_size: int = 50257
    num_used: int = 5178  # in the first megabyte of TinyStories
    seed: int = 0

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in asdict(self).items())

    @property
    def num_tokens(self) -> int:
        return self.batch_size * self.seq_len

    def vocabulary(self, *, is_shared: bool) -> Vocabulary:
        num_used = self.num_used if is_shared else self.vocab_size
        return Vocabulary.of(np.arange(num_used), self.vocab_size)

    def batch(self, number: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) of step `number`."""
        shape = (self.batch_size, self.seq_len + 1)
        windows = np.random.default_rng([self.seed, number]).integers(self.num_used, size=shape)
        return torch.from_numpy(windows[:, :-1]), torch.from_numpy(windows[:, 1:])

    def layers(self, num_rows: int) -> list[tuple[int, int, int]]:
        """(count, inputs, outputs) of the linear layers, the head with `num_rows` among them."""
        C, ffn, count = self.embedding_dim, self.ffn_hidden_dim, self.num_layers
        blocks = [(count, C, 3 * C), (count, C, C), (count, C, ffn), (count, ffn, C)]
        return [*blocks, (1, C, num_rows)]

    def flops(self, num_rows: int) -> float:
        """Of a step's matrix products, 2 a multiply-add; attention counts as a full square."""
        weights = sum(count * inputs * outputs for count, inputs, outputs in self.layers(num_rows))
        attention = 2 * self.num_layers * self.seq_len * self.embedding_dim
        return 6.0 * self.num_tokens * (weights + attention)


# ---------------------------------------------------------------- who trains


def our_model(task: Task, num_rows: int) -> Transformer:
    return build_transformer(
        num_rows,
        task.seq_len,
        task.embedding_dim,
        task.num_layers,
        task.num_heads,
        task.dropout,
        task.ffn_hidden_dim,
    )


def training_step(
    task: Task,
    machine: Machine,
    model: nn.Module,
    loss_of: LossOf,
    optimizer: torch.optim.Optimizer,
    clip: Callable[..., Tensor] = nn.utils.clip_grad_norm_,
) -> Step:
    """A full update, the same for all; model, loss, optimizer and clipping are each one's own."""
    set_learning_rate(optimizer, LEARNING_RATE)
    scaler = machine.gradient_scaler()

    def step(number: int) -> None:
        inputs, targets = map(machine.place, task.batch(number))
        with machine.autocast():
            loss = loss_of(inputs, targets)
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        clip(model.parameters(), MAX_GRAD_NORM)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        loss.item()

    return step


def ours(task: Task, machine: Machine, *, is_shared: bool, wants_compile: str) -> Step:
    """As train.py does it. The tokens in use are the first ones, so each is its own row."""
    tune_process()
    vocabulary = task.vocabulary(is_shared=is_shared)
    model = our_model(task, vocabulary.size).to(machine.device)
    loss_of = NextTokenLoss(model, num_shared=vocabulary.num_shared)
    loss_of = machine.compiled(loss_of, wants_compile)
    optimizer = build_optimizer(model, weight_decay=WEIGHT_DECAY)
    return training_step(task, machine, model, loss_of, optimizer, clip=clip_gradients)


def plain(task: Task, machine: Machine, *, is_compiled: bool) -> Step:
    """Our model in the loop that everybody writes: all the logits, then their cross-entropy."""
    model = our_model(task, task.vocab_size).to(machine.device)
    optimizer = build_optimizer(model, weight_decay=WEIGHT_DECAY)

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())

    loss_of = torch.compile(loss_of) if is_compiled else loss_of
    return training_step(task, machine, model, loss_of, optimizer)


def hugging_face(task: Task, machine: Machine, *, is_compiled: bool) -> Step:
    """Hugging Face's GPT-2 with the optimizer of their Trainer."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        vocab_size=task.vocab_size,
        n_positions=task.seq_len,
        n_embd=task.embedding_dim,
        n_layer=task.num_layers,
        n_head=task.num_heads,
        n_inner=task.ffn_hidden_dim,
        use_cache=False,
        **dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), task.dropout),
    )
    model = GPT2LMHeadModel(config).to(machine.device).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=WEIGHT_DECAY, fused=True)

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(model(inputs).logits.flatten(0, 1), targets.flatten())

    loss_of = torch.compile(loss_of) if is_compiled else loss_of
    return training_step(task, machine, model, loss_of, optimizer)


def nanogpt(task: Task, machine: Machine, *, folder: Path, is_compiled: bool) -> Step:
    """The GPT of a nanoGPT checkout with its own optimizer."""
    if task.ffn_hidden_dim != 4 * task.embedding_dim:
        raise ValueError("its ffn_hidden_dim is always 4 x embedding_dim")
    spec = importlib.util.spec_from_file_location("nanogpt", folder / "model.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.GPTConfig(
        vocab_size=task.vocab_size,
        block_size=task.seq_len,
        n_embd=task.embedding_dim,
        n_layer=task.num_layers,
        n_head=task.num_heads,
        dropout=task.dropout,
        bias=True,
    )
    model = module.GPT(config).to(machine.device)
    optimizer = model.configure_optimizers(WEIGHT_DECAY, LEARNING_RATE, BETAS, machine.device.type)
    network = torch.compile(model) if is_compiled else model

    def loss_of(inputs: Tensor, targets: Tensor) -> Tensor:
        return network(inputs, targets.contiguous())[1]

    return training_step(task, machine, model, loss_of, optimizer)


# ---------------------------------------------------------------- what none can beat


def floor(task: Task, machine: Machine, *, num_rows: int) -> Step:
    """Nothing but the matrix products of a step, written over those of the step before."""
    tune_process()
    aligned = num_rows // ALIGNED_ROWS * ALIGNED_ROWS
    *blocks, (_, C, _) = task.layers(num_rows)
    head = [(1, C, rows) for rows in (aligned, num_rows - aligned) if rows]
    new = partial(torch.randn, dtype=machine.dtype, device=machine.device)
    calls = task.num_layers * attention_products(task, new)
    for count, inputs, outputs in blocks + head:
        calls += count * layer_products(task.num_tokens, inputs, outputs, new)

    def step(number: int) -> None:
        for call in calls:
            call()

    return step


def layer_products(
    num_tokens: int, inputs: int, outputs: int, new: Callable[..., Tensor]
) -> list[Callable[[], Tensor]]:
    """A linear layer's output and its two gradients."""
    x, weight, d_y = new(num_tokens, inputs), new(outputs, inputs), new(num_tokens, outputs)
    pairs = [(x, weight.T), (d_y, weight), (d_y.T, x)]
    return [partial(torch.mm, *pair, out=torch.mm(*pair)) for pair in pairs]


def attention_products(task: Task, new: Callable[..., Tensor]) -> list[Callable[[], Tensor]]:
    """Weights, their gradient, and four times what is mixed by them."""
    heads, T = task.batch_size * task.num_heads, task.seq_len
    x, weights = new(heads, T, task.embedding_dim // task.num_heads), new(heads, T, T)
    pairs = 2 * [(x, x.mT), (weights, x), (weights.mT, x)]
    return [partial(torch.bmm, *pair, out=torch.bmm(*pair)) for pair in pairs]


def peak(task: Task, machine: Machine, *, size: int) -> Step:
    """One product of large square matrices, as a GPU likes it."""
    x, y = torch.randn(2, size, size, dtype=machine.dtype, device=machine.device)
    product = x @ y
    return lambda number: torch.mm(x, y, out=product)


# ---------------------------------------------------------------- the loss alone


class Head(nn.Module):
    """A model whose hidden states are given: what is left to compute is the loss."""

    def __init__(self, task: Task, num_rows: int) -> None:
        super().__init__()
        self.input_embedding = InputEmbeddings(num_rows, task.embedding_dim)
        nn.init.normal_(self.input_embedding.embedding.weight, std=0.02)
        self.hidden = nn.Parameter(torch.randn(task.batch_size, task.seq_len, task.embedding_dim))

    def hidden_states(self, tokens: Tensor) -> Tensor:
        return self.hidden


def loss_step(
    task: Task, machine: Machine, *, loss_of: Callable[[Head, Tensor, Tensor], Tensor]
) -> Step:
    """A loss of the hidden states and the gradients of both its factors."""
    tune_process()
    head = Head(task, task.vocab_size).to(machine.device)

    def step(number: int) -> None:
        inputs, targets = map(machine.place, task.batch(number))
        with machine.autocast():
            loss = loss_of(head, inputs, targets)
        loss.backward()
        head.zero_grad()
        loss.item()

    return step


def our_loss(head: Head, inputs: Tensor, targets: Tensor) -> Tensor:
    return NextTokenLoss(head)(inputs, targets)


def plain_loss(head: Head, inputs: Tensor, targets: Tensor) -> Tensor:
    logits = F.linear(head.hidden.flatten(0, 1), head.input_embedding.embedding.weight)
    return F.cross_entropy(logits, targets.flatten())


def compiled_loss(head: Head, inputs: Tensor, targets: Tensor) -> Tensor:
    return compiled(plain_loss)(head, inputs, targets)


@cache
def compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return torch.compile(function)


def torch_loss(head: Head, inputs: Tensor, targets: Tensor, **chunks: Any) -> Tensor:
    """torch's own, from 2.13 on: as it is, or with what LinearCrossEntropyOptions takes."""
    hidden, weight = head.hidden.flatten(0, 1), head.input_embedding.embedding.weight
    dtype = torch.get_autocast_dtype(hidden.device.type)
    if torch.is_autocast_enabled(hidden.device.type):
        hidden, weight = hidden.to(dtype), weight.to(dtype)
    options = {"options": nn.LinearCrossEntropyOptions(**chunks)} if chunks else {}
    return F.linear_cross_entropy(hidden, weight, targets.flatten(), **options)
