"""GPT-2's network: pre-norm transformer blocks, learned positions, the head tied to the input.

Radford et al. 2019, "Language Models are Unsupervised Multitask Learners". Shapes: B batch, T time
in tokens, C channels (embedding_dim), H heads, D = C / H head size, V vocabulary.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INITIAL_STD = 0.02  # of all weights; GPT-2, section 2.3
QUERIES_AT_ONCE = 128  # in written attention, with no keys that are in the future of them all
Seeds = Tensor | None  # an int64 for each row (B,), from which its dropout follows
Mask = Tensor | None  # who looks at whom (B, 1, T, T), in place of each at all up to it
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # query, key, value (B, H, T, D) -> the same


class InputEmbeddings(nn.Module):
    """Token ids (B, T) -> vectors (B, T, C). The same table is the output head."""

    def __init__(self, vocab_size: int, embedding_dim: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, embedding_dim)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens)


def hashed(numbers: Tensor) -> Tensor:
    """Each int64 as another that looks random: the end of splitmix64 (Steele et al. 2014)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 0)):
        numbers = numbers ^ ((numbers >> shift) & (2 ** (64 - shift) - 1))  # shifts zeros in
        numbers = numbers * factor if factor else numbers
    return numbers


def dropout_mask(like: Tensor, probability: float, seeds: Seeds = None) -> Tensor:
    """Zeros with the given probability, to 2^-16 (16 random bits), else what keeps the mean 1.

    The mask of row b follows from seeds[b] alone: it does not matter which rows share a batch, on
    which device, nor how often it is computed.
    """
    if seeds is None:
        seeds = torch.randint(2**63 - 1, (len(like),))
    num_dropped = min(round(probability * 2**16), 2**16 - 1)  # of the values of an int16
    num_elements = math.prod(like.shape[1:])  # of a row; each draw has the bits for four
    numbers = torch.arange(-(-num_elements // 4), device=like.device)
    draws = hashed(seeds.to(like.device)[:, None] + numbers).view(torch.int16)
    mask = torch.empty(like.shape, dtype=like.dtype, device=like.device)
    torch.ge(draws[:, :num_elements].reshape(like.shape), num_dropped - 2**15, out=mask)
    return mask.mul_(2**16 / (2**16 - num_dropped))


class Dropout(nn.Dropout):
    """nn.Dropout with a mask for each row (B, ...) that its seed and this place decide."""

    place = 0  # number of this layer in its model, for each is to have masks of its own

    def forward(self, x: Tensor, seeds: Seeds = None) -> Tensor:
        if not self.training or self.p == 0:
            return x
        return x * dropout_mask(x, self.p, self.seeds_here(seeds))

    def seeds_here(self, seeds: Seeds) -> Seeds:
        return None if seeds is None else seeds + self.place * 2**40  # past all numbers of elements


class PositionalEncoding(nn.Module):
    """Adds the learned vectors of the positions: a slice, or their numbers (B, T)."""

    def __init__(self, seq_len: int, embedding_dim: int, dropout: float) -> None:
        super().__init__()
        self.pe = nn.Parameter(torch.empty(seq_len, embedding_dim))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, positions: slice | Tensor, *, seeds: Seeds = None) -> Tensor:
        return self.dropout(x + self.pe[positions], seeds)


class LayerNormalization(nn.LayerNorm):
    """Layer normalization over C with a weight and a bias per channel; eps inside the root."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__(embedding_dim, eps=1e-5)


def torch_attention(
    *inputs: Tensor, mask: Mask = None, dropout: float = 0.0, seeds: Seeds = None
) -> Tensor:
    """softmax(query key^T / sqrt(D)) value, each position over those up to it: all (B, H, T, D)."""
    inputs, is_causal = (inputs, True) if mask is None else ((*inputs, mask), False)
    attend = partial(F.scaled_dot_product_attention, dropout_p=dropout, is_causal=is_causal)
    return attend(*inputs) if dropout == 0 or seeds is None else row_by_row(attend, inputs, seeds)


@torch.compiler.disable  # it cannot trace how generators are seeded
def row_by_row(attend: Attend, inputs: tuple[Tensor, ...], seeds: Tensor) -> Tensor:
    """Attention whose dropout torch draws, each row after its own seed."""
    results = []
    for seed, *row in zip(seeds.tolist(), *(x.split([1] * len(x)) for x in inputs), strict=True):
        torch.manual_seed(seed)
        results.append(attend(*row))
    return torch.cat(results) if results else inputs[0]


def written_attention(
    *inputs: Tensor, mask: Mask = None, dropout: float = 0.0, seeds: Seeds = None
) -> Tensor:
    """The same formula written out, for machines whose torch has no fast kernel for it."""
    query, key, value = inputs
    (H, T, D), parts = query.shape[1:], []
    is_hidden = query.new_ones(T, T, dtype=torch.bool).triu(1) if mask is None else ~mask
    hidden = query.new_zeros(is_hidden.shape).masked_fill(is_hidden, float("-inf"))
    for start in range(0, T, QUERIES_AT_ONCE):
        now, seen = slice(start, start + QUERIES_AT_ONCE), slice(start + QUERIES_AT_ONCE)
        scores = (query[:, :, now] * D**-0.5) @ key[:, :, seen].transpose(-2, -1)
        weights = F.softmax(scores + hidden[..., now, seen], dim=-1)
        if dropout > 0:
            own = None if seeds is None else seeds + start * H * T  # past all elements so far
            weights = weights * dropout_mask(weights, dropout, own)
        parts.append(weights @ value[:, :, seen])
    return torch.cat(parts, dim=2)


ATTENTIONS = {"torch": torch_attention, "written": written_attention}


class MultiHeadAttentionBlock(nn.Module):
    """Causal self-attention: position t looks at positions 0 to t."""

    def __init__(self, embedding_dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(embedding_dim, 3 * embedding_dim)
        self.projection = nn.Linear(embedding_dim, embedding_dim)
        self.causal_attention = torch_attention
        self.attention_dropout = Dropout(dropout)
        self.residual_dropout = Dropout(dropout)

    def forward(self, x: Tensor, attend: Attend | None = None, **seeds: Tensor) -> Tensor:
        B, T, C = x.shape
        attend = attend or partial(self.attend, **seeds)
        qkv = self.qkv(x).view(B, T, 3, self.num_heads, C // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        mixed = attend(query, key, value).transpose(1, 2).reshape(B, T, C)
        return self.residual_dropout(self.projection(mixed), **seeds)

    def attend(self, *inputs: Tensor, mask: Mask = None, seeds: Seeds = None) -> Tensor:
        dropout = self.attention_dropout.p if self.training else 0.0
        seeds = self.attention_dropout.seeds_here(seeds)
        return self.causal_attention(*inputs, mask=mask, dropout=dropout, seeds=seeds)


class FeedForwardNetwork(nn.Module):
    """Two linear layers around GELU in its tanh form, the one GPT-2 was trained with."""

    def __init__(self, embedding_dim: int, ffn_hidden_dim: int, dropout: float) -> None:
        super().__init__()
        self.expand = nn.Linear(embedding_dim, ffn_hidden_dim)
        self.contract = nn.Linear(ffn_hidden_dim, embedding_dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, seeds: Seeds = None) -> Tensor:
        hidden = F.gelu(self.expand(x), approximate="tanh")
        return self.dropout(self.contract(hidden), seeds)


class TransformerBlock(nn.Module):
    """Attention, then feed-forward; each reads the normalized residual stream and adds to it."""

    def __init__(
        self, embedding_dim: int, num_heads: int, dropout: float, ffn_hidden_dim: int
    ) -> None:
        super().__init__()
        self.attention_norm = LayerNormalization(embedding_dim)
        self.attention = MultiHeadAttentionBlock(embedding_dim, num_heads, dropout)
        self.feed_forward_norm = LayerNormalization(embedding_dim)
        self.feed_forward = FeedForwardNetwork(embedding_dim, ffn_hidden_dim, dropout)

    def forward(self, x: Tensor, attend: Attend | None = None, **seeds: Tensor) -> Tensor:
        x = x + self.attention(self.attention_norm(x), attend, **seeds)
        return x + self.feed_forward(self.feed_forward_norm(x), **seeds)


class Transformer(nn.Module):
    """GPT-2: `model(ids) -> logits`, (B, T) -> (B, T, V), for T up to `seq_len`."""

    def __init__(
        self,
        input_embedding: InputEmbeddings,
        positional_encoding: PositionalEncoding,
        blocks: list[TransformerBlock],
        final_norm: LayerNormalization,
    ) -> None:
        super().__init__()
        self.input_embedding = input_embedding
        self.positional_encoding = positional_encoding
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = final_norm
        for place, layer in enumerate(m for m in self.modules() if isinstance(m, Dropout)):
            layer.place = place

    @property
    def seq_len(self) -> int:
        """The context: the most tokens that the model sees at once."""
        return self.positional_encoding.pe.size(0)

    @property
    def device(self) -> torch.device:
        return self.positional_encoding.pe.device

    def use_attention(self, name: str) -> None:
        """Computes attention by another function of ATTENTIONS; their results are the same."""
        for block in self.blocks:
            block.attention.causal_attention = ATTENTIONS[name]

    def hidden_states(
        self, tokens: Tensor, cache: Any | None = None, *, seeds: Seeds = None
    ) -> Tensor:
        """Ids (B, T), which follow what the cache has read -> final states (B, T, C) for `head`.

        With seeds, dropout in training follows from them alone; else the global generator draws.
        """
        assert tokens.size(1) <= self.seq_len, f"{tokens.size(1)} tokens, context {self.seq_len}"
        positions = cache.extend(tokens.size(1)) if cache else slice(tokens.size(1))
        x = self.positional_encoding(self.input_embedding(tokens), positions, seeds=seeds)
        seeded = {} if seeds is None else {"seeds": seeds}  # variants may know nothing of it
        for layer, block in enumerate(self.blocks):
            x = block(x, partial(cache.attend, layer) if cache else None, **seeded)
        return self.final_norm(x)

    def head(self, hidden: Tensor) -> Tensor:
        """Logits of hidden states: (..., C) -> (..., V). Tied: its weight is the embedding."""
        return F.linear(hidden, self.input_embedding.embedding.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.hidden_states(tokens))


def build_transformer(
    input_vocab_size: int,
    input_seq_len: int,
    embedding_dim: int = 256,
    num_layers: int = 4,
    num_heads: int = 8,
    dropout: float = 0.1,
    ffn_hidden_dim: int = 1024,
) -> Transformer:
    """A freshly initialised model in float32; ValueError names every size that cannot work."""
    check_sizes(**locals())  # every argument under its name
    model = Transformer(
        InputEmbeddings(input_vocab_size, embedding_dim),
        PositionalEncoding(input_seq_len, embedding_dim, dropout),
        [
            TransformerBlock(embedding_dim, num_heads, dropout, ffn_hidden_dim)
            for _ in range(num_layers)
        ],
        LayerNormalization(embedding_dim),
    )
    initialize(model)
    return model


def check_sizes(dropout: float, **sizes: int) -> None:
    """ValueError with everything that no model can be built of."""
    problems = [
        f"{name}={size!r} is not a positive whole number"
        for name, size in sizes.items()
        if not isinstance(size, int) or size < 1
    ]
    embedding_dim, num_heads = sizes["embedding_dim"], sizes["num_heads"]
    if not problems and embedding_dim % num_heads:
        problems.append(f"embedding_dim={embedding_dim} is not a multiple of num_heads={num_heads}")
    if not 0 <= dropout < 1:
        problems.append(f"dropout={dropout} is not in [0, 1)")
    if problems:
        raise ValueError("; ".join(problems))


@torch.no_grad()
def initialize(model: Transformer) -> None:
    """GPT-2's start: N(0, 0.02), biases 0, what adds to the residual stream / sqrt(2 layers)."""
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):
            parameter.zero_()
        elif "norm" in name:
            parameter.fill_(1.0)
        elif name.endswith(("projection.weight", "contract.weight")):
            parameter.normal_(std=INITIAL_STD / (2 * len(model.blocks)) ** 0.5)
        else:
            parameter.normal_(std=INITIAL_STD)


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
