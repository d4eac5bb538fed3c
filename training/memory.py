"""What to do when memory runs out: notice it, free what is held, work in smaller pieces."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from model import Transformer
from system.machine import trim_heap
from system.process import is_out_of_memory, warn

NO_ROOM = (
    "out of memory with one window at a time and activations computed twice: lower embedding_dim, "
    "num_layers, ffn_hidden_dim or seq_len, or spread the model with torchrun and --parallel fsdp"
)


class Attempt:
    """Whether what was tried had room enough."""

    has_failed = False


@contextmanager
def attempt(tried: Attempt | None = None) -> Iterator[Attempt]:
    """Inside, a lack of memory ends what is tried and is noted; afterwards the caches are empty."""
    tried = tried or Attempt()
    try:
        yield tried
    except BaseException as error:
        if not is_out_of_memory(error):
            raise
        tried.has_failed = True
    if tried.has_failed:  # not before: the error holds on to what was computed
        free_caches()


@contextmanager
def only_out_of_memory(loss: str) -> Iterator[None]:
    """A lack of memory inside is a warning."""
    with attempt() as tried:
        yield
    if tried.has_failed:
        warn(loss)


def free_caches() -> None:
    """Gives back what torch, and the heap, keep of memory that nothing uses."""
    gc.collect()
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def recompute_activations(model: Transformer) -> None:
    """From now on the backward pass computes each block again: it keeps one input a block."""
    for block in model.blocks:
        forward = partial(type(block).forward, block)
        block.forward = partial(checkpoint, forward, use_reentrant=False)


def enduring(function: Callable[..., Tensor], tried: Attempt) -> Callable[..., Tensor]:
    """The function of rows (B, ...), which goes on without rows where `tried` has failed.

    So a lack of memory, in the function or in its backward pass, is noted and nothing is raised:
    the same layers are still passed in the same order. What they then compute means nothing.
    """

    def endured(x: Tensor, *others: Any, **named: Any) -> Tensor:
        def compute(x: Tensor) -> Tensor:
            if not tried.has_failed:
                with attempt(tried):
                    return function(x, *others, **named)
            no_rows = {name: emptied(value) for name, value in named.items()}
            return function(*map(emptied, (x, *others)), **no_rows)

        if not torch.is_grad_enabled():
            return compute(x)
        return _Enduring.apply(x, torch.ones((), requires_grad=True), tried, compute)

    return endured


def emptied(argument: Any) -> Any:
    """No rows of a tensor; nothing in place of a function, which knows of rows."""
    if isinstance(argument, Tensor):
        return argument[:0]
    return None if callable(argument) else argument


class _Enduring(torch.autograd.Function):
    """Keeps the graph of what it computes, so that a backward pass through it may fail."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, anchor: Tensor, tried: Attempt, compute: Callable[[Tensor], Tensor]
    ) -> Tensor:
        ctx.x = x.detach().requires_grad_(x.is_floating_point())
        ctx.tried, ctx.compute = tried, compute
        with torch.enable_grad():
            ctx.y = compute(ctx.x)
        return ctx.y.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
        x, y = ctx.x, ctx.y
        del ctx.x, ctx.y  # the graph outside is kept until the whole backward pass is over
        if y.requires_grad and not ctx.tried.has_failed:  # not what frozen weights make of ids
            with attempt(ctx.tried):
                y.backward(d_y)
        if ctx.tried.has_failed:
            y = None  # and with it all that it holds
            with torch.enable_grad():
                y = ctx.compute(x)
            if y.requires_grad:
                y.backward(torch.zeros_like(y))
            x.grad = x.new_zeros(()).expand_as(x) if x.requires_grad else None
        return x.grad, None, None, None
