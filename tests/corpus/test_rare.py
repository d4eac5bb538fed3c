"""Tokens that come once: which they are, and how they stand for those that never come."""

from collections import Counter

import numpy as np
import pytest
import torch

from corpus import rare
from corpus.rare import rare_rows, read_as_unused
from corpus.split import Runs, SplicedIds
from corpus.vocabulary import Vocabulary
from tokenizer import END_OF_TEXT_ID

V = 50_257
IDS = np.array([5, 5, 9, 700, 31, 9, 9, 50_000, 31, 4, END_OF_TEXT_ID], dtype=np.uint16)
SHARED = 7  # the row of what does not come


def spliced(ids):
    return SplicedIds([Runs.all_of(ids[:3]), Runs.all_of(ids[3:])])


@pytest.mark.parametrize("at_once", [3, 1 << 20])
def test_rare_are_the_words_that_come_once(monkeypatch, at_once):
    monkeypatch.setattr(rare, "AT_ONCE", at_once)
    vocabulary = Vocabulary.of(IDS, V)
    is_rare = rare_rows(spliced(IDS), vocabulary)
    expected = {token for token, count in Counter(IDS.tolist()).items() if count == 1}
    found = set(vocabulary.token_of_row[is_rare].tolist())
    assert found == expected - {END_OF_TEXT_ID} == {4, 700, 50_000}
    assert len(is_rare) == SHARED + 1
    assert not is_rare[SHARED]


def test_nothing_is_rare_without_a_shared_row_nor_in_a_long_text(monkeypatch):
    assert not rare_rows(spliced(IDS), Vocabulary.full(V)).any()
    monkeypatch.setattr(rare, "MOST_COUNTED", len(IDS) - 1)
    assert not rare_rows(spliced(IDS), Vocabulary.of(IDS, V)).any()


def batch_of(num_rows, seq_len, seed=0):
    size = num_rows, seq_len + 1
    windows = torch.from_numpy(np.random.default_rng(seed).integers(0, SHARED, size))
    return windows[:, :-1], windows[:, 1:]


IS_RARE = torch.tensor([False, True, False, False, True, False, True, False])


def test_an_input_is_changed_where_it_is_a_target_and_nothing_else_is():
    inputs, targets = batch_of(9, 13)
    x, y = read_as_unused((inputs, targets), IS_RARE, chance=0.5, key=(42, 3))
    assert torch.equal(x[:, 1:], y[:, :-1])
    for before, after in ((inputs, x), (targets, y)):
        is_changed = before != after
        assert is_changed.any()
        assert (is_changed & ~IS_RARE[before]).sum() == 0
        assert (after[is_changed] == SHARED).all()
        assert (~is_changed & IS_RARE[before]).any()  # others stay what they are


@pytest.mark.parametrize("chance", [0.2, 0.5, 1])
def test_so_many_of_the_rare_ones_are_changed_as_the_chance_says(chance):
    inputs, targets = batch_of(200, 99)
    _, y = read_as_unused((inputs, targets), IS_RARE, chance=chance, key=(1, 2))
    share = (y == SHARED).sum() / IS_RARE[targets].sum()
    assert share.item() == pytest.approx(chance, abs=0.02)


def test_which_ones_follows_from_the_key_alone():
    batch = batch_of(8, 31)
    first, again, other = (
        read_as_unused(batch, IS_RARE, chance=0.5, key=key)[0] for key in ((1, 2), (1, 2), (1, 3))
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_a_chance_or_a_rare_row_the_batch_is_the_same():
    batch = batch_of(2, 5)
    assert read_as_unused(batch, IS_RARE, chance=0.0, key=(1, 2)) is batch
    assert read_as_unused(batch, torch.zeros(8, dtype=bool), chance=1.0, key=(1, 2)) is batch
