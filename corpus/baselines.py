"""What predictors without a network make of the validation text: a scale for a model's bits a byte.

V tokens of the vocabulary, N of a text. Counting uses interpolated Witten-Bell smoothing, which has
nothing to tune (Witten and Bell 1991; Chen and Goodman 1998, section 2.6): where h was followed by
n tokens of t kinds, c of them w, p(w | h) = (c + t p(w)) / (n + t). For p(w) itself h is empty, and
each token has p = 1 / V before anything is counted.
"""

import lzma
from collections.abc import Callable
from threading import Thread
from typing import Any

import numpy as np

from system.process import only_warn
from tokenizer import GPT2Tokenizer

MAX_COUNTED = 1 << 22  # tokens of the training part, so that a text of any size costs a second
MAX_COMPRESSED = 1 << 23  # bytes of its end: xz takes half a second for each million
NUM_BLOCKS = 64


def baselines(
    train_ids: np.ndarray, val_ids: np.ndarray, is_predicted: np.ndarray, tokenizer: GPT2Tokenizer
) -> dict[str, float]:
    """Bits a byte of val_ids[1:] by name: "unigram", "bigram" and "xz".

    The first two know the counts of the training part and are asked for what `is_predicted` alone;
    xz -9 knows the end of that part, and its number is about all of the validation text.
    """
    encoding = tokenizer.encoding
    train = spread_sample(train_ids, MAX_COUNTED).astype(np.int64)
    val = val_ids.astype(np.int64)
    alone = unigram(train, encoding.n_vocab)
    before = encoding.decode_bytes(train_ids[-MAX_COUNTED:].tolist())[-MAX_COMPRESSED:]
    bits = {
        "unigram": -np.log2(alone[val[1:]])[is_predicted].sum(),
        "bigram": -np.log2(bigram(train, val, alone))[is_predicted].sum(),
        "xz": 8 * num_added_bytes(before, encoding.decode_bytes(val.tolist())),
    }
    predicted = dict.fromkeys(bits, val[1:][is_predicted]) | {"xz": val[1:]}
    num_bytes = {name: len(encoding.decode_bytes(ids.tolist())) for name, ids in predicted.items()}
    return {name: float(total) / max(1, num_bytes[name]) for name, total in bits.items()}


def spread_sample(ids: np.ndarray, most: int) -> np.ndarray:
    """All of the ids, or so many of them in blocks that lie evenly over the text."""
    if len(ids) <= most:
        return ids[:]
    size = most // NUM_BLOCKS
    starts = np.linspace(0, len(ids) - size, NUM_BLOCKS).astype(np.int64)
    return np.concatenate([ids[start : start + size] for start in starts])


def unigram(train: np.ndarray, full_size: int) -> np.ndarray:
    """p(w) of each token, (V,)."""
    counts = np.bincount(train, minlength=full_size)
    num_kinds = np.count_nonzero(counts)
    return (counts + num_kinds / full_size) / (len(train) + num_kinds)


def bigram(train: np.ndarray, val: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """p(w | h) of each token of `val` (N,) after the one before it, (N - 1,)."""
    V = len(alone)
    pairs, counts = np.unique(train[:-1] * V + train[1:], return_counts=True)
    num_after = np.bincount(train[:-1], minlength=V)
    num_kinds = np.bincount(pairs // V, minlength=V)
    h, w = val[:-1], val[1:]
    place = np.searchsorted(pairs, h * V + w).clip(max=len(pairs) - 1)
    count = np.where(pairs[place] == h * V + w, counts[place], 0)
    seen = (count + num_kinds[h] * alone[w]) / (num_after[h] + num_kinds[h]).clip(min=1)
    return np.where(num_after[h] > 0, seen, alone[w])


def num_added_bytes(before: bytes, text: bytes) -> int:
    """Bytes by which the file that xz -9 makes grows when the text follows what comes before."""
    window = max(4096, min(1 << 26, len(before + text)))  # no more saves memory and changes no size
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": window}]
    whole, part = (len(lzma.compress(raw, filters=filters)) for raw in (before + text, before))
    return whole - part


def in_background(compute: Callable[[], dict[str, Any]]) -> Callable[[float], dict[str, Any]]:
    """Starts to compute; the result, when asked with the seconds to wait for it, {} before.

    It is an extra: that there is none, for want of memory or of a disk, is a warning.
    """
    results: list[dict[str, Any]] = []

    def work() -> None:
        with only_warn("nothing found out about the text", (Exception,)):
            results.append(compute())

    thread = Thread(target=work, daemon=True)  # no exit waits for it
    thread.start()

    def result(seconds: float) -> dict[str, Any]:
        thread.join(seconds)
        return results[0] if results else {}

    return result
