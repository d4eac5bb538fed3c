"""Statistics of texts as token ids: how varied they are, and how much is copied."""

from bisect import bisect_left
from collections.abc import Sequence
from functools import cache

import numpy as np

BASE = np.uint64(0x9E3779B97F4A7C15)  # an odd 64-bit number; products wrap around


def distinct_share(ids: Sequence[int], n: int) -> float:
    """Different n-grams among all: distinct_share([1, 2, 1, 2], 2) -> 2/3; 1 without any."""
    grams = ngrams(ids, n)
    return len(set(grams)) / len(grams) if grams else 1.0


def ngrams(ids: Sequence[int], n: int) -> list[tuple[int, ...]]:
    """ngrams([1, 2, 3], 2) -> [(1, 2), (2, 3)]."""
    return list(zip(*(ids[i:] for i in range(n)), strict=False))


def longest_copies(texts: Sequence[Sequence[int]], source: np.ndarray) -> list[int]:
    """Tokens in the longest passage of each text that the source has word for word."""
    source_sums = prefix_hashes(source)
    text_sums = [prefix_hashes(np.asarray(text, dtype=np.int64)) for text in texts]

    @cache
    def found(length: int) -> np.ndarray:
        """The hashes of all texts' windows of that length that are in the source."""
        wanted = np.unique(np.concatenate([window_hashes(sums, length) for sums in text_sums]))
        in_source = window_hashes(source_sums, length)
        nearest = wanted[np.searchsorted(wanted, in_source).clip(max=len(wanted) - 1)]
        return np.unique(nearest[nearest == in_source])

    def is_new(length: int, sums: np.ndarray) -> bool:
        return not np.isin(window_hashes(sums, length), found(length)).any()

    # what is copied has shorter parts that are copied too, so the lengths that are new come last
    return [
        bisect_left(range(1, len(sums)), True, key=lambda length, sums=sums: is_new(length, sums))
        for sums in text_sums
    ]


def prefix_hashes(ids: np.ndarray) -> np.ndarray:
    """Of the first 0, 1, ... N ids, uint64 (N + 1,): the sum of mixed(id) * BASE ** -position.

    Kept as running sums so that the hash of any window is one difference.
    """
    mixed = (ids.astype(np.uint64) + np.uint64(1)) * BASE
    mixed ^= mixed >> np.uint64(29)
    terms = mixed * powers(len(ids), INVERSE)
    return np.concatenate([np.zeros(1, np.uint64), np.cumsum(terms, dtype=np.uint64)])


def window_hashes(sums: np.ndarray, length: int) -> np.ndarray:
    """The hash of every window of that many ids, the same wherever the window lies."""
    differences = sums[length:] - sums[: max(0, len(sums) - length)]
    return differences * powers(len(differences), BASE)


def powers(count: int, base: np.uint64) -> np.ndarray:
    """base ** 0, base ** 1, ... modulo 2 ** 64."""
    factors = np.full(count, base)
    factors[:1] = 1
    return np.multiply.accumulate(factors)


INVERSE = np.uint64(pow(int(BASE), -1, 2**64))
