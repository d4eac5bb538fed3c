"""Training and validation share no document; without copies the split is at one place."""

from itertools import chain

import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st

from corpus.split import (
    BLANK,
    Documents,
    Runs,
    SplicedIds,
    apart_from,
    as_bounds,
    from_bounds,
    hash_documents,
    split,
)
from data import GPTDatasetV1
from tokenizer import END_OF_TEXT_ID

NEWLINE = 198
FEW_IDS = [7, 8, 9, NEWLINE, END_OF_TEXT_ID]


def joined(parts):
    return list(chain.from_iterable(parts))


def documents_of(ids, *, hashes=True):
    row = np.array(ids, dtype=np.uint16)
    ends = np.flatnonzero(row == END_OF_TEXT_ID) + 1
    return Documents.of(row, ends, np.concatenate([*hash_documents([row])]) if hashes else None)


def words_of(ids):
    """The documents by their words, as tuples, blank ones left out."""
    words, ended = [()], []
    for token in ids:
        if token == END_OF_TEXT_ID:
            ended.append(words.pop())
            words.append(())
        elif token != NEWLINE:
            words[-1] += (token,)
    return [document for document in ended + words if document]


def whole(part):
    """The documents of a part that are whole, by their words."""
    bounds = zip(part.starts, part.stops, strict=True)
    return {words for start, stop in bounds for words in words_of(part.row[start:stop].tolist())}


def nearest_cut(ids, val_fraction, seq_len):
    """The split by its definition: try every place."""
    first, last = seq_len + 1, len(ids) - 2
    num_val = len(ids) * val_fraction
    wanted = len(ids) - round(num_val)
    near = range(max(first, wanted - int(num_val / 2)), min(last, wanted + int(num_val / 2)) + 1)
    ends = [cut for cut in near if ids[cut - 1] == END_OF_TEXT_ID]
    return min(ends, key=lambda cut: abs(cut - wanted), default=max(first, min(wanted, last)))


@given(
    st.lists(st.sampled_from(FEW_IDS), min_size=3, max_size=99),
    st.sampled_from([0.001, 0.01, 0.1, 0.3, 0.5]),
    st.integers(1, 8),
)
def test_without_copies_the_split_is_at_the_document_end_nearest_to_the_fraction(
    ids, val_fraction, seq_len
):
    assume(len(ids) >= seq_len + 3)
    (train,) = split([documents_of(ids, hashes=False)], val_fraction, seq_len=seq_len)
    cut = nearest_cut(ids, val_fraction, seq_len)
    assert SplicedIds([train])[:].tolist() == ids[:cut]
    assert SplicedIds([train.rest])[:].tolist() == ids[cut:]
    assert len(GPTDatasetV1(SplicedIds([train]), None, seq_len, 1)) >= 1
    assert len(train.rest) >= 2  # one prediction


@given(st.lists(st.integers(0, 9), min_size=20, max_size=60), st.integers(0, 3))
def test_copies_of_a_document_are_never_on_both_sides(numbers, num_texts):
    stories = [[NEWLINE, number, number + 1, 7, NEWLINE, END_OF_TEXT_ID] for number in numbers]
    stories[-1] = stories[-1][1:4]  # the last one of a file lacks what the others have around it
    texts = [joined(stories[n :: num_texts + 1]) for n in range(num_texts + 1)]
    parts = split([documents_of(ids) for ids in texts], 0.2, seq_len=2)
    for part, ids in zip(parts, texts, strict=True):
        places = joined(
            map(range, [*part.starts, *part.rest.starts], [*part.stops, *part.rest.stops])
        )
        assert sorted(places) == list(range(len(ids)))
    again = from_bounds(as_bounds(parts), [part.row for part in parts])
    for part, same in zip(parts, again, strict=True):
        assert (same.starts.tolist(), same.stops.tolist()) == (
            part.starts.tolist(),
            part.stops.tolist(),
        )
        assert same.row is part.row
    trained = set().union(*map(whole, parts))
    validated = set().union(*(whole(part.rest) for part in parts))
    stories = {(number, number + 1, 7) for number in numbers}
    assert not trained & validated & stories
    if len(stories) > 8:
        assert trained & stories
        assert validated


