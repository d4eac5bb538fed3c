"""The baselines are what a naive count, and xz itself, make of the same text."""

import lzma
import math
import threading
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from corpus import baselines as module
from corpus.baselines import (
    baselines,
    bigram,
    in_background,
    num_added_bytes,
    spread_sample,
    unigram,
)

V = 50257


def naive_bits(train: list[int], val: list[int]) -> tuple[float, float]:
    """Bits of val[1:] by Witten and Bell's formula, one token at a time."""
    counts, pairs = Counter(train), Counter(pairwise(train))
    after, kinds = Counter(train[:-1]), Counter(h for h, _ in pairs)
    alone, following = 0.0, 0.0
    for h, w in pairwise(val):
        p = (counts[w] + len(counts) / V) / (len(train) + len(counts))
        alone -= math.log2(p)
        if after[h]:
            p = (pairs[h, w] + kinds[h] * p) / (after[h] + kinds[h])
        following -= math.log2(p)
    return alone, following


@pytest.mark.parametrize(
    ("train", "val"),
    [
        ("a cat sat. a cat sat on a mat.", "a cat sat on a dog."),
        ("xyz", "Words that never came before, 雪 and 🎃."),
        ("a b", "a a"),
        ("the moon the moon the moon", "the moon<|endoftext|>the sun"),
    ],
)
def test_the_baselines_are_those_of_a_naive_count_and_of_xz(tokenizer, train, val):
    train_ids, val_ids = (tokenizer.encode(text, allowed_special="all") for text in (train, val))
    num_bytes = len(tokenizer.decode(val_ids[1:]).encode())
    ids = np.array(train_ids, np.uint16), np.array(val_ids, np.int64)
    found = baselines(*ids, np.ones(len(val_ids) - 1, bool), tokenizer)
    alone, following = naive_bits(train_ids, val_ids)
    before = train.encode()
    added = len(lzma.compress(before + val.encode(), preset=9)) - len(
        lzma.compress(before, preset=9)
    )
    expected = {"unigram": alone, "bigram": following, "xz": 8 * added}
    assert found == pytest.approx({name: bits / num_bytes for name, bits in expected.items()})


def test_counts_are_asked_for_what_an_evaluation_is_about_alone(tokenizer):
    texts = ("a cat sat. a dog sat.", "a cat<|endoftext|>Once sat<|endoftext|>")
    train, val = (np.array(tokenizer.encode(text, allowed_special="all")) for text in texts)
    is_predicted = val[:-1] != 50256
    found = baselines(train, val, is_predicted, tokenizer)
    everything = baselines(train, val, np.ones(len(val) - 1, bool), tokenizer)
    p = unigram(train, V)[val[1:]][is_predicted]
    num_bytes = len(" cat<|endoftext|> sat<|endoftext|>")
    assert found["unigram"] == pytest.approx(-np.log2(p).sum() / num_bytes)
    assert found["bigram"] != everything["bigram"]
    assert found["xz"] == everything["xz"]


def test_probabilities_sum_to_one_after_every_token():
    train = np.random.default_rng(0).integers(0, 7, 40)
    alone = unigram(train, 9)
    assert alone.sum() == pytest.approx(1)
    for h in range(9):  # 7 and 8 are followed by nothing
        val = np.array([item for w in range(9) for item in (h, w)])
        assert bigram(train, val, alone)[::2].sum() == pytest.approx(1)


def test_a_small_window_writes_what_xz_9_writes():
    raw = np.random.default_rng(0).choice([b"red ", b"ball ", b"\xff"], 30_000).tobytes()
    for size in (0, 1, 5000, len(raw)):
        text = raw[:size]
        empty, whole = (len(lzma.compress(raw, preset=9)) for raw in (b"", text))
        assert num_added_bytes(b"", text) == whole - empty


def test_a_large_training_part_is_read_in_blocks_over_all_of_it(tokenizer, monkeypatch):
    ids = np.arange(100_000) % V
    assert spread_sample(ids, 100_000) is not None
    assert np.array_equal(spread_sample(ids, 100_000), ids)
    sample = spread_sample(ids, 6400)
    assert (len(sample), sample[0], sample[-1]) == (6400, ids[0], ids[-1])
    assert np.diff(sample).max() < 2000
    monkeypatch.setattr(module, "MAX_COMPRESSED", 1000)
    text = "Once there was a cat. " * 500
    ids = np.array(tokenizer.encode(text), np.uint16)
    found = baselines(ids, ids[:100], np.ones(99, bool), tokenizer)
    before, val = text[-1000:].encode(), tokenizer.decode(ids[:100].tolist()).encode()
    added = num_added_bytes(before, val)
    assert found["xz"] == pytest.approx(8 * added / len(tokenizer.decode(ids[1:100].tolist())))


def test_what_is_computed_in_the_background_is_there_when_it_is_done():
    may_end = threading.Event()

    def compute() -> dict[str, float]:
        may_end.wait()
        return {"xz": 2.0}

    result = in_background(compute)
    assert result(0.0) == {}
    may_end.set()
    assert result(60.0) == {"xz": 2.0}
    assert result(0.0) == {"xz": 2.0}


def test_what_fails_in_the_background_is_a_warning(capsys):
    def compute() -> dict[str, float]:
        raise MemoryError

    assert in_background(compute)(60.0) == {}
    assert capsys.readouterr().err.startswith("warning: nothing found out about the text: out of")
