"""From tokens to windows: the dataset and the loader."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from system.errors import DataError
from tokenizer import END_OF_TEXT, GPT2Tokenizer

Ids = np.ndarray | Tensor | Sequence[int]


class GPTDatasetV1(Dataset):
    """Windows of a text or of its ids: item i is (inputs, targets), int64 (max_length,).

    Window i starts at token `range(0, len(ids) - max_length, stride)[i]`; the targets are the
    inputs one token later. A text needs a tokenizer with tiktoken's `encode`, of any vocabulary.
    Of an array, or what is sliced like one, nothing is read before a window is asked for.
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
        if isinstance(txt, Tensor):
            txt = txt.numpy(force=True)
        ids = txt if hasattr(txt, "dtype") else np.asarray(txt)
        if ids.ndim != 1 or (len(ids) and ids.dtype.kind not in "iu"):
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

    @property
    def starts(self) -> range:
        """Of each window its first token."""
        return range(0, len(self.ids) - self.max_length, self.stride)

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        start = self.starts[index]
        window = self.ids[start : start + self.max_length + 1]
        window = torch.from_numpy(np.array(window, dtype=np.int64))
        return window[:-1], window[1:]


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


if __name__ == "__main__":
    import sys

    from system.process import run_command
    from train import config
    from training.data_command import main

    run_command(lambda: main(sys.argv[1:], config))
