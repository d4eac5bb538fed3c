"""What attention keeps of the tokens read so far, so that each new token is computed alone.

Shapes: L layers, B batch, H heads, S slots (the capacity), T new tokens, D head size.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

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
    In int8 a slot has the exponent of a power of 2 besides, which its whole numbers count.
    """

    def __init__(
        self,
        model: Transformer,
        batch_size: int,
        capacity: int,
        *,
        dtype: torch.dtype | None = None,
    ) -> None:
        pe, H = model.positional_encoding.pe, model.blocks[0].attention.num_heads
        size = pe.size(1) // H + (dtype == torch.int8)
        shape = (2, len(model.blocks), batch_size, H, capacity, size)
        memory = torch.zeros(shape, device=pe.device, dtype=dtype or pe.dtype)
        self.memory = memory  # (2, L, B, H, S, D or D + 1)
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
        new_keys, new_values = stored(key, keys.dtype), stored(value, keys.dtype)
        if self._is_even:
            keys[:, :, self._start : self._end] = new_keys
            values[:, :, self._start : self._end] = new_values
        else:
            rows = torch.arange(len(key), device=key.device)[:, None]
            keys[rows, :, self._positions] = new_keys.transpose(1, 2)  # (B, T, H, D)
            values[rows, :, self._positions] = new_values.transpose(1, 2)
        if self._end == key.size(2):
            key, value = key.to(query.dtype), value.to(query.dtype)
            return F.scaled_dot_product_attention(query, key, value, is_causal=True)
        seen = read(keys[:, :, : self._end]), read(values[:, :, : self._end])
        return mixed_values(query, *seen, self._mask)

    def select(self, rows: Sequence[int]) -> None:
        """Row i becomes what row `rows[i]` was; there may be fewer rows afterwards, never more."""
        filled = self.memory[:, :, :, :, : max(self.lengths)]
        filled[:, :, : len(rows)] = filled[:, :, rows]
        self.memory = self.memory[:, :, : len(rows)]
        self.lengths = [self.lengths[row] for row in rows]


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


def stored(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers as a cache of the type keeps them: (..., D), in int8 (..., D + 1)."""
    if dtype != torch.int8:
        return numbers.to(dtype)
    largest = numbers.abs().amax(-1, keepdim=True).clamp_(min=1e-30)
    exponent = torch.frexp(largest).exponent - 7
    whole = torch.ldexp(numbers, -exponent).round_().clamp_(max=127)
    return torch.cat([whole, exponent], -1).char()


def read(kept: Tensor) -> Tensor:
    """The numbers that were stored, (..., D), as floats."""
    return torch.ldexp(kept[..., :-1], kept[..., -1:]) if kept.dtype == torch.int8 else kept


def mixed_values(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
    """Attention in the type of the cache: (B, H, T, D), in the query's type."""
    mixed = F.scaled_dot_product_attention(query.to(keys.dtype), keys, values, attn_mask=mask)
    return mixed.to(query.dtype)
