"""What attention keeps of the tokens read so far, so that each new token is computed alone.

Shapes: L layers, B batch, H heads, S slots (the capacity), T new tokens, D head size.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from generation.row_sums import COLUMNS, plain_sums
from model import MultiHeadAttentionBlock, Transformer


def is_cacheable(model: Transformer) -> bool:
    """Whether no block mixes its values in a way of its own: the caches would ignore that."""
    own = {getattr(type(block.attention), "attend", None) for block in model.blocks}
    return own == {MultiHeadAttentionBlock.attend}


class KeyValueCache:
    """Keys and values of B rows of up to S tokens, in memory that is taken once.

    Row b has read `lengths[b]` tokens and its next one gets that position, whatever the other rows
    have read. Rows of unequal length are read padded at their ends, then `lengths` is set to the
    real ones: no row sees a slot beyond its own position, and later tokens overwrite the padding.
    """

    def __init__(self, model: Transformer, batch_size: int, capacity: int) -> None:
        pe, H = model.positional_encoding.pe, model.blocks[0].attention.num_heads
        shape = (2, len(model.blocks), batch_size, H, capacity, pe.size(1) // H)
        self.memory = torch.zeros(shape, device=pe.device, dtype=pe.dtype)  # (2, L, B, H, S, D)
        self.lengths = [0] * batch_size

    def adopt(self, rows: Sequence[int], cache: "KeyValueCache") -> None:
        """Row `rows[i]` becomes what row i of the other cache, of no more slots, has stored."""
        self.memory[:, :, rows, :, : cache.memory.size(4)] = cache.memory

    def extend(self, num_tokens: int) -> Tensor | slice:
        """Positions of the next tokens, (B, T) or the same for all; `attend` then expects them."""
        starts, device = self.lengths, self.memory.device
        self.lengths = [start + num_tokens for start in starts]
        self._start, self._end = min(starts), max(self.lengths)
        self._is_even = min(starts) == max(starts)
        self._mask = None
        if self._is_even and (num_tokens == 1 or self._start == 0):
            return slice(self._start, self._end)
        steps = torch.arange(num_tokens, device=device)
        self._positions = torch.tensor(starts, device=device)[:, None] + steps
        slots = torch.arange(self._end, device=device)
        self._mask = slots <= self._positions[:, None, :, None]  # (B, 1, T, S)
        return self._positions

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Stores the new keys and values, then mixes for each token all values up to its own."""
        keys, values = self.memory[:, layer]
        if self._is_even:
            keys[:, :, self._start : self._end] = key
            values[:, :, self._start : self._end] = value
        else:
            rows = torch.arange(len(key), device=key.device)[:, None]
            keys[rows, :, self._positions] = key.transpose(1, 2).to(keys.dtype)  # (B, T, H, D)
            values[rows, :, self._positions] = value.transpose(1, 2).to(keys.dtype)
        if self._end == key.size(2):
            key, value = key.to(query.dtype), value.to(query.dtype)
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        seen = keys[:, :, : self._end], values[:, :, : self._end]
        return mixed_values(query, *seen, self._mask)

    def select(self, rows: Sequence[int]) -> None:
        """Row i becomes what row `rows[i]` was; there may be fewer rows afterwards, never more."""
        filled = self.memory[:, :, :, :, : max(self.lengths)]
        filled[:, :, : len(rows)] = filled[:, :, rows]
        self.memory = self.memory[:, :, : len(rows)]
        self.lengths = [self.lengths[row] for row in rows]


