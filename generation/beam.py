"""Beam search: the likeliest continuation that keeping several candidates finds.

Shapes: B prompts, K beams of each, V vocabulary.
"""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import torch

from generation.decoding import Context
from generation.sampling import check_finite

UNUSED = -1e9  # score of the beams beside the first, before the first step has told them apart


class Candidate(NamedTuple):
    """A beam and a token that may follow it; `score` is the log-probability of both together."""

    score: float
    beam: int
    token: int


class Search:
    """The beams of one prompt: `scores` of those that go on, and those that have ended."""

    def __init__(self, num_beams: int, length_penalty: float, stop_tokens: Collection[int]) -> None:
        self.num_beams = num_beams
        self.length_penalty = length_penalty
        self.stop_tokens = stop_tokens
        self.beams: list[list[int]] = [[] for _ in range(num_beams)]
        self.scores = [0.0] + [UNUSED] * (num_beams - 1)
        self.ended: list[tuple[float, list[int]]] = []  # best first
        self.is_over = False

    def advance(self, candidates: Sequence[Candidate], *, is_last: bool) -> list[int]:
        """Takes the next tokens, best first; returns which beam each new beam comes from."""
        ends = [is_last or candidate.token in self.stop_tokens for candidate in candidates]
        length = len(self.beams[0]) + 1
        for candidate, has_ended in list(zip(candidates, ends, strict=True))[: self.num_beams]:
            if has_ended:
                ids = [*self.beams[candidate.beam], candidate.token]
                self.ended.append((candidate.score / length**self.length_penalty, ids))
        self.ended = sorted(self.ended, key=lambda pair: -pair[0])[: self.num_beams]

        going_on = [c for c, has_ended in zip(candidates, ends, strict=True) if not has_ended]
        going_on = going_on[: self.num_beams]
        self.beams = [[*self.beams[c.beam], c.token] for c in going_on]
        self.scores = [c.score for c in going_on]
        is_full = len(self.ended) == self.num_beams
        self.is_over = is_last or (
            is_full and self.scores[0] / length**self.length_penalty <= self.ended[-1][0]
        )
        return [c.beam for c in going_on]

    @property
    def best(self) -> list[int]:
        return self.ended[0][1] if self.ended else []


@torch.inference_mode()
def beam_search(
    context: Context,
    *,
    num_beams: int,
    length_penalty: float = 1.0,
    stop_tokens: Collection[int] = (),
) -> list[list[int]]:
    """The ids that follow each prompt, by log-probability / length ** length_penalty.

    The context has every prompt `num_beams` times, one after the other. A search ends when
    `num_beams` texts have ended and no beam that goes on is better, by the same measure, than the
    worst of them; at the context's `max_new_tokens` all beams end.
    """
    num_prompts = len(context.rows) // num_beams
    searches = [Search(num_beams, length_penalty, stop_tokens) for _ in range(num_prompts)]
    live = searches
    for step in range(context.max_new_tokens):
        found = best_candidates(context, live, per_search=max(2, 1 + len(stop_tokens)) * num_beams)
        is_last = step == context.max_new_tokens - 1
        origins = [s.advance(c, is_last=is_last) for s, c in zip(live, found, strict=True)]
        kept = [number for number, search in enumerate(live) if not search.is_over]
        if not kept:
            break
        context.select([number * num_beams + beam for number in kept for beam in origins[number]])
        live = [live[number] for number in kept]
        context.append([beam[-1] for search in live for beam in search.beams])
    return [search.best for search in searches]


def best_candidates(
    context: Context, searches: Sequence[Search], *, per_search: int
) -> list[list[Candidate]]:
    """The best continuations of each search, best first."""
    logits = context.logits().float()  # (B * K, V)
    check_finite(logits)
    V = logits.size(-1)
    scores = torch.tensor([search.scores for search in searches], device=logits.device)
    totals = logits.log_softmax(-1).view(len(searches), -1, V) + scores[..., None]  # (B, K, V)
    totals = totals.flatten(1)
    values, places = totals.topk(min(per_search, totals.size(1)))
    return [
        [Candidate(score, place // V, place % V) for score, place in zip(*pair, strict=True)]
        for pair in zip(values.tolist(), places.tolist(), strict=True)
    ]
