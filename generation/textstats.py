"""Statistics of texts as token ids: how varied they are, and how much is copied."""

from collections.abc import Iterator, Sequence

import numpy as np


def windows(ids: Sequence, length: int) -> Iterator[Sequence]:
    """windows("abcd", 3) -> "abc", "bcd"."""
    return (ids[start : start + length] for start in range(len(ids) - length + 1))


def distinct_share(ids: Sequence[int], n: int) -> float:
    """Different n-grams among all: distinct_share([1, 2, 1, 2], 2) -> 2/3; 1 without any."""
    grams = list(windows(tuple(ids), n))
    return len(set(grams)) / len(grams) if grams else 1.0


def longest_copies(texts: Sequence[Sequence[int]], source: np.ndarray) -> list[int]:
    """Tokens in the longest passage of each text that the source has word for word."""
    # ids as characters: Python compares and hashes slices of strings fastest
    source, *texts = ("".join(map(chr, ids)) for ids in (source.tolist(), *texts))
    longest, starts, length = [0] * len(texts), range(len(source)), 1
    while starts:  # a longer copy starts only where a shorter one does
        passages = [set(windows(text, length)) for text in texts]
        wanted = set().union(*passages)
        starts = [start for start in starts if source[start : start + length] in wanted]
        copied = {source[start : start + length] for start in starts}
        for number, own in enumerate(passages):
            longest[number] += not copied.isdisjoint(own)
        length += 1
    return longest
