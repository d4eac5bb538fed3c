"""One more token a row, in kernels that CUDA records once and then replays.

A step is some hundred kernels, which Python launches more slowly than a GPU computes them. A CUDA
graph launches all at once: the same kernels on the same memory, so what differs from step to step
is read from one tensor. Not for several threads at once.

Shapes: B batch, V vocabulary.
"""

from collections.abc import Callable, Sequence
from functools import cache

import torch
from torch import Tensor

from generation.kv_cache import KeyValueCache, OneTokenCache
from model import Transformer
from system.process import describe, warn

RECORDED_STEP = 1  # the second one: a text of one more token is not worth a recording


class OneTokenStep:
    """What follows one more token of each row of `cache`: `step(tokens)` -> logits (B, V).

    The next call overwrites them. Rows that have left are computed on: fewer need a new recording.
    """

    def __init__(self, model: Transformer, cache: KeyValueCache) -> None:
        self.model = model
        self.cache = cache
        shape = (2, cache.memory.size(2), 1)
        self.inputs = torch.zeros(shape, dtype=torch.int64, device=cache.memory.device)
        self.tokens, positions = self.inputs
        self.fixed_cache = OneTokenCache(cache.memory, positions)
        self.num_steps = 0
        self.replay: Callable[[], Tensor] | None = None

    def __call__(self, tokens: Sequence[int]) -> Tensor:
        latest = torch.tensor([tokens, self.cache.lengths])[..., None]
        self.inputs[:, : len(tokens)] = latest.to(self.inputs.device)
        self.cache.lengths = [length + 1 for length in self.cache.lengths]
        if self.num_steps == RECORDED_STEP:
            self.replay = recorded(self._compute, self.inputs.device)
        self.num_steps += 1
        return (self.replay or self._compute)()[: len(tokens)]

    def _compute(self) -> Tensor:
        return self.model.head(self.model.hidden_states(self.tokens, self.fixed_cache)[:, 0])


def recorded(compute: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor] | None:
    """A function that replays `compute` as a CUDA graph, or None, with a warning, where it cannot.

    Its result is the same tensor each time. `compute` is called twice, a second call must not
    change what it gives, and the caller keeps alive what it reads and writes.
    """
    try:
        stream, graph = side_stream(device), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            compute()  # libraries set themselves up for this stream, which cannot be recorded
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                result = compute()
        torch.cuda.current_stream(device).wait_stream(stream)
    except (RuntimeError, ValueError) as error:  # the latter: of a device without CUDA
        warn_once(f"steps are not recorded, writing only takes longer: {describe(error)}")
        return None

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay


@cache
def side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for each device: what libraries set up for a stream stays in memory."""
    return torch.cuda.Stream(device)


@cache
def warn_once(problem: str) -> None:
    warn(problem)
