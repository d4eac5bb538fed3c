"""Passages and near duplicates are counted as a naive program counts them."""

import numpy as np
import pytest

from corpus.duplicates import num_near_duplicates, passages, share_in
from tokenizer import END_OF_TEXT_ID


def naive_share(part: list[int], whole: list[int], n: int = 13) -> float:
    """Of the runs of n tokens without a separator."""
    windows = [
        {tuple(ids[i : i + n]): 0 for i in range(len(ids) - n + 1)}.keys() for ids in (part, whole)
    ]
    wanted = [tuple(part[i : i + n]) for i in range(len(part) - n + 1)]
    wanted = [window for window in wanted if END_OF_TEXT_ID not in window]
    return sum(window in windows[1] for window in wanted) / max(1, len(wanted))


@pytest.mark.parametrize("num_tokens", [0, 1, 12, 13, 14, 300])
def test_the_share_of_passages_is_that_of_a_naive_count(num_tokens):
    draw = np.random.default_rng(num_tokens)
    whole = draw.integers(0, 50_000, 500)
    whole[draw.integers(0, 500, 20)] = END_OF_TEXT_ID
    part = draw.integers(0, 50_000, num_tokens)
    for start in range(0, num_tokens - 20, 40):  # some of it copied, to other places
        part[start : start + 20] = whole[2 * start % 400 :][:20]
    expected = naive_share(part.tolist(), whole.tolist())
    assert share_in(part.astype(np.uint16), whole.astype(np.uint16)) == pytest.approx(expected)
    assert expected > 0 or num_tokens < 300


def test_passages_are_equal_where_their_tokens_are_in_their_order():
    ids = np.array([7, 0, 0, 7, 0, 0, 7, 65_535, 0, 7, 0], np.uint16)
    hashes = passages(ids, 3)
    windows = [tuple(ids[i : i + 3]) for i in range(len(ids) - 2)]
    for hash_, window in zip(hashes, windows, strict=True):
        for other_hash, other in zip(hashes, windows, strict=True):
            assert (hash_ == other_hash) == (window == other)


def test_near_duplicates_are_those_that_share_most_of_their_shingles():
    draw = np.random.default_rng(0)
    different = [draw.integers(0, 50_000, 300).astype(np.uint16) for _ in range(20)]
    changed = different[3].copy()
    changed[150] = 1  # five of 296 shingles: a likeness of 0.97
    half = np.concatenate([different[5][:150], different[6][:150]])  # a third, and a third
    assert num_near_duplicates(different) == 0
    assert num_near_duplicates([*different, changed, half]) == 1
    assert num_near_duplicates([np.array([5], np.uint16), np.array([6], np.uint16)]) == 0
    assert num_near_duplicates([]) == 0
