"""Rows of tokens that a model continues, one token a step.

Shapes: B batch, T time in tokens, C channels, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from generation.cuda_graph import OneTokenStep
from generation.kv_cache import KeyValueCache, is_cacheable
from generation.sampling import choose
from generation.settings import Sampling
from model import Transformer, evaluation_mode

REPLAYING = {"cuda"}  # devices that can record a step


def window_start(num_tokens: int, seq_len: int) -> int:
    """Where the window of so many tokens begins: 0 while they fit into the context.

    Learned positions cannot slide, so each move means reading again. The window moves by a quarter
    of the context at once: it always shows the last three quarters, and where it stands depends on
    the length of the text alone. That a cache is used, and what is beside it, changes no text.
    """
    stride = -(-seq_len // 4)
    return -(-max(0, num_tokens - seq_len) // stride) * stride


class Context:
    """What the model has read of B rows: `logits()` of what comes next, `append` to go on.

    The model sees each row from its `window_start`. Inside a window each new token is computed
    alone, from the cache, except in a variant whose attention the cache does not compute. Ids from
    `vocab_size` on are no tokens, though the model may have rows for them, and are never chosen.
    """

    def __init__(
        self,
        model: Transformer,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        vocab_size: int | None = None,
    ) -> None:
        self.model = model
        self.rows = [list(prompt) for prompt in prompts]
        self.max_new_tokens = max_new_tokens
        self.vocab_size = vocab_size
        self._modules = list(model.modules())
        self.cache: KeyValueCache | None = None
        if is_cacheable(model):
            capacity = min(model.seq_len, max(map(len, prompts)) + max_new_tokens)
            self.cache = KeyValueCache(model, len(prompts), capacity)
            is_replayed = model.device.type in REPLAYING
            self.read_one = OneTokenStep(model, self.cache) if is_replayed else self._next_logits

    def logits(self) -> Tensor:
        """Of the next token of each row, (B, V); the next call may overwrite them."""
        windows = [row[window_start(len(row), self.model.seq_len) :] for row in self.rows]
        # a caller who trains the model between two steps still has dropout there
        is_training = any(module.training for module in self._modules)
        with evaluation_mode(self.model) if is_training else nullcontext():
            if self.cache:
                self._catch_up(windows)
                logits = self.read_one([window[-1] for window in windows])
            else:
                ends = range(len(windows)), [len(window) - 1 for window in windows]
                logits = self.model.head(self.model.hidden_states(self._padded(windows))[ends])
        return logits[:, : self.vocab_size]

    def append(self, tokens: Sequence[int]) -> None:
        """Adds one token to each row."""
        for row, token in zip(self.rows, tokens, strict=True):
            row.append(token)

    def select(self, rows: Sequence[int]) -> None:
        """Row i becomes what row `rows[i]` was; the rest is forgotten."""
        self.rows = [list(self.rows[row]) for row in rows]
        if self.cache:
            self.cache.select(rows)

    def _next_logits(self, tokens: Sequence[int]) -> Tensor:
        """What follows one more token of each row: (B, V)."""
        latest = torch.tensor(tokens, device=self.model.device)[:, None]
        return self.model.head(self.model.hidden_states(latest, self.cache)[:, 0])

    def _catch_up(self, windows: Sequence[list[int]]) -> None:
        """Reads what the cache lacks: of new rows and of moved windows, all but the last token."""
        known = self.cache.lengths
        behind = [row for row, window in enumerate(windows) if known[row] != len(window) - 1]
        starts = [windows[row][:-1] for row in behind]
        if any(starts):
            tokens = self._padded(starts)
            part = KeyValueCache(self.model, len(starts), tokens.size(1))
            self.model.hidden_states(tokens, part)
            self.cache.memory[:, :, behind, :, : tokens.size(1)] = part.memory
        for row, start in zip(behind, starts, strict=True):
            known[row] = len(start)

    def _padded(self, rows: Sequence[list[int]]) -> Tensor:
        """(B, T), zeros at the ends of shorter rows."""
        tensors = [torch.tensor(row, dtype=torch.int64) for row in rows]
        return pad_sequence(tensors, batch_first=True).to(self.model.device)


def continue_rows(
    context: Context,
    sampling: Sampling,
    *,
    seeds: Sequence[int],
    is_over: Callable[[int], bool] = lambda row: False,
) -> Iterator[dict[int, int]]:
    """Step by step, the next token of each row that goes on, by row number.

    Row b draws from its own generator, seeded with `seeds[b]`: its text does not depend on the
    other rows. It ends when `is_over(b)` is true after a step.
    """
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    active = list(range(len(seeds)))
    for _ in range(context.max_new_tokens):
        with torch.inference_mode():
            sources = [generators[row] for row in active]
            tokens = choose(context.logits(), context.rows, sampling, sources).tolist()
        context.append(tokens)
        yield dict(zip(active, tokens, strict=True))
        going_on = [i for i, row in enumerate(active) if not is_over(row)]
        if not going_on:
            return
        if len(going_on) < len(active):
            context.select(going_on)
            active = [active[i] for i in going_on]
