"""The compact table: which row a token has, and the way back to the full table."""

import numpy as np
import pytest
import torch

from corpus.vocabulary import Vocabulary

IDS = np.array([3, 1, 7, 3, 3, 1], dtype=np.uint16)
V, C = 11, 5


def test_each_token_that_occurs_has_its_own_row_and_the_rest_share_the_last():
    vocabulary = Vocabulary.of(IDS, V)
    assert vocabulary.size == 4
    assert vocabulary.num_shared == 8
    rows = vocabulary.compact(torch.arange(V))
    assert rows.tolist() == [3, 0, 3, 1, 3, 3, 3, 2, 3, 3, 3]


def test_compact_keeps_the_shape_and_gives_indices():
    rows = Vocabulary.of(IDS, V).compact(torch.tensor([[1, 3, 7], [0, 10, 3]]))
    assert rows.dtype == torch.int64
    assert rows.tolist() == [[0, 1, 2], [3, 3, 1]]


def test_tokens_that_must_be_there_have_a_row_without_occurring():
    vocabulary = Vocabulary.of(IDS, V, also_used=[10])
    assert vocabulary.compact(torch.tensor([10])).tolist() == [3]
    assert vocabulary.num_shared == 7


@pytest.mark.parametrize("ids", [IDS, np.arange(V), np.arange(V - 1), np.array([], dtype=int)])
def test_compact_rows_undoes_expand_bit_for_bit(ids):
    vocabulary = Vocabulary.of(ids, V)
    rows = torch.randn(vocabulary.size, C)
    table = vocabulary.expand(rows)
    assert table.shape == (V, C)
    assert torch.equal(vocabulary.compact_rows(table), rows)


def test_a_token_looks_up_the_same_vector_in_both_tables():
    vocabulary = Vocabulary.of(IDS, V)
    rows, tokens = torch.randn(vocabulary.size, C), torch.arange(V)
    assert torch.equal(rows[vocabulary.compact(tokens)], vocabulary.expand(rows)[tokens])


@pytest.mark.parametrize("unused", [[], [V - 1], [4]])
def test_at_most_one_unused_token_shares_nothing(unused):
    vocabulary = Vocabulary.of(np.setdiff1d(np.arange(V), unused), V)
    assert (vocabulary.size, vocabulary.num_shared) == (V, 1)


def test_the_full_vocabulary_changes_nothing():
    vocabulary = Vocabulary.full(V)
    tokens, table = torch.arange(V), torch.randn(V, C)
    assert torch.equal(vocabulary.compact(tokens), tokens)
    assert torch.equal(vocabulary.expand(table), table)
