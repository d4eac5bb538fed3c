"""Who takes part in a benchmark of training: ours, its peers, the losses, the floor below all."""

import runpy
from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from itertools import count

import torch
from torch import Tensor, nn
from torch.nn import Module
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from benchmarks.turns import Steps, Task
from corpus.order import Batches
from corpus.text import PROJECT
from data import GPTDatasetV1
from model import Transformer, build_transformer
from system.machine import Machine, tune_process
from tokenizer import GPT2Tokenizer
from training.learner import Learner, dropout_seeds
from training.loss import ALIGNED_ROWS, CHUNK_SIZE, NextTokenLoss
from training.optim import BETAS
from training.settings import DEFAULTS
from weights import huggingface_weights

LEARNING_RATE, WEIGHT_DECAY, MAX_GRAD_NORM = 3e-4, 0.1, 1.0
CONFIG = {**DEFAULTS, "optimizer": "adamw"}
CHUNKS = {"batch_chunk_size": 1024, "acc_policy": "compact"}  # of torch's own loss
LossOf = Callable[[Module, Tensor, Tensor], Tensor]  # inputs and targets (B, T) -> a mean


def updates(
    task: Task, machine: Machine, model: Module, loss_of: LossOf, optimizer: Optimizer | None = None
) -> Steps:
    """From the batch to the updated weights; without an optimizer, to the gradients alone."""
    loss_of = torch.compile(loss_of) if task.compiled else loss_of
    scaler = machine.gradient_scaler()
    for number in count():
        inputs, targets = map(machine.place, task.batch(number))
        with machine.autocast():
            loss = loss_of(model, inputs, targets)
        scaler.scale(loss).backward()
        if optimizer:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), MAX_GRAD_NORM)
            scaler.step(optimizer)
            scaler.update()
        model.zero_grad()
        yield loss.item()


def our_model(task: Task) -> Transformer:
    """The same for all that run the task, in float32 on the CPU."""
    torch.manual_seed(task.seed)
    sizes = (task.num_rows, task.seq_len, task.embedding_dim, task.num_layers)
    return build_transformer(*sizes, task.num_heads, task.dropout, task.ffn_hidden_dim)


def ours(task: Task, machine: Machine) -> Steps:
    """What train.py runs, with the optimizer of its peers."""
    tune_process()
    config = {**CONFIG, **asdict(task), "compile": "on" if task.compiled else "auto"}
    model = our_model(task).to(machine.device)
    learner = Learner(model, machine, config, num_shared=task.vocab_size - task.num_rows + 1)
    return learned(learner, task, task.batch)


def learned(learner: Learner, task: Task, batch: Callable[[int], tuple[Tensor, Tensor]]) -> Steps:
    """The losses of our updates by batches of that number."""
    for number in count():
        inputs, targets = map(learner.machine.place, batch(number))
        seeds = dropout_seeds(task.seed, number, len(inputs))
        yield learner.update(inputs, targets, learning_rate=LEARNING_RATE, seeds=seeds).loss


def on_text(task: Task, machine: Machine, *, is_exact: bool = False) -> Steps:
    """Ours on real text, so that losses fall; `is_exact` allows no TF32 in float32 products."""
    tune_process()
    if is_exact:
        torch.set_float32_matmul_precision("highest")
    text = (PROJECT / "example.txt").read_text(encoding="utf-8")
    windows = GPTDatasetV1(text, GPT2Tokenizer(), task.seq_len, task.seq_len)
    batches = Batches(windows, task.batch_size, seed=task.seed)
    learner = Learner(our_model(task).to(machine.device), machine, {**CONFIG, **asdict(task)})
    return learned(learner, task, batches.__getitem__)


def plain(task: Task, machine: Machine, *, build: Callable[[Task], Module]) -> Steps:
    """The loop that everybody writes: all the logits at once; torch's AdamW in one kernel."""
    model = build(task).to(machine.device)
    optimizer = AdamW(model.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)
    return updates(task, machine, model, all_logits, optimizer)