def test_shuffled_copies_are_split_at_the_fraction_and_without_copies_nothing_changes():
    rng = np.random.default_rng(0)
    stories = [[*rng.integers(300, 900, 30), END_OF_TEXT_ID] for _ in range(200)]
    ids = joined(stories[n] for n in rng.permutation(np.repeat(np.arange(200), 20)))
    (train,) = split([documents_of(ids)], 0.1, seq_len=8)
    assert len(train.rest) == len(ids) // 10
    assert not whole(train) & whole(train.rest)
    assert len(whole(train.rest)) == 20
    ids = joined(stories)
    (train,) = split([documents_of(ids)], 0.1, seq_len=8)
    assert (train.starts.tolist(), train.rest.stops.tolist()) == ([0], [len(ids)])


def test_copies_of_one_document_are_all_cut_at_the_same_place():
    ids = [*range(300, 399), END_OF_TEXT_ID] * 5
    (train,) = split([documents_of(ids)], 0.1, seq_len=8)
    assert train.starts.tolist() == [0, 100, 200, 300, 400]
    assert train.stops.tolist() == [90, 190, 290, 390, 490]
    assert train.rest.starts.tolist() == train.stops.tolist()


def test_each_of_several_texts_gives_its_share():
    rng = np.random.default_rng(1)
    texts = [
        joined([*rng.integers(300, 9000, 9), END_OF_TEXT_ID] for _ in range(count))
        for count in (100, 500, 2)
    ]
    parts = split([documents_of(ids) for ids in [*texts, [300, 301]]], 0.1, seq_len=16)
    assert [len(part.rest) for part in parts] == [100, 500, 2, 0]  # the last two are too short


def test_empty_documents_are_no_copies_of_each_other():
    ids = [NEWLINE, END_OF_TEXT_ID] * 1000
    (train,) = split([documents_of(ids)], 0.1, seq_len=16)
    assert (len(train), len(train.rest)) == (1800, 200)
    assert len(train.starts) == len(train.rest.starts) == 1


def test_documents_of_a_validation_text_are_not_trained_on():
    text = documents_of([7, 8, END_OF_TEXT_ID, 9, END_OF_TEXT_ID, NEWLINE, 7, 8, NEWLINE])
    val_text = documents_of([NEWLINE, 7, 8, END_OF_TEXT_ID, END_OF_TEXT_ID])
    (train,) = apart_from([text], [val_text])
    assert SplicedIds([train])[:].tolist() == [9, END_OF_TEXT_ID]


@given(st.lists(st.sampled_from(FEW_IDS), max_size=60), st.integers(1, 9))
def test_a_hash_stands_for_the_words_of_a_document_in_their_order(ids, block_size):
    row = np.array(ids, dtype=np.uint16)
    blocks = [row[at : at + block_size] for at in range(0, len(row), block_size)]
    hashes = np.concatenate([*hash_documents(blocks)])
    text = "".join(map(chr, ids))
    words = [document.replace(chr(NEWLINE), "") for document in text.split(chr(END_OF_TEXT_ID))]
    assert len(hashes) == len(words)
    for document, number in zip(words, hashes, strict=True):
        assert (number == BLANK) == (document == "")
    assert len(set(words)) == len(set(hashes.tolist()))


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 5)), max_size=5), max_size=3),
    st.integers(0, 60),
    st.integers(0, 60),
)
def test_spliced_ids_are_the_runs_one_after_the_other(texts, start, stop):
    parts, expected = [], []
    for number, gaps in enumerate(texts):
        row = np.arange(100 * number, 100 * number + 99, dtype=np.uint16)
        at = np.cumsum([0, *sum(gaps, ())])
        runs = Runs.of(row, at[1::2], at[2::2])
        ids = np.concatenate([row[a:b] for a, b in zip(at[1::2], at[2::2], strict=True)] or [[]])
        if len(ids) and expected:
            expected.append(END_OF_TEXT_ID)
        expected += ids.astype(int).tolist()
        parts.append(runs)
        assert len(runs) == len(ids)
        assert (runs.starts[1:] > runs.stops[:-1]).all()
    spliced = SplicedIds.of_texts(parts)
    assert len(spliced) == len(expected)
    assert spliced[start:stop].tolist() == expected[start:stop]
    assert spliced[:].tolist() == expected
    assert spliced[start:stop].dtype == np.uint16
