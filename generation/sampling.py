"""How the next token is chosen: filters on logits in a fixed order, then a draw.

Every filter takes logits (B, V) and returns new ones; a token that is out has -inf. The order:
repetition penalty, no repeated n-grams, temperature, top-k, top-p, min-p, typical.

Shapes: B batch, V vocabulary. A history is the ids of each row so far, prompt included.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from generation.settings import Sampling
from system.errors import NonFiniteError

MANY_TOKENS = 1024  # a nucleus is nearly always smaller; finding so many is cheaper than sorting
LOWEST = 1e-30  # temperature that float32 can divide by; far colder than any two logits can tell
History = Sequence[Sequence[int]]


def filtered(logits: Tensor, history: History, sampling: Sampling) -> Tensor:
    """The logits to draw from, float32, or with temperature 0 those whose highest is taken."""
    logits = logits.float()
    if sampling.repetition_penalty != 1:
        logits = penalize_repetition(logits, history, sampling.repetition_penalty)
    if sampling.no_repeat_ngram:
        logits = ban_repeated_ngrams(logits, history, sampling.no_repeat_ngram)
    if sampling.temperature == 0:
        return logits
    # Relative to the highest, so that a tiny temperature cannot overflow.
    logits = (logits - logits.amax(-1, keepdim=True)) / max(sampling.temperature, LOWEST)
    for keep, setting in (
        (keep_top_k, sampling.top_k),
        (keep_top_p, sampling.top_p),
        (keep_min_p, sampling.min_p),
        (keep_typical, sampling.typical_p),
    ):
        if setting is not None:
            logits = keep(logits, setting)
    return logits


def choose(
    logits: Tensor, history: History, sampling: Sampling, generators: Sequence[torch.Generator]
) -> Tensor:
    """One token id a row, (B,); row b draws from `generators[b]` alone."""
    check_finite(logits)
    logits = filtered(logits, history, sampling)
    return logits.argmax(-1) if sampling.temperature == 0 else draw(logits, generators)


def check_finite(logits: Tensor) -> None:
    """NonFiniteError where a row's highest logit is NaN or infinite."""
    if not logits.amax(-1).isfinite().all():
        raise NonFiniteError("the model's logits are NaN: its weights are broken, train anew")


def draw(logits: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """A token a row, (B,), with its softmax probability: one uniform number, inverted.

    In float64 and on the CPU, so that a seed means the same on every device.
    """
    cumulative = logits.softmax(-1).cpu().double().cumsum(-1)
    uniform = [torch.rand(1, dtype=torch.float64, generator=source) for source in generators]
    total = cumulative[:, -1:]
    # Strictly below the total, so that no rounding leads to a token of probability 0.
    point = torch.minimum(torch.stack(uniform) * total, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, point, right=True)[:, 0].to(logits.device)


def penalize_repetition(logits: Tensor, history: History, penalty: float) -> Tensor:
    """Tokens of the row's history made less likely for penalty > 1 (Keskar et al. 2019).

    Their logit is divided by the penalty where it is positive, multiplied where it is negative.
    """
    is_seen = mark(logits, [set(row) for row in history])
    penalized = torch.where(logits > 0, logits / penalty, logits * penalty)
    return torch.where(is_seen, penalized, logits)


def ban_repeated_ngrams(logits: Tensor, history: History, n: int) -> Tensor:
    """-inf for tokens that would complete an n-gram which the row already has.

    A row in which that leaves no token stays as it is.
    """
    is_banned = mark(logits, [completions(row, n) for row in history])
    is_banned &= ~is_banned.all(-1, keepdim=True)
    return logits.masked_fill(is_banned, -math.inf)


def completions(row: Sequence[int], n: int) -> set[int]:
    """What followed the last n - 1 ids before: completions([1, 2, 3, 1, 2], 3) -> {3}."""
    row = tuple(row)
    context = row[len(row) - n + 1 :]
    starts = range(len(row) - n + 1)
    return {row[i + n - 1] for i in starts if row[i : i + n - 1] == context}


def mark(logits: Tensor, ids: Sequence[set[int]]) -> Tensor:
    """A mask (B, V) that is true at the ids of each row."""
    mask = torch.zeros(logits.shape, dtype=torch.bool)
    for row, row_ids in zip(mask, ids, strict=True):
        row[list(row_ids)] = True
    return mask.to(logits.device)


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """(B, V) with all but the k highest logits of each row at -inf; ties with the k-th stay."""
    lowest_kept = logits.topk(min(k, logits.size(-1))).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < lowest_kept, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """(B, V) with the nucleus kept: the fewest tokens whose probabilities reach p, others -inf.

    The token that crosses p belongs to it (Holtzman et al. 2020). Of equals the first ids are kept.
    """
    return keep_first(logits, p, preference=logits)


def keep_min_p(logits: Tensor, p: float) -> Tensor:
    """(B, V) without tokens less likely than p times the likeliest (Nguyen et al. 2024)."""
    return logits.masked_fill(logits < logits.amax(-1, keepdim=True) + math.log(p), -math.inf)


def keep_typical(logits: Tensor, p: float) -> Tensor:
    """(B, V) with the fewest tokens that reach p, the most typical first (Meister et al. 2022).

    Typical is a token whose information is near the entropy of the distribution.
    """
    logs = logits.log_softmax(-1)
    entropy = -(logs.exp() * logs).nansum(-1, keepdim=True)
    return keep_first(logits, p, preference=-(logs + entropy).abs())


def keep_first(logits: Tensor, p: float, *, preference: Tensor) -> Tensor:
    """(B, V) with the fewest tokens that reach probability p, taken by descending preference."""
    if p >= 1:
        return logits
    probabilities = logits.softmax(-1)
    for num_tokens in (min(MANY_TOKENS, logits.size(-1)), logits.size(-1)):
        values, ids = first_by(preference, num_tokens)
        mass = probabilities.gather(-1, ids)
        is_in = mass.cumsum(-1) - mass < p
        # Equal tokens beyond those found have no say if the last one found is clearly out.
        lowest_in = values.masked_fill(~is_in, math.inf).amin(-1)
        if (lowest_in > values[:, -1]).all():
            break
    is_kept = torch.zeros_like(logits, dtype=torch.bool).scatter(-1, ids, is_in)
    return logits.masked_fill(~is_kept, -math.inf)


def first_by(preference: Tensor, num_tokens: int) -> tuple[Tensor, Tensor]:
    """Values and ids (B, num_tokens) by descending preference, equal ones by ascending id."""
    if num_tokens == preference.size(-1):
        return preference.sort(descending=True, stable=True)
    ids = preference.topk(num_tokens).indices.sort().values
    values, order = preference.gather(-1, ids).sort(descending=True, stable=True)
    return values, ids.gather(-1, order)