def gpt2(task: Task) -> Module:
    """Hugging Face's GPT-2 with our weights; the vocabulary's last token ends its texts."""
    from transformers import GPT2Config, GPT2LMHeadModel

    sizes = {"vocab_size": task.vocab_size, "n_positions": task.seq_len}
    sizes |= {"n_embd": task.embedding_dim, "n_inner": task.ffn_hidden_dim}
    sizes |= {"n_layer": task.num_layers, "n_head": task.num_heads}
    sizes |= dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), task.dropout)
    sizes |= dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), task.vocab_size - 1)
    model = GPT2LMHeadModel(GPT2Config(**sizes, use_cache=False)).train()
    model.transformer.load_state_dict(huggingface_weights(our_model(task)))
    return model


def nanogpt(task: Task, machine: Machine) -> Steps:
    """The GPT of a nanoGPT checkout with its own loss and optimizer."""
    if task.ffn_hidden_dim != 4 * task.embedding_dim:
        raise ValueError("its ffn_hidden_dim is always 4 x embedding_dim")
    theirs = runpy.run_path(str(task.nanogpt / "model.py"))
    sizes = (task.seq_len, task.vocab_size, task.num_layers, task.num_heads, task.embedding_dim)
    model = theirs["GPT"](theirs["GPTConfig"](*sizes, task.dropout, bias=True)).to(machine.device)
    optimizer = model.configure_optimizers(WEIGHT_DECAY, LEARNING_RATE, BETAS, machine.device.type)
    return updates(task, machine, model, lambda own, x, y: own(x, y.contiguous())[1], optimizer)


def floor(task: Task, machine: Machine) -> Steps:
    """Nothing but the matrix products of a step, written over those of the step before."""
    tune_process()
    new = partial(torch.randn, dtype=machine.dtype, device=machine.device)
    num_layers, N, T, C = task.num_layers, task.num_tokens, task.seq_len, task.embedding_dim
    heads, ffn = task.batch_size * task.num_heads, task.ffn_hidden_dim
    x, weights = new(heads, T, C // task.num_heads), new(heads, T, T)
    # The weights, their gradient, and four times what is mixed by them.
    rounds = [(2 * num_layers, [(x, x.mT), (weights, x), (weights.mT, x)])]
    blocks = [(num_layers, *sizes) for sizes in ((C, 3 * C), (C, C), (C, ffn), (ffn, C))]
    unaligned = task.num_rows % ALIGNED_ROWS
    head = [(1, C, rows) for rows in (task.num_rows - unaligned, unaligned) if rows]
    for times, inputs, outputs in blocks + head:
        x, weight, d_y = new(N, inputs), new(outputs, inputs), new(N, outputs)
        rounds.append((times, [(x, weight.T), (d_y, weight), (d_y.T, x)]))
    calls = []
    for times, pairs in rounds:
        calls += times * [partial(torch.matmul, *pair, out=torch.matmul(*pair)) for pair in pairs]
    while True:
        yield [call() for call in calls]


def loss_alone(task: Task, machine: Machine, *, loss_of: LossOf) -> Steps:
    """The loss of a model whose hidden states are given, and the gradients of both its factors."""
    tune_process()
    model = our_model(replace(task, num_layers=1)).to(machine.device)
    shape = (task.batch_size, task.seq_len, task.embedding_dim)
    model.hidden = nn.Parameter(torch.randn(shape, device=machine.device))
    model.hidden_states = lambda tokens, seeds=None: model.hidden
    return updates(task, machine, model, loss_of)


def our_loss(
    model: Transformer, inputs: Tensor, targets: Tensor, chunk_size: int = CHUNK_SIZE
) -> Tensor:
    return NextTokenLoss(model, chunk_size=chunk_size)(inputs, targets)


def all_logits(model: Module, inputs: Tensor, targets: Tensor) -> Tensor:
    output = model(inputs)
    logits = getattr(output, "logits", output)  # transformers wraps them
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def torch_loss(model: Transformer, inputs: Tensor, targets: Tensor, **chunks: object) -> Tensor:
    """torch's own, from 2.13 on: as it is, or with what LinearCrossEntropyOptions takes."""
    factors = model.hidden_states(inputs).flatten(0, 1), model.input_embedding.embedding.weight
    if torch.is_autocast_enabled(inputs.device.type):
        factors = [f.to(torch.get_autocast_dtype(inputs.device.type)) for f in factors]
    options = {"options": nn.LinearCrossEntropyOptions(**chunks)} if chunks else {}
    return F.linear_cross_entropy(*factors, targets.flatten(), **options)
