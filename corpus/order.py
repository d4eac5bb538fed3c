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
NOW, EARLIER = "computed", "drawn"  # of a new run, and of a checkpoint that does not name its own

Order = Callable[[np.ndarray, int, tuple[int, ...]], np.ndarray]


class Batches:
    """Batch i of a run, a pure function of (seed, i): each epoch shows every window once.

    The last batch of an epoch holds what is left over, at least one window.
    """

    def __init__(self, dataset: Dataset, batch_size: int, *, seed: int, order: str = NOW) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.order = order  # of ORDERS
        self.num_per_epoch = -(-len(dataset) // batch_size)

    def window_indices(self, i: int, rows: slice = slice(None)) -> np.ndarray:
        """Which windows batch i shows, (B,); of these the `rows` alone, at the cost of those."""
        epoch, position = divmod(i, self.num_per_epoch)
        first = position * self.batch_size
        positions = np.arange(first, min(first + self.batch_size, len(self.dataset)))[rows]
        return ORDERS[self.order](positions, len(self.dataset), (self.seed, epoch))

    def rows(self, i: int, rows: slice) -> tuple[Tensor, Tensor]:
        """Inputs and targets of some rows of batch i, (B, T); of no rows as well."""
        items = [self.dataset[index] for index in self.window_indices(i, rows).tolist()]
        inputs, targets = map(torch.stack, zip(*(items or [self.dataset[0]]), strict=True))
        return inputs[: len(items)], targets[: len(items)]

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return self.rows(i, slice(None))


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
    return _drawn_order(num_items, *key)[positions]


@lru_cache(maxsize=1)
def _drawn_order(num_items: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(num_items)


ORDERS: dict[str, Order] = {NOW: computed, EARLIER: drawn}
