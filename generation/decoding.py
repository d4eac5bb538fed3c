"""Rows of tokens that a model continues, one token a step.

Shapes: B batch, T time in tokens, C channels, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from generation.cuda_graph import OneTokenStep
from generation.guesses import MOST_GUESSES, Guesses
from generation.kv_cache import KeyValueCache, is_cacheable
from generation.native import cache_dtype
from generation.sampling import choose
from generation.settings import Sampling
from model import Transformer

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
            self.capacity = capacity = min(model.seq_len, max(map(len, prompts)) + max_new_tokens)
            self.cache = KeyValueCache(
                model, len(prompts), capacity, dtype=cache_dtype(model, len(prompts))
            )
            is_replayed = model.device.type in REPLAYING
            self.read_one = OneTokenStep(model, self.cache) if is_replayed else self._next_logits

    def logits(self) -> Tensor:
        """Of the next token of each row, (B, V); the next call may overwrite them."""
        return self.checked([[]] * len(self.rows))[:, 0]

    def room(self) -> int:
        """How many guesses of each row there is room for in the window and the cache."""
        if not self.cache:
            return 0
        return self.capacity - max(map(len, self._windows()))

    def checked(self, guesses: Sequence[Sequence[int]]) -> Tensor:
        """Logits after each row, and after each of its guesses: (B, 1 + most guesses, V).

        `extend` then has to say what became of the guesses.
        """
        windows = self._windows()
        # a caller who trains the model between two steps still has dropout there
        is_training = any(module.training for module in self._modules)
        with evaluation_mode(self.model) if is_training else nullcontext():
            if not self.cache:
                ends = range(len(windows)), [len(window) - 1 for window in windows]
                hidden = self.model.hidden_states(self._padded(windows))[ends]
                logits = self.model.head(hidden)[:, None]
            else:
                self._catch_up(windows)
                latest = [
                    [window[-1], *more] for window, more in zip(windows, guesses, strict=True)
                ]
                if any(guesses):
                    hidden = self.model.hidden_states(self._padded(latest), self.cache)
                    logits = self.model.head(hidden)
                    self.cache.lengths = [*map(len, windows)]
                else:
                    logits = self.read_one([token for (token,) in latest])[:, None]
        return logits[..., : self.vocab_size]

    def append(self, tokens: Sequence[int]) -> None:
        """Adds one token to each row."""
        self.extend([[token] for token in tokens])

    def extend(self, tokens: Sequence[Sequence[int]]) -> None:
        """Adds to each row what has been chosen: guesses that were right, and one token more."""
        for number, (row, more) in enumerate(zip(self.rows, tokens, strict=True)):
            row += more
            if self.cache:
                self.cache.lengths[number] += len(more) - 1

    def select(self, rows: Sequence[int]) -> None:
        """Row i becomes what row `rows[i]` was; the rest is forgotten."""
        self.rows = [list(self.rows[row]) for row in rows]
        if self.cache:
            self.cache.select(rows)

    def _windows(self) -> list[list[int]]:
        return [row[window_start(len(row), self.model.seq_len) :] for row in self.rows]

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
            kept = self.cache.memory.dtype
            part = KeyValueCache(self.model, len(starts), tokens.size(1), dtype=kept)
            self.model.hidden_states(tokens, part)
            self.cache.adopt(behind, part)
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
    most_guesses: int = MOST_GUESSES,
) -> Iterator[dict[int, int]]:
    """Again and again the next token of each row that goes on, by row number.

    Row b draws from its own generator, seeded with `seeds[b]`: its text does not depend on the
    other rows. It ends when `is_over(b)` is true after one of its tokens. A row whose guesses are
    right gets several tokens in a step of the model, those beyond the others' by itself.
    """
    missing = dict.fromkeys(range(len(seeds)), context.max_new_tokens)
    active = [row for row, num_tokens in missing.items() if num_tokens]
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    guesses = Guesses(context.rows)
    while active:
        most = min(most_guesses, context.room(), *(missing[row] - 1 for row in active))
        guessed = guesses.of(context.rows, most)
        with torch.inference_mode():
            chosen = choose_ahead(context, guessed, sampling, [generators[row] for row in active])
        context.extend(chosen)
        guesses.learn(context.rows, chosen)
        waiting = dict(zip(active, chosen, strict=True))
        for place in range(max(map(len, chosen))):
            step = {row: ids[place] for row, ids in waiting.items() if len(ids) > place}
            if not step:
                break
            yield step
            missing |= {row: 0 if is_over(row) else missing[row] - 1 for row in step}
            waiting = {row: ids for row, ids in waiting.items() if missing[row]}
        kept = [place for place, row in enumerate(active) if missing[row]]
        if 0 < len(kept) < len(active):
            context.select(kept)
        active = [active[place] for place in kept]


def choose_ahead(
    context: Context,
    guessed: Sequence[list[int]],
    sampling: Sampling,
    generators: Sequence[torch.Generator],
) -> list[list[int]]:
    """What follows each row: its guesses as far as the model would choose them, and one token."""
    logits = context.checked(guessed)  # (B, 1 + most guesses, V)
    chosen: list[list[int]] = [[] for _ in guessed]
    rows = list(range(len(guessed)))
    for place in range(logits.size(1)):
        here = logits[:, place] if len(rows) == len(logits) else logits[rows, place]
        history = [context.rows[row] + chosen[row] for row in rows]
        tokens = choose(here, history, sampling, [generators[row] for row in rows])
        for row, token in zip(rows, tokens.tolist(), strict=True):
            chosen[row].append(token)
        rows = [row for row in rows if chosen[row] == guessed[row][: place + 1]]
        if not rows:
            break
    return chosen


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """No dropout and no gradients inside; afterwards each part has the mode that it had."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in modes.items():
            module.training = was_training
