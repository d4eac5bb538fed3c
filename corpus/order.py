"""Which windows a batch shows: an order that is computed for each window, so that none is stored.

The order of a pass over a source is a permutation drawn from a key: a Feistel network, which adds
to one half of a number a hash of the other half, in turns. Numbers that leave the range go through
it again until they are back ("cycle walking"; Black and Rogaway, Ciphers with Arbitrary Finite
Domains, 2002). Batch i costs the same time and memory wherever it lies and however long the text.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from math import isqrt

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

NUM_ROUNDS = 24  # with 12, some orders of six windows come a fifth more often than others
STEP = np.uint64(0x9E3779B97F4A7C15)  # the hash is splitmix64's, by Vigna
MIX_1, MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
SHIFT_1, SHIFT_2, HALF = np.uint64(30), np.uint64(27), np.uint64(32)
PARTS = 1 << 31  # a source's share is so many of these: products stay below 2**63
NOW, EARLIER = "computed", "drawn"  # of a new run, and of a checkpoint that does not name its own

Order = Callable[[np.ndarray, int, tuple[int, ...]], np.ndarray]


class Batches:
    """Batch i of a run, a pure function of (seed, i): each epoch shows every window once.

    A dataset with `weights` is a mixture, a ConcatDataset of a dataset for each of them: windows
    come in these proportions, each dataset's all before any of them comes again, and an epoch is as
    many as they have together. The last batch of an epoch holds what is left over, at least one.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int,
        *,
        seed: int,
        weights: Sequence[float] = (),
        order: str = NOW,
    ) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.weights = list(weights) or [1]
        self.order = order  # of ORDERS
        self.ends = dataset.cumulative_sizes if weights else [len(dataset)]
        self.num_per_epoch = -(-len(dataset) // batch_size)
        self.full_batch_size = min(batch_size, len(dataset))

    def window_indices(self, i: int, rows: slice = slice(None)) -> np.ndarray:
        """Which windows batch i shows, (B,); of these the `rows` alone, at the cost of those."""
        epoch, position = divmod(i, self.num_per_epoch)
        start, stop = position * self.batch_size, (position + 1) * self.batch_size
        places = epoch * len(self.dataset) + np.arange(start, min(stop, len(self.dataset)))[rows]
        sources, turns = dealt(places, self.weights)
        windows, first = np.empty_like(places), 0
        for number, end in enumerate(self.ends):
            passes = np.where(sources == number, turns // (end - first), -1)
            for of_all in np.unique(passes[passes >= 0]).tolist():
                shown = turns[passes == of_all] % (end - first)
                key = (self.seed, of_all, number)
                windows[passes == of_all] = first + ORDERS[self.order](shown, end - first, key)
            first = end
        return windows

    def rows(self, i: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some rows of batch i, (B, T); of no rows as well."""
        items = [self.dataset[index] for index in self.window_indices(i, rows).tolist()]
        inputs, targets = map(torch.stack, zip(*(items or [self.dataset[0]]), strict=True))
        return inputs[: len(items)], targets[: len(items)]

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.rows(i, slice(None))


def dealt(places: np.ndarray, weights: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """The source that fills each place of a run, and how many places it filled before, (B,) each.

    The first source's share is rounded at every place, so is the second's of what the first leaves,
    and so on: of 20 sources, each has at every place filled its share to within two.
    """
    sources, turns = np.full_like(places, len(weights) - 1), places.copy()
    left = np.arange(len(places))  # where none of the sources so far stands
    for number, weight in enumerate(weights[:-1]):
        share = round(PARTS * weight / sum(weights[number:]))
        share = min(max(share, 1), PARTS - 1)
        before, after = (_filled(turns[left] + n, share) for n in (0, 1))
        is_here = after > before
        sources[left[is_here]] = number
        turns[left] = np.where(is_here, before, turns[left] - before)
        left = left[~is_here]
    return sources, turns


def _filled(places: np.ndarray, share: int) -> np.ndarray:
    """Of the places before these, how many a source fills whose share is so many PARTS of all."""
    return places // PARTS * share + (places % PARTS * share + PARTS // 2) // PARTS


def computed(positions: np.ndarray, num_items: int, key: Sequence[int]) -> np.ndarray:
    """What stands at the positions of the permutation of range(num_items) that the key names."""
    width = isqrt(num_items - 1) + 1  # the square root, rounded up
    width += width % 2  # or the permutations of nine, three by three, would all be even ones
    sizes = np.array([width, -(-num_items // width)], dtype=np.uint64)
    keys = np.random.SeedSequence(key).generate_state(NUM_ROUNDS, np.uint64)
    items, outside = positions.astype(np.uint64), np.arange(len(positions))
    while len(outside):
        items[outside] = _permuted(items[outside], sizes, keys)
        outside = outside[items[outside] >= num_items]
    return items.astype(np.int64)


def _permuted(numbers: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """A permutation of range(sizes[0] * sizes[1]) at `numbers`; sizes below 2**32."""
    size, other = sizes
    left, right = np.divmod(numbers, other)
    for key in keys:
        mixed = right * STEP + key
        mixed = (mixed ^ mixed >> SHIFT_1) * MIX_1
        mixed = (mixed ^ mixed >> SHIFT_2) * MIX_2
        left = left + ((mixed >> HALF) * size >> HALF)
        left -= size * (left >= size)
        left, right, size, other = right, left, other, size
    return left * other + right


def drawn(positions: np.ndarray, num_items: int, key: Sequence[int]) -> np.ndarray:
    """As `computed`, of a permutation in memory: the order of runs that earlier versions began."""
    return _drawn_order(num_items, *key[:2])[positions]


@lru_cache(maxsize=1)
def _drawn_order(num_items: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_items)


ORDERS: dict[str, Order] = {NOW: computed, EARLIER: drawn}
