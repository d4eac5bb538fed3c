"""Products of one row with a matrix, as sums of the matrix's rows: y = x_1 W_1 + ... + x_K W_K.

torch's matrix products are made for many rows; with one they read the matrix at a half to three
quarters of the memory's rate. `embedding_bag`, a weighted sum of rows of a table, reads bfloat16
and 8 bits at all of it, and nothing is rounded but the table.

Shapes: K inputs, N outputs, G groups of COLUMNS outputs each, for the threads.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

COLUMNS = 128  # of a table: few enough for a sum to stay in registers, many enough to stream


class RowSums(nn.Module):
    """A linear layer that computes one row by sums, from a table of its own; several by `many`.

    A table of type int8 has one scale for each of its rows: each input of each group.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, dtype: torch.dtype, many: nn.Module
    ) -> None:
        super().__init__()
        self.num_outputs, self.many = len(weight), many
        bias = weight.new_zeros(len(weight)) if bias is None else bias
        rows = torch.cat([weight.detach().T, bias.detach()[None]]).float()  # (K + 1, N)
        groups = F.pad(rows, (0, -len(weight) % COLUMNS)).unflatten(1, (-1, COLUMNS))
        table = groups.transpose(0, 1).flatten(0, 1)  # (G * (K + 1), COLUMNS)
        self.shape = groups.size(1), len(rows)
        self.rows = torch.arange(len(table), dtype=torch.int32)
        self.starts = self.rows[:: len(rows)].clone()
        self.table = (
            torch.ops.quantized.embedding_bag_byte_prepack(table)
            if dtype == torch.int8
            else table.to(dtype)
        )
        self.sums = byte_sums if dtype == torch.int8 else plain_sums
        self.factor = torch.ones(1, dtype=torch.float32 if dtype == torch.int8 else dtype)

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() > x.size(-1):
            return self.many(x)
        factors = torch.cat([x.reshape(-1).to(self.factor.dtype), self.factor])  # the bias has 1
        factors = factors.expand(self.shape).reshape(-1)
        sums = self.sums(self.table, self.rows, self.starts, factors)
        return sums.view(-1)[: self.num_outputs].view(*x.shape[:-1], -1)


def plain_sums(table: Tensor, rows: Tensor, starts: Tensor, factors: Tensor) -> Tensor:
    """Of the table's rows times their factors, a sum from each start to the next."""
    return torch.embedding_bag(table, rows, starts, False, 0, False, factors)[0]


def byte_sums(table: Tensor, rows: Tensor, starts: Tensor, factors: Tensor) -> Tensor:
    """The same of a table in 8 bits."""
    product = torch.ops.quantized.embedding_bag_byte_rowwise_offsets.default
    return product(table, rows, starts, False, 0, False, factors)
