"""From tokens to numbered batches: the token cache on disk, the split, windows, batch number i."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from files import exclusive, sweep_parts, write_durably
from text import BLOCK_BYTES, DataError, TextReader
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID, TABLE_SHA256, GPT2Tokenizer

CACHE_FOLDER_NAME = ".tokens"
CACHE_VERSION = 1
DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Tokens:
    """The ids of a whole text, mapped from disk, and the SHA-256 of the file they come from."""

    ids: np.ndarray  # (N,) uint16, read-only
    text_sha256: str
    num_replaced: int = 0  # invalid sequences read as U+FFFD while tokenizing


def load_tokens(
    text_path: Path,
    tokenizer: GPT2Tokenizer,
    *,
    cache_parents: Sequence[Path],
    replace_invalid: bool = False,
) -> Tokens:
    """The text's ids, from their cache, which is built where it is missing or damaged.

    The cache is `.tokens/<key>.bin` in the first writable folder of `cache_parents`. The key is a
    hash of the text's content and of the tokenizer, so a changed text never meets a stale cache.
    """
    text_sha256 = file_sha256(text_path)
    recipe = f"{CACHE_VERSION} {text_sha256} {TABLE_SHA256} {replace_invalid}"
    name = hashlib.sha256(recipe.encode()).hexdigest()[:32] + ".bin"
    cache_paths = [parent / CACHE_FOLDER_NAME / name for parent in cache_parents]
    for cache_path in cache_paths:
        ids = read_cache(cache_path)
        if ids is not None:
            return Tokens(ids, text_sha256)
    reader = TextReader(text_path, replace_invalid=replace_invalid)
    ids = build_cache(cache_paths, reader, tokenizer, text_sha256)
    return Tokens(ids, text_sha256, reader.num_replaced)


def file_sha256(path: Path) -> str:
    """Hex digest of the file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def build_cache(
    cache_paths: Sequence[Path], reader: TextReader, tokenizer: GPT2Tokenizer, text_sha256: str
) -> np.ndarray:
    """The reader's ids, written to the first of the paths that can be written."""
    for cache_path in cache_paths[:-1]:
        try:
            return _build_cache_at(cache_path, reader, tokenizer, text_sha256)
        except OSError:  # read-only, or full
            continue
    return _build_cache_at(cache_paths[-1], reader, tokenizer, text_sha256)


def _build_cache_at(
    cache_path: Path, reader: TextReader, tokenizer: GPT2Tokenizer, text_sha256: str
) -> np.ndarray:
    cache_path.parent.mkdir(exist_ok=True)
    with exclusive(cache_path.with_suffix(".lock")):
        ids = read_cache(cache_path)  # another process may have built it while we waited
        if ids is None:
            sweep_parts(cache_path.parent)
            write_durably(
                cache_path,
                lambda file: write_ids(file, reader, tokenizer),
                verify=lambda _: check_unchanged(reader.path, text_sha256),
            )
            ids = read_cache(cache_path)
    if ids is None:
        raise DataError(f"the token cache changed while written ({cache_path}): start again")
    return ids


def check_unchanged(text_path: Path, text_sha256: str) -> None:
    """DataError if somebody wrote the text while it was read."""
    if file_sha256(text_path) != text_sha256:
        raise DataError(f"the text changed while it was read ({text_path}): start again")


def write_ids(file: BinaryIO, reader: TextReader, tokenizer: GPT2Tokenizer) -> None:
    """Writes the cache format: the ids as little-endian uint16, then their SHA-256 (32 bytes)."""
    digest = hashlib.sha256()
    is_blank = True
    for piece in reader.pieces():
        is_blank = is_blank and piece.isspace()
        ids = tokenizer.encoding.encode_to_numpy(
            piece, allowed_special={END_OF_TEXT}, disallowed_special=()
        )
        block = ids.astype("<u2").tobytes()
        digest.update(block)
        file.write(block)
    if is_blank:
        raise DataError(f"the text is empty or blank ({reader.path}): put some stories in it")
    file.write(digest.digest())


def read_cache(cache_path: Path) -> np.ndarray | None:
    """The ids of a cache file, mapped; None where it is missing, torn or damaged."""
    try:
        num_bytes = cache_path.stat().st_size - DIGEST_BYTES
        if num_bytes <= 0 or num_bytes % 2:
            return None
        with cache_path.open("rb") as file:
            file.seek(num_bytes)
            expected = file.read()
        ids = np.memmap(cache_path, dtype="<u2", mode="r", shape=(num_bytes // 2,))
    except OSError:
        return None
    return ids if hashlib.sha256(ids).digest() == expected else None


def split_at_document(
    ids: np.ndarray, val_fraction: float, *, seq_len: int
) -> tuple[np.ndarray, np.ndarray]:
    """Views of the training and the validation part, split where a document ends.

    The boundary nearest to the wanted fraction is taken if it changes the validation part by at
    most half; a text with no such boundary is split inside a document.
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
    """Windows of a text or of an array of ids: item i is (inputs, targets), int64 (max_length,).

    Window i starts at token `range(0, len(ids) - max_length, stride)[i]`; the targets are the
    inputs one token later. The windows are views: nothing is copied before a batch is made.
    """

    def __init__(
        self, txt: str | np.ndarray, tokenizer: GPT2Tokenizer | None, max_length: int, stride: int
    ) -> None:
        ids = txt
        if isinstance(txt, str):
            ids = np.array(tokenizer.encode(txt, allowed_special={END_OF_TEXT}), dtype=np.uint16)
        if len(ids) <= max_length:
            raise DataError(
                f"the text is too short ({len(ids)} tokens): max_length={max_length} needs "
                f"{max_length + 1}; add text or lower max_length"
            )
        self.windows = sliding_window_view(np.asarray(ids), max_length + 1)[::stride]

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.rows(index)

    def rows(self, indices: int | np.ndarray) -> tuple[Tensor, Tensor]:
        """Inputs and targets of one window (T,) or of an array of them (B, T)."""
        window = torch.from_numpy(self.windows[indices].astype(np.int64))
        return window[..., :-1], window[..., 1:]


def create_dataloader_v1(
    txt: str | np.ndarray,
    batch_size: int = 4,
    max_length: int = 256,
    stride: int = 128,
    shuffle: bool = True,
    drop_last: bool = True,
    num_workers: int = 0,
) -> DataLoader:
    """A torch DataLoader over the text's windows, shuffled by torch's global generator."""
    dataset = GPTDatasetV1(txt, GPT2Tokenizer(), max_length, stride)
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        num_workers=num_workers,
    )


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
        return self.dataset.rows(self.window_indices(i))

    def num_windows_before(self, i: int) -> int:
        """How many windows the batches 0 to i - 1 show together."""
        epoch, position = divmod(i, self.num_per_epoch)
        return epoch * len(self.dataset) + position * self.batch_size


@lru_cache(maxsize=1)
def epoch_order(seed: int, epoch: int, num_windows: int) -> np.ndarray:
    """The order of the windows in an epoch, a permutation drawn from (seed, epoch)."""
    return np.random.default_rng([seed, epoch]).permutation(num_windows)
