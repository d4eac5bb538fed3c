"""From tokens to numbered batches: the split, windows, batch number i."""

from collections.abc import Sequence
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from system.errors import DataError
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID, GPT2Tokenizer

Ids = np.ndarray | Tensor | Sequence[int]


def split_at_document(
    ids: np.ndarray, val_fraction: float, *, seq_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """Views of the training and the validation part, split at the nearest end of a document.

    Where that would change the validation part by more than half, a document is split.
    """
    first, last = seq_len + 1, len(ids) - 2  # a window to train on, a prediction to validate
    if first > last:
        raise DataError(
            f"the text is too short ({len(ids)} tokens): seq_len={seq_len} needs at least "
            f"{first + 2}; add text or lower seq_len"
        )
    wanted = len(ids) - round(len(ids) * val_fraction)
    slack = int(len(ids) * val_fraction / 2)
    start = max(first, wanted - slack)
    ends = start + np.flatnonzero(ids[start - 1 : min(last, wanted + slack)] == END_OF_TEXT_ID)
    nearest = ends[np.abs(ends - wanted).argmin()] if len(ends) else wanted
    cut = int(np.clip(nearest, first, last))
    return ids[:cut], ids[cut:]


class GPTDatasetV1(Dataset):
    """Windows of a text or of its ids: item i is (inputs, targets), int64 (max_length,).

    Window i starts at token `range(0, len(ids) - max_length, stride)[i]`; the targets are the
    inputs one token later. A text needs a tokenizer with tiktoken's `encode`, of any vocabulary.
    """

    def __init__(
        self, txt: str | Ids, tokenizer: GPT2Tokenizer | None, max_length: int, stride: int
    ) -> None:
        if min(max_length, stride) < 1:
            sizes = f"max_length={max_length}, stride={stride}"
            raise DataError(f"no windows ({sizes}): both must be at least 1")
        if isinstance(txt, str):
            txt = tokenizer.encode(txt, allowed_special={END_OF_TEXT})
            txt = np.array(txt, dtype=np.uint16 if max(txt, default=0) < 1 << 16 else np.uint32)
        ids = txt.numpy(force=True) if isinstance(txt, Tensor) else np.asarray(txt)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            kind = f"{ids.dtype} of shape {ids.shape}"
            raise DataError(
                f"txt is neither a text nor ids ({kind}): give a string or a row of ids"
            )
        if len(ids) <= max_length:
            raise DataError(
                f"the text is too short ({len(ids)} tokens): max_length={max_length} needs "
                f"{max_length + 1}; add text or lower max_length"
            )
        self.ids, self.max_length, self.stride = ids, max_length, stride

    @cached_property
    def windows(self) -> np.ndarray:
        """Views of the ids, (N, max_length + 1): nothing is copied before a batch is made."""
        return sliding_window_view(self.ids, self.max_length + 1)[:: self.stride]

    def __getstate__(self) -> dict[str, Any]:
        """What travels to a worker of a DataLoader: the ids, not each window written out."""
        return {name: value for name, value in vars(self).items() if name != "windows"}

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int | np.ndarray) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one window (T,) or of an array of them (B, T)."""
        window = torch.from_numpy(self.windows[index].astype(np.int64))
        return window[..., :-1], window[..., 1:]


def create_dataloader_v1(
    txt: str | Ids,
    batch_size: int = 4,
    max_length: int = 256,
    stride: int = 128,
    shuffle: bool = True,
    drop_last: bool = True,
    num_workers: int = 0,
) -> DataLoader:
    """A torch DataLoader over the text's windows, shuffled by torch's global generator."""
    dataset = GPTDatasetV1(txt, GPT2Tokenizer(), max_length, stride)
    if drop_last and len(dataset) < batch_size:
        raise DataError(
            f"no whole batch ({len(dataset)} windows, batch_size={batch_size}, drop_last=True): "
            "lower batch_size, max_length or stride, add text, or set drop_last=False"
        )
    return DataLoader(dataset, batch_size, shuffle, drop_last=drop_last, num_workers=num_workers)


class Batches:
    """Batch i of a run, a pure function of (seed, i): each epoch shows every window once.

    The last batch of an epoch holds what is left over, at least one window.
    """

    def __init__(self, dataset: GPTDatasetV1, batch_size: int, *, seed: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.num_per_epoch = -(-len(dataset) // batch_size)

    def window_indices(self, i: int) -> np.ndarray:
        """Which windows batch i shows, (B,)."""
        epoch, position = divmod(i, self.num_per_epoch)
        order = epoch_order(self.seed, epoch, len(self.dataset))
        return order[position * self.batch_size : (position + 1) * self.batch_size]

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.dataset[self.window_indices(i)]


@lru_cache(maxsize=1)
def epoch_order(seed: int, epoch: int, num_windows: int) -> np.ndarray:
    """The order of the windows in an epoch, a permutation drawn from (seed, epoch)."""
    return np.random.default_rng([seed, epoch]).permutation(num_windows)
