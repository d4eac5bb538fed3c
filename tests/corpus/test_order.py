"""Batch i is a function of (seed, i): every window once an epoch, in an order that is computed."""

import math
import tracemalloc
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import ConcatDataset

from corpus.order import Batches, computed, dealt, drawn
from corpus.split import Runs, SplicedIds
from data import GPTDatasetV1


def batches_of(num_windows, batch_size, *, seed=3):
    """Batches of windows whose first token is their number."""
    return Batches(GPTDatasetV1(np.arange(num_windows + 2), None, 2, 1), batch_size, seed=seed)


def order_of(batches, epoch=0):
    numbers = range(epoch * batches.num_per_epoch, (epoch + 1) * batches.num_per_epoch)
    return [row[0] for i in numbers for row in batches[i][0].tolist()]


@settings(max_examples=50)
@given(st.integers(1, 30), st.integers(1, 12))
def test_each_epoch_shows_every_window_once_and_the_rest_in_a_last_batch(num_windows, batch_size):
    batches = batches_of(num_windows, batch_size)
    for epoch in range(2):
        assert sorted(order_of(batches, epoch)) == list(range(num_windows))
        assert order_of(batches, epoch) == order_of(batches_of(num_windows, 7), epoch)
    sizes = [len(batches[i][0]) for i in range(batches.num_per_epoch)]
    assert sizes[:-1] == [batch_size] * (len(sizes) - 1)
    assert sizes[-1] == num_windows - batch_size * (len(sizes) - 1) > 0


def test_batch_is_a_function_of_seed_and_number_and_leaves_random_states_alone():
    expected = [batches_of(11, 4)[i][0].tolist() for i in range(9)]
    other, batches = batches_of(11, 4, seed=8), batches_of(11, 4)
    torch.manual_seed(1)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].tolist()
    for i in [8, 0, 3, 3, 7, 1]:
        other[i]
        assert batches[i][0].tolist() == expected[i]
    assert torch.equal(torch.get_rng_state(), state)
    assert np.random.get_state()[1].tolist() == numpy_state


def test_orders_of_seeds_and_epochs_differ():
    orders = [
        order_of(batches_of(29, 4, seed=seed), epoch) for seed in range(4) for epoch in (0, 1)
    ]
    assert len(set(map(tuple, orders))) == len(orders)


def test_batch_holds_the_rows_of_the_dataset():
    batches = batches_of(11, 4)
    inputs, targets = batches[1]
    items = [batches.dataset[index] for index in batches.window_indices(1)]
    assert torch.equal(inputs, torch.stack([item[0] for item in items]))
    assert torch.equal(targets, torch.stack([item[1] for item in items]))


@settings(max_examples=50)
@given(st.integers(1, 30), st.integers(1, 12), st.integers(0, 99), st.integers(0, 12))
def test_rows_of_a_batch_are_those_of_the_whole_batch(num_windows, batch_size, i, start):
    batches = batches_of(num_windows, batch_size)
    inputs, targets = batches[i]
    for rows in (slice(start, start + 2), slice(start % 3, None, 3)):  # a run of rows, every third
        mine = batches.rows(i, rows)
        assert torch.equal(mine[0], inputs[rows])
        assert torch.equal(mine[1], targets[rows])
        assert batches.window_indices(i, rows).tolist() == batches.window_indices(i)[rows].tolist()


def test_memory_stays_flat_over_an_epoch_of_a_mapped_text(tmp_path):
    np.arange(300_000, dtype=np.uint16).tofile(tmp_path / "ids")
    rows = [SplicedIds([Runs.all_of(np.memmap(tmp_path / "ids", np.uint16, "r"))])] * 2
    sources = ConcatDataset([GPTDatasetV1(row, None, 128, 64) for row in rows])
    batches = Batches(sources, 16, seed=0, weights=[1, 2])
    tracemalloc.start()
    try:
        in_use = np.zeros(batches.num_per_epoch, np.int64)
        for i in range(len(in_use)):
            inputs, targets = batches[i]
            assert torch.equal(inputs[:, 1:], targets[:, :-1])
            in_use[i], peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert in_use[50:].max() < in_use[:50].max() + 5000
    assert peak < 300_000  # where the ids of both sources take 1.2 MB


# the permutation


def excess(counts, num_drawn) -> float:
    """How far chi-square lies above its mean, in standard deviations: chance stays below 5."""
    counts = np.asarray(counts, dtype=float).ravel()
    expected, freedom = num_drawn / counts.size, counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("num_items", [*range(1, 40), 255, 256, 257, 10_007])
def test_an_order_has_every_item_once(num_items):
    for key in ((0, 0), (2**31 - 1, 10**6), (7, 1, 3)):
        order = computed(np.arange(num_items), num_items, key)
        assert np.array_equal(np.sort(order), np.arange(num_items))


@pytest.mark.parametrize("num_items", [2, 3, 4])
def test_all_orders_of_few_items_are_equally_frequent(num_items):
    everything = np.arange(num_items)
    seen = Counter(computed(everything, num_items, (n, 1)).tobytes() for n in range(2400))
    assert len(seen) == math.factorial(num_items)
    assert excess([*seen.values()], 2400) < 5


@pytest.mark.parametrize("num_items", [9, 16])  # where a network of equal halves is always even
def test_half_of_the_orders_are_odd_permutations(num_items):
    def is_odd(order):
        return sum((order[:i] > order[i]).sum() for i in range(len(order))) % 2

    odd = sum(is_odd(computed(np.arange(num_items), num_items, (n, 0))) for n in range(400))
    assert abs(odd - 200) < 5 * math.sqrt(400) / 2


