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
        N, K = weight.shape
        self.many, self.dtype = many, weight.dtype
        self.parts = (  # kept, for the table has their addresses
            weight.contiguous(),
            torch.ones(N) if scales is None else scales.contiguous(),
            torch.zeros(N) if bias is None else bias.detach().float(),
        )
        self.table = [*(part.data_ptr() for part in self.parts), N, K]
        self.struct = torch.tensor(self.table)

    def forward(self, x: Tensor) -> Tensor:
        N, K = self.table[-2:]
        if x.numel() > FEW[self.dtype] * K:
            return self.many(x)
        x = x.float().contiguous()
        result = x.new_empty(*x.shape[:-1], N)
        call("layer", self.dtype, self.struct, x, x.numel() // K, result)
        return result


class NativeStates:
    """`hidden_states` of a model of native layers: in C++ where the tokens are few."""

    def __init__(self, model: Transformer) -> None:
        self.model, self.dtype = model, model.blocks[0].attention.qkv.dtype
        self.cache_dtype = torch.float32 if self.dtype == torch.float32 else torch.bfloat16
        self.blocks = torch.tensor([x for part in model.blocks.modules() for x in table_of(part)])
        num_heads, C = model.blocks[0].attention.num_heads, model.positional_encoding.pe.size(1)
        sizes = self.blocks.data_ptr(), len(model.blocks), num_heads, C
        self.struct = torch.tensor([*sizes, *table_of(model.final_norm)])

    def __call__(
        self, tokens: Tensor, cache: KeyValueCache | None = None, **seeds: Tensor
    ) -> Tensor:
        """(B, T) -> (B, T, C), as of `Transformer.hidden_states`."""
        B, T = tokens.shape
        is_few = tokens.numel() <= FEW[self.dtype]
        if not (cache and is_few and cache.memory.dtype == self.cache_dtype):
            return Transformer.hidden_states(self.model, tokens, cache, **seeds)
        positions = [start + step for start in cache.lengths for step in range(T)]
        places = torch.tensor([[row for row in range(B) for _ in range(T)], positions])
        cache.lengths = [start + T for start in cache.lengths]
        pe, memory = self.model.positional_encoding.pe, cache.memory
        x = self.model.input_embedding(tokens).flatten(0, 1) + F.embedding(places[1], pe)
        where = torch.tensor([memory.data_ptr(), *memory.stride()[:3], memory.size(4)])
        call("step", self.dtype, self.struct, where, B * T, places[0], places[1], x)
        return x.unflatten(0, (B, T))


def table_of(part: nn.Module) -> list[int]:
    """What a struct of step.cpp has of a part: addresses and sizes."""
    if isinstance(part, NativeLinear):
        return part.table
    is_norm = isinstance(part, LayerNormalization)
    return [part.weight.data_ptr(), part.bias.data_ptr()] if is_norm else []


def cache_dtype(model: Transformer, num_rows: int) -> torch.dtype:
    """Of the keys and values of so many rows, as they are read fastest."""
    states = vars(model).get("hidden_states")
    is_native = isinstance(states, NativeStates) and num_rows <= FEW[states.dtype]
    return states.cache_dtype if is_native else model.positional_encoding.pe.dtype


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
