"""Which tokens a text uses, and a smaller embedding table that is exact for such a text.

Nothing in a small text tells the tokens apart that it does not use, so they can share one row: its
logit, counted once for each of them in the softmax sum, gives the cross-entropy of the full model
whose unused rows are equal. `expand` writes that model down; files hold nothing else.

Shapes: V all tokens, K tokens that occur, C channels.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The rows of a compact table: one for each token that occurs, then one that the rest share."""

    row_of_token: Tensor  # (V,)
    token_of_row: Tensor  # (K + 1,), of the shared row its first token

    @classmethod
    def of(cls, ids: np.ndarray, full_size: int, *, also_used: Iterable[int] = ()) -> "Vocabulary":
        """The vocabulary of `ids`: of([3, 1, 3], 6) has rows for 1, for 3 and for {0, 2, 4, 5}."""
        is_used = np.zeros(full_size, dtype=bool)
        is_used[list(also_used)] = True
        is_used[ids] = True
        alone = np.flatnonzero(is_used)[: full_size - 1]  # the shared row needs a token too
        row_of_token = np.full(full_size, len(alone))
        row_of_token[alone] = np.arange(len(alone))
        first_shared = row_of_token.argmax()
        return cls(torch.from_numpy(row_of_token), torch.from_numpy(np.append(alone, first_shared)))

    @classmethod
    def full(cls, full_size: int) -> "Vocabulary":
        """Every token in a row of its own: the table as it always was."""
        return cls.of(np.arange(full_size), full_size)

    @property
    def size(self) -> int:
        """Rows of the compact table: K + 1, or V where nothing is shared."""
        return len(self.token_of_row)

    @property
    def num_shared(self) -> int:
        """Tokens that the last row stands for."""
        return len(self.row_of_token) - self.size + 1

    def compact(self, tokens: Tensor) -> Tensor:
        """Token ids of any shape as rows of the compact table."""
        return self.row_of_token[tokens]

    def expand(self, rows: Tensor) -> Tensor:
        """The full table: (K + 1, C) -> (V, C)."""
        return rows[self.row_of_token.to(rows.device)]

    def compact_rows(self, table: Tensor) -> Tensor:
        """The table that `expand` came from, bit for bit: (V, C) -> (K + 1, C)."""
        return table[self.token_of_row.to(table.device)]