def test_items_and_pairs_of_items_are_equally_frequent_at_every_place():
    at_place, neighbours = np.zeros((11, 11)), np.zeros((11, 11))
    for n in range(1500):
        order = computed(np.arange(11), 11, (n, 2))
        at_place[np.arange(11), order] += 1
        neighbours[order[:-1], order[1:]] += 1
    assert excess(at_place, 11 * 1500) < 5
    assert excess(neighbours[~np.eye(11, dtype=bool)], 10 * 1500) < 5


@pytest.mark.parametrize("num_items", [10**6 + 3, 10**12, 2**62])
def test_items_far_beyond_the_memory_are_distinct_and_equally_spread(num_items):
    for start in (0, num_items // 2, num_items - 100_000):
        items = computed(np.arange(start, start + 100_000), num_items, (5, 0))
        assert items.dtype == np.int64
        assert 0 <= items.min() <= items.max() < num_items
        assert len(np.unique(items)) == 100_000
        tenth = items // -(-num_items // 10)
        assert excess(np.bincount(tenth, minlength=10), 100_000) < 5
        pairs = tenth[:-1] * 10 + tenth[1:]  # an item says nothing of the next one
        assert excess(np.bincount(pairs, minlength=100), 99_999) < 5


def test_first_items_of_many_seeds_and_epochs_are_equally_spread():
    firsts = [int(computed(np.zeros(1), 10**12, (n % 500, n // 500))[0]) for n in range(2000)]
    assert excess(np.bincount(np.array(firsts) // (10**12 // 50), minlength=50), 2000) < 5


def test_the_order_of_earlier_versions_is_numpys():
    expected = np.random.default_rng([3, 1]).permutation(29)
    assert drawn(np.arange(29), 29, (3, 1)).tolist() == expected.tolist()
    batches = Batches(GPTDatasetV1(np.arange(31), None, 2, 1), 4, seed=3, order="drawn")
    assert order_of(batches, epoch=1) == expected.tolist()


# mixtures


def mixture_of(sizes, weights, batch_size, *, seed=3):
    """Batches of several sources, whose windows' first tokens are numbered over all of them."""
    ends = np.cumsum(sizes)
    rows = [np.arange(end - size, end + 2) for end, size in zip(ends, sizes, strict=True)]
    datasets = [GPTDatasetV1(row, None, 2, 1) for row in rows]
    return Batches(ConcatDataset(datasets), batch_size, seed=seed, weights=weights)


MIXTURES = st.lists(
    st.tuples(st.integers(1, 30), st.sampled_from([0.01, 0.5, 1, 2.5, 3, 40])),
    min_size=1,
    max_size=6,
)


@settings(max_examples=25)
@given(MIXTURES, st.integers(1, 12))
def test_each_source_of_a_mixture_shows_all_of_its_windows_before_any_again(sources, batch_size):
    sizes, weights = zip(*sources, strict=True)
    batches = mixture_of(sizes, weights, batch_size)
    per_epoch = [len(batches[i][0]) for i in range(batches.num_per_epoch)]
    assert sum(per_epoch) == sum(sizes)
    assert per_epoch[:-1] == [batch_size] * (batches.num_per_epoch - 1)
    shown = np.array(order_of(batches) + order_of(batches, 1) + order_of(batches, 2))
    for size, end in zip(sizes, np.cumsum(sizes), strict=True):
        mine = shown[(end - size <= shown) & (shown < end)]
        for start in range(0, len(mine), size):
            one_pass = mine[start : start + size]
            assert len(set(one_pass)) == len(one_pass)
    for i in (0, batches.num_per_epoch, 2 * batches.num_per_epoch - 1):
        mine = batches.rows(i, slice(1, None, 2))
        assert torch.equal(mine[0], batches[i][0][1::2])


@given(
    st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20),
    st.sampled_from([0, 999, 2**31 - 500, 10**13 + 7]),
)
def test_at_every_place_of_a_run_the_sources_have_filled_their_shares(weights, start):
    sources, turns = dealt(np.arange(start, start + 1000), weights)
    for number, share in enumerate(np.array(weights) / sum(weights)):
        mine = np.flatnonzero(sources == number)
        assert np.array_equal(turns[mine], turns[mine[:1]] + np.arange(len(mine)))
        filled = np.concatenate([[0], np.cumsum(sources == number)])
        ideal = share * np.arange(1001)
        # 2 at either end, and at 10^13 places the share's own rounding
        assert np.abs(filled - ideal).max() <= 4
        if len(mine):
            rounding = 1000 + start / 2**30
            assert abs(turns[mine[0]] - share * (start + mine[0])) <= 2 + rounding * (start > 1e6)


def test_shares_of_a_thousand_batches_are_the_weights_within_a_hundredth():
    batches = mixture_of([500, 90, 7], [3, 1, 0.5], 8)
    for start in (777, 10**9):
        shown = np.concatenate([batches.window_indices(start + i) for i in range(1000)])
        counts = np.histogram(shown, [0, 500, 590, 597])[0] / len(shown)
        assert counts == pytest.approx(np.array([3, 1, 0.5]) / 4.5, rel=0.01)


def test_a_mixture_of_one_source_is_that_source():
    alone, mixed = batches_of(11, 4), mixture_of([11], [0.3], 4)
    for i in range(7):
        assert torch.equal(alone[i][0], mixed[i][0])
