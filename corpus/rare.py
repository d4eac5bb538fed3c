"""Tokens that a text has once, read now and then as if it had them not at all.

Of a text's tokens about as many come once as will be new in as much text again (Good 1953). Under
the row of the unused tokens they teach a model how likely a new token is and what follows one;
without them it never meets that row, and each new token of other text costs it dearly.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from corpus.split import SplicedIds
from corpus.vocabulary import Vocabulary
from tokenizer import END_OF_TEXT_ID

MOST_COUNTED = 1 << 24  # tokens: of a longer text hardly any come once
AT_ONCE = 1 << 20


def rare_rows(ids: SplicedIds, vocabulary: Vocabulary) -> Tensor:
    """Whether a row of the table is that of a token which comes once, (K + 1,)."""
    is_rare = np.zeros(vocabulary.size, dtype=bool)
    if vocabulary.num_shared > 1 and len(ids) <= MOST_COUNTED:
        num_tokens = len(vocabulary.row_of_token)
        counts = np.zeros(num_tokens, dtype=np.int64)
        for start in range(0, len(ids), AT_ONCE):
            counts += np.bincount(ids[start : start + AT_ONCE], minlength=num_tokens)
        counts[END_OF_TEXT_ID:] = 0  # the last one, and no word
        is_rare = counts[vocabulary.token_of_row.numpy()] == 1
    return torch.from_numpy(is_rare)


def read_as_unused(
    batch: tuple[Tensor, Tensor], is_rare: Tensor, *, chance: float, key: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T) with some rare rows, by this chance, as the shared one, the last.

    Which ones follows from the key; an input is changed where it is a target too.
    """
    if not (chance and is_rare.any()):
        return batch
    inputs, targets = batch
    windows = torch.cat([inputs, targets[:, -1:]], dim=1)
    drawn = np.random.default_rng(key).random(windows.shape) < chance
    windows = windows.where(~(is_rare[windows] & torch.from_numpy(drawn)), len(is_rare) - 1)
    return windows[:, :-1], windows[:, 1:]
