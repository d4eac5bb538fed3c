"""What to do when memory runs out: notice it, free what is held, work in smaller pieces."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch.utils.checkpoint import checkpoint

from model import Transformer
from system.process import is_out_of_memory, warn


class Attempt:
    """Whether what was tried had room enough."""

    has_failed = False


@contextmanager
def attempt() -> Iterator[Attempt]:
    """Inside, a lack of memory ends what is tried and is noted; afterwards the caches are empty."""
    tried = Attempt()
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
    """Gives back what torch keeps of memory that nothing uses."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if torch.backends.mps.is_available():
        torch.mps.empty_cache()


def recompute_activations(model: Transformer) -> None:
    """From now on the backward pass computes each block again: it keeps one input a block."""
    for block in model.blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
