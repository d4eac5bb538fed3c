"""The step of a few tokens in C++ (step.cpp), made by the machine's own compiler at the first use.

A step in Python starts some hundred small operations, and torch's matrix products are made for many
rows. Here all of it is one call that reads each weight once, at the memory's rate. Without a
compiler, or in a model of another structure, everything is computed by torch.

Shapes: B batch, T time, R = B * T tokens, C channels, S slots.
"""

import ctypes
import os
import shlex
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from generation.kv_cache import KeyValueCache
from model import (
    Dropout,
    FeedForwardNetwork,
    InputEmbeddings,
    LayerNormalization,
    MultiHeadAttentionBlock,
    PositionalEncoding,
    Transformer,
    TransformerBlock,
)
from system.choice import memory_path
from system.files import write_durably

SOURCE = Path(__file__).with_name("step.cpp")
SPEED = "-O3 -march=native -fno-math-errno -fno-trapping-math -fopenmp"
FLAGS = shlex.split(f"-std=c++17 {SPEED} -shared -fPIC")
MACROS = shlex.split(f"-march=native -dM -E -x c++ {os.devnull}")  # of compiler and processor
SECONDS = 60  # for the compiler
# Tokens at once: with more of them, torch's products, made for many, are faster.
FEW = {torch.float32: 4, torch.bfloat16: 2, torch.int8: 8}
STRUCTURE = {
    *(Transformer, TransformerBlock, MultiHeadAttentionBlock, FeedForwardNetwork, Dropout),
    *(InputEmbeddings, PositionalEncoding, LayerNormalization),
    *(nn.Embedding, nn.Linear, nn.ModuleList),
}


@cache
def library() -> ctypes.CDLL | None:
    """step.cpp for this processor, compiled at the first use; None where that does not work."""
    try:
        compiler = shlex.split(os.environ.get("CXX", "c++"))
        processor = output_of([*compiler, *MACROS])
        path = memory_path((compiler, FLAGS, processor, SOURCE.read_bytes()))
        if path is None:
            return None
        path = path.with_suffix(".so")
        with suppress(OSError):  # not there yet, or damaged
            return ctypes.CDLL(str(path))
        with TemporaryDirectory() as folder:
            result = Path(folder) / path.name
            output_of([*compiler, *FLAGS, str(SOURCE), "-o", str(result)])
            write_durably(path, lambda file: file.write(result.read_bytes()))
        return ctypes.CDLL(str(path))
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


def output_of(command: Sequence[str]) -> bytes:
    return subprocess.run(command, capture_output=True, check=True, timeout=SECONDS).stdout


def call(name: str, dtype: torch.dtype, *arguments: Tensor | int) -> None:
    """Calls a function of the library; of tensors it gets the addresses."""
    numbers = [x.data_ptr() if isinstance(x, Tensor) else x for x in arguments]
    function = getattr(library(), f"{name}_{str(dtype).removeprefix('torch.')}")
    function(*map(ctypes.c_int64, numbers), ctypes.c_int(torch.get_num_threads()))


class NativeLinear(nn.Module):
    """A linear layer that computes few rows in C++, more by another one of the same weights."""

    def __init__(
        self, weight: Tensor, bias: Tensor | None, *, scales: Tensor | None, many: nn.Module
    ) -> None:
        super().__init__()
        N = len(weight)
        self.many, self.dtype, self.weight = many, weight.dtype, weight.contiguous()
        self.scales = torch.ones(N) if scales is None else scales.contiguous()
        self.bias = torch.zeros(N) if bias is None else bias.detach().float()

    def forward(self, x: Tensor) -> Tensor:
        N, K = self.weight.shape
        if x.numel() > FEW[self.dtype] * K:
            return self.many(x)
        x = x.float().contiguous()
        result = x.new_empty(*x.shape[:-1], N)
        call("layer", self.dtype, torch.tensor(table_of(self)), x, x.numel() // K, result)
        return result


class NativeStates:
    """`hidden_states` of a model of native layers: in C++ where the tokens are few."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.dtype = model, model.blocks[0].attention.qkv.dtype
        kinds = NativeLinear, LayerNormalization
        self.parts = [part for part in model.modules() if isinstance(part, kinds)]  # in their order
        self.tables: tuple[Tensor, ...] = ()

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "tables": ()}  # a copy has addresses of its own

    def __call__(
        self, tokens: Tensor, cache: KeyValueCache | None = None, **seeds: Tensor
    ) -> Tensor:
        """(B, T) -> (B, T, C), as of `Transformer.hidden_states`."""
        B, T = tokens.shape
        is_few = tokens.numel() <= FEW[self.dtype]
        if not (cache and is_few and cache.memory.dtype == self.dtype):
            return Transformer.hidden_states(self.model, tokens, cache, **seeds)
        positions = [start + step for start in cache.lengths for step in range(T)]
        places = torch.tensor([[row for row in range(B) for _ in range(T)], positions])
        cache.lengths = [start + T for start in cache.lengths]
        pe, memory = self.model.positional_encoding.pe, cache.memory
        assert max(positions) < memory.size(4), "the cache is full"
        x = self.model.input_embedding(tokens).flatten(0, 1) + F.embedding(places[1], pe)
        self.tables = self.tables or self.make_tables()
        where = torch.tensor([memory.data_ptr(), *memory.stride()[:3], memory.size(4)])
        call("step", self.dtype, self.tables[0], where, B * T, places[0], places[1], x)
        return x.unflatten(0, (B, T))

    def make_tables(self) -> tuple[Tensor, ...]:
        """The structs Model and Block of step.cpp, as they lie in memory."""
        numbers = [number for part in self.parts for number in table_of(part)]
        blocks, attention = torch.tensor(numbers), self.model.blocks[0].attention
        sizes = len(self.model.blocks), attention.num_heads, attention.qkv.weight.size(1)
        return torch.tensor([blocks.data_ptr(), *sizes, *numbers[-2:]]), blocks  # the last norm's


def table_of(part: NativeLinear | LayerNormalization) -> list[int]:
    """What a struct of step.cpp has of a part: addresses and sizes."""
    if isinstance(part, NativeLinear):
        tensors = part.weight, part.scales, part.bias
        return [*(tensor.data_ptr() for tensor in tensors), *part.weight.shape]
    return [part.weight.data_ptr(), part.bias.data_ptr()]


def cache_dtype(model: Transformer, num_rows: int) -> torch.dtype:
    """Of the keys and values of so many rows, as they are read fastest."""
    states = vars(model).get("hidden_states")
    is_native = isinstance(states, NativeStates) and num_rows <= FEW[states.dtype]
    return states.dtype if is_native else model.positional_encoding.pe.dtype


def is_plain(model: Transformer) -> bool:
    """Whether nothing is in the model but what step.cpp computes."""
    modules = [*model.modules()]
    sizes = {(b.attention.num_heads, b.feed_forward.expand.weight.shape) for b in model.blocks}
    return (
        {type(module) for module in modules} <= STRUCTURE
        and len(sizes) == 1
        and {parameter.dtype for parameter in model.parameters()} == {torch.float32}
        and not any(module._forward_hooks or module._forward_pre_hooks for module in modules)
    )
