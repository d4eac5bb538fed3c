"""Beam search: the likeliest continuation that keeping several candidates finds.

Shapes: B prompts, K beams of each, V vocabulary.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch

from generation.decoding import Context
from generation.sampling import check_finite
from generation.settings import Settings
from tokenizer import END_OF_TEXT_ID

UNUSED = -1e9  # score of the beams beside the first, before the first step has told them apart


class Candidate(NamedTuple):
    """A beam and a token that may follow it; `score` is the log-probability of both together."""

    score: float
    beam: int
    token: int


class Search:
    """The beams of one prompt: `scores` of those that go on, and those that have ended."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stop_tokens = {END_OF_TEXT_ID, *settings.stop_tokens}
        self.beams: list[list[int]] = [[] for _ in range(settings.num_beams)]
        self.scores = [0.0] + [UNUSED] * (settings.num_beams - 1)
        self.ended: list[tuple[float, list[int]]] = []  # best first
        self.is_over = False

    def advance(self, candidates: Sequence[Candidate], *, is_last: bool) -> list[int]:
        """Takes the next tokens, best first; returns which beam each new beam comes from."""
        K, going_on = self.settings.num_beams, []
        divisor = (len(self.beams[0]) + 1) ** self.settings.length_penalty
        for rank, candidate in enumerate(candidates):
            if not is_last and candidate.token not in self.stop_tokens:
                going_on.append(candidate)
            elif rank < K:
                ids = [*self.beams[candidate.beam], candidate.token]
                self.ended.append((candidate.score / divisor, ids))
        self.ended = sorted(self.ended, key=lambda pair: -pair[0])[:K]
        going_on = going_on[:K]
        self.beams = [[*self.beams[c.beam], c.token] for c in going_on]
        self.scores = [c.score for c in going_on]
        is_full = len(self.ended) == K
        self.is_over = is_last or (is_full and self.scores[0] / divisor <= self.ended[-1][0])
        return [c.beam for c in going_on]


@torch.inference_mode()
def beam_search(context: Context, settings: Settings) -> list[list[int]]:
    """The ids that follow each prompt, by log-probability / length ** length_penalty.

    The context has every prompt `num_beams` times, one after the other. A search ends when
    `num_beams` texts have ended and no beam that goes on is better, by the same measure, than the
    worst of them; at the context's `max_new_tokens` all beams end.
    """
    K = settings.num_beams
    live = searches = [Search(settings) for _ in context.rows[::K]]
    per_search = (1 + len(searches[0].stop_tokens)) * K
    for step in range(context.max_new_tokens):
        found = best_candidates(context, live, per_search=per_search)
        is_last = step == context.max_new_tokens - 1
        origins = [s.advance(c, is_last=is_last) for s, c in zip(live, found, strict=True)]
        kept = [number for number, search in enumerate(live) if not search.is_over]
        if not kept:
            break
        context.select([number * K + beam for number in kept for beam in origins[number]])
        live = [live[number] for number in kept]
        context.append([beam[-1] for search in live for beam in search.beams])
    return [search.ended[0][1] if search.ended else [] for search in searches]


def best_candidates(
    context: Context, searches: Sequence[Search], *, per_search: int
) -> list[list[Candidate]]:
    """The best continuations of each search, best first."""
    logits = context.logits().float()  # (B * K, V)
    check_finite(logits)
    V = logits.size(-1)
    scores = torch.tensor([search.scores for search in searches], device=logits.device)
    totals = logits.log_softmax(-1).view(len(searches), -1, V) + scores[..., None]  # (B, K, V)
    values, places = totals.flatten(1).topk(min(per_search, totals[0].numel()))
    return [
        [Candidate(score, place // V, place % V) for score, place in zip(*pair, strict=True)]
        for pair in zip(values.tolist(), places.tolist(), strict=True)
    ]
