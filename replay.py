"""One more token a row, in kernels that CUDA records once and then replays.

For one token a GPU computes faster than Python can ask it to: most of a step would be waiting for
the next of some hundred kernels. A CUDA graph launches them all at once. It repeats the same
kernels on the same memory, so what differs from step to step is read from one tensor.

Shapes: B batch, V vocabulary.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from kv_cache import OneTokenCache
from model import Transformer
from runtime import describe, log

NUM_WARM_UPS = 3  # runs in which libraries set themselves up, which cannot be recorded


class OneTokenStep:
    """What follows one more token of up to B rows; `memory` is that of a KeyValueCache for B rows.

    The rows at hand are the first ones of the memory. Those that have ended are computed on, for
    another number of rows would be another recording.
    """

    def __init__(self, model: Transformer, memory: Tensor) -> None:
        self.model = model
        self.inputs = torch.zeros(2, memory.size(2), 1, dtype=torch.int64, device=memory.device)
        self.tokens, positions = self.inputs
        self.cache = OneTokenCache(memory, positions)
        self.run: Callable[[], Tensor] | None = None

    def logits(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        """(rows, V), overwritten by the next call. Row b reads `tokens[b]` at `positions[b]`."""
        latest = torch.tensor([tokens, positions])[..., None]
        self.inputs[:, : len(tokens)] = latest.to(self.inputs.device)
        self.run = self.run or recorded(self._compute, self.inputs.device)
        return self.run()[: len(tokens)]

    def _compute(self) -> Tensor:
        return self.model.head(self.model.hidden_states(self.tokens, self.cache)[:, 0])


def recorded(compute: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """The same function as a CUDA graph; itself, with one line of warning, where there is none.

    `compute` may be called several times here, so a second call must not change what it gives.
    """
    try:
        with torch.cuda.device(device):
            return cuda_graph(compute)
    except Exception as error:  # torch has several kinds of them
        log(f"warning   steps are not recorded, writing only takes longer: {describe(error)}")
        return compute


def cuda_graph(compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The kernels of one call; each later one writes over its result."""
    warm_up, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    warm_up.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(warm_up):
        for _ in range(NUM_WARM_UPS):
            compute()
    torch.cuda.current_stream().wait_stream(warm_up)
    with torch.cuda.graph(graph):
        result = compute()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
