"""Text that occurs more than once: passages in two texts, and documents that nearly agree.

N tokens. Hashes are taken modulo 2^64, which numpy's unsigned numbers do by themselves.
"""

from collections.abc import Sequence

import numpy as np

from tokenizer import END_OF_TEXT_ID

FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse
PASSAGE_TOKENS = 13  # as the authors of GPT-3 took to find test texts in what they trained on
SHINGLE_TOKENS = 5
LIKE = 0.8  # this share of all shingles of two documents is in both


def passages(ids: np.ndarray, num_tokens: int = PASSAGE_TOKENS) -> np.ndarray:
    """A hash of each passage of so many tokens that no separator interrupts, (N,) uint64."""
    count = max(0, len(ids) - num_tokens + 1)
    factors, inverses = (
        np.cumprod(np.full(length, factor, dtype=np.uint64))
        for length, factor in ((len(ids), FACTOR), (count, pow(FACTOR, -1, 1 << 64)))
    )
    sums = np.append(np.uint64(0), np.cumsum(ids.astype(np.uint64) * factors))
    num_ends = np.append(0, np.cumsum(ids == END_OF_TEXT_ID))
    first, last = slice(count), slice(num_tokens, num_tokens + count)
    return ((sums[last] - sums[first]) * inverses)[num_ends[last] == num_ends[first]]


def found_in(wanted: np.ndarray, hashes: np.ndarray) -> int:
    """How many of the wanted hashes are among the others: (N,) and (M,) -> 0 to N."""
    wanted, hashes = np.sort(wanted), np.sort(hashes)  # sorted ones are found faster by far
    first, last = (np.searchsorted(hashes, wanted, side=side) for side in ("left", "right"))
    return int((first < last).sum())


def share_in(part: np.ndarray, whole: np.ndarray) -> float:
    """Share of one text's passages that occur in another: (N,) and (M,) ids -> 0 to 1."""
    wanted = passages(part)
    return found_in(wanted, passages(whole)) / max(1, len(wanted))


def num_near_duplicates(documents: Sequence[np.ndarray]) -> int:
    """How many of the documents, none equal to another, are like one that comes before.

    ImportError without datasketch, whose MinHash of 128 numbers estimates how alike two are.
    """
    from datasketch import MinHash, MinHashLSH

    index, count = MinHashLSH(threshold=LIKE, num_perm=128), 0
    for number, ids in enumerate(documents):
        shingles = passages(ids, min(len(ids), SHINGLE_TOKENS)) * np.uint64(FACTOR)
        sketch = MinHash(num_perm=128, hashfunc=int)
        sketch.update_batch(np.unique(shingles >> np.uint64(32)))
        count += bool(index.query(sketch))
        index.insert(number, sketch)
    return count