class HalfCache(KeyValueCache):
    """The same on a CPU in float16: half as much to read, and attention as sums of weighted rows.

    Keys are (L, G, B, H, D, COLUMNS), G groups of slots: a row is one channel of COLUMNS slots, and
    the sum of D of them, weighted by a query, is the scores of those slots. Values are (L, B, H,
    S, D): a sum over the slots, weighted by attention, is what is mixed.
    """

    def __init__(self, model: Transformer, batch_size: int, capacity: int) -> None:
        pe, H = model.positional_encoding.pe, model.blocks[0].attention.num_heads
        G, D = -(-capacity // COLUMNS), pe.size(1) // H
        keys = len(model.blocks), G, batch_size, H, D, COLUMNS
        values = len(model.blocks), batch_size, H, G * COLUMNS, D
        self.keys, self.values = (torch.zeros(shape, dtype=torch.half) for shape in (keys, values))
        self.lengths = [0] * batch_size

    def adopt(self, rows: Sequence[int], cache: "HalfCache") -> None:
        """Row `rows[i]` becomes what row i of the other cache, of no more slots, has stored."""
        self.keys[:, : cache.keys.size(1), rows] = cache.keys
        self.values[:, rows, :, : cache.values.size(3)] = cache.values

    def select(self, rows: Sequence[int]) -> None:
        """Row i becomes what row `rows[i]` was."""
        self.keys, self.values = self.keys[:, :, rows], self.values[:, rows]
        self.lengths = [self.lengths[row] for row in rows]

    def extend(self, num_tokens: int) -> Tensor:
        """Positions of the next tokens, (B, T)."""
        rows = torch.arange(len(self.lengths))[:, None]
        positions = torch.tensor(self.lengths)[:, None] + torch.arange(num_tokens)
        self.lengths = [length + num_tokens for length in self.lengths]
        n, (B, H, S, D) = max(self.lengths), self.values.shape[1:]
        self._num_seen, self._num_groups = n, -(-n // COLUMNS)
        self._places = rows, positions, positions // COLUMNS, positions % COLUMNS
        if n > num_tokens:  # else the new tokens see each other alone
            self._hidden = torch.arange(n) > positions.T[..., None, None]  # (T, B, 1, n)
            channels = torch.arange(self._num_groups * B * H * D, dtype=torch.int32)
            slots = torch.arange(B * H * S, dtype=torch.int32).view(-1, S)[:, :n].flatten()
            self._of_keys = with_starts(channels.repeat(num_tokens), D)
            self._of_values = with_starts(slots.repeat(num_tokens), n)
        return positions

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Stores the new keys and values, then mixes for each token all values up to its own."""
        B, H, T, D = query.shape
        keys, values, n, G = self.keys[layer], self.values[layer], self._num_seen, self._num_groups
        rows, positions, groups, columns = self._places
        keys[groups, rows, :, :, columns] = key.transpose(1, 2).half()
        values[rows, :, positions] = value.transpose(1, 2).half()
        if n == T:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        factors = (query * D**-0.5).permute(2, 0, 1, 3).half()[:, None].expand(T, G, B, H, D)
        scores = plain_sums(keys.view(-1, COLUMNS), *self._of_keys, factors.flatten())
        scores = scores.view(T, G, B, H, COLUMNS).permute(0, 2, 3, 1, 4).flatten(3)[..., :n].float()
        weights = scores.masked_fill_(self._hidden, -math.inf).softmax(-1).half()
        mixed = plain_sums(values.view(-1, D), *self._of_values, weights.flatten())
        return mixed.view(T, B, H, D).permute(1, 2, 0, 3).to(query.dtype)


def with_starts(rows: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """The rows of sums of `num_rows` each, and where each sum begins."""
    return rows, torch.arange(0, len(rows), num_rows, dtype=torch.int32)


class OneTokenCache:
    """The memory of a KeyValueCache for steps of one token a row, at `positions` (B, 1).

    No shape and no number in such a step depends on how much has been read: whoever changes the
    positions in place can repeat its operations as they are.
    """

    def __init__(self, memory: Tensor, positions: Tensor) -> None:
        self.memory = memory
        self.positions = positions
        self._slots = torch.arange(memory.size(4), device=memory.device)

    def extend(self, num_tokens: int) -> Tensor:
        """Positions of the next tokens, (B, 1)."""
        places = self.positions[:, None, :, None]
        self._place, self._mask = places, self._slots <= places  # (B, 1, 1, S)
        return self.positions

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Stores the new keys and values, then mixes for each token all values up to its own."""
        keys, values = self.memory[:, layer]
        place = self._place.expand_as(key)  # (B, H, 1, D)
        keys.scatter_(2, place, key.to(keys.dtype))
        values.scatter_(2, place, value.to(keys.dtype))
        return mixed_values(query, keys, values, self._mask)


def mixed_values(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention in the type of the cache: (B, H, T, D), in the query's type."""
    mixed = F.scaled_dot_product_attention(query.to(keys.dtype), keys, values, attn_mask=mask)
    return mixed.to(query.dtype)
