"""How likely a model finds a text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model import Transformer, evaluation_mode
from tokenizer import END_OF_TEXT_ID, GPT2Tokenizer

ROWS_AT_ONCE = 128  # of logits, 50,257 numbers each


@dataclass(frozen=True)
class Score:
    """A document's length and its log-probability in nats, from the start of a document on."""

    num_tokens: int
    num_bytes: int
    log_probability: float

    @property
    def perplexity(self) -> float:
        """exp of the mean loss of a token, inf where that overflows."""
        loss = -self.log_probability / self.num_tokens
        return math.exp(loss) if loss < 700 else math.inf

    @property
    def bits_per_byte(self) -> float:
        return -self.log_probability / math.log(2) / self.num_bytes


def score_document(model: Transformer, tokenizer: GPT2Tokenizer, text: str) -> Score:
    """The score of one document; its first token is predicted from `<|endoftext|>`."""
    ids = tokenizer.encode(text)
    total = log_probabilities(model, [END_OF_TEXT_ID, *ids]).sum().item()
    return Score(len(ids), len(text.encode("utf-8", "replace")), total)


@torch.inference_mode()
def log_probabilities(model: Transformer, ids: Sequence[int]) -> Tensor:
    """Of ids[1:], each from what precedes it: (N - 1,) float32.

    Beyond the context, windows overlap by half, so a token has at least that much before it.
    """
    ids = torch.tensor(ids, device=model.device)
    overlap = max(1, model.seq_len // 2)
    known, parts = 1, []  # ids[:known] have been predicted, or are the start
    with evaluation_mode(model):
        while known < len(ids):
            start = max(0, known - overlap) if known > 1 else 0
            window = ids[start : start + model.seq_len + 1]
            hidden = model.hidden_states(window[None, :-1])[0, known - start - 1 :]
            parts += chosen_log_probabilities(model, hidden, ids[known : start + len(window)])
            known = start + len(window)
    return torch.cat(parts).cpu() if parts else torch.zeros(0)


def chosen_log_probabilities(model: Transformer, hidden: Tensor, targets: Tensor) -> list[Tensor]:
    """Log-probabilities of targets (N,) after states (N, C), in parts that fit in memory."""
    return [
        -torch.nn.functional.cross_entropy(model.head(states).float(), ids, reduction="none")
        for states, ids in zip(hidden.split(ROWS_AT_ONCE), targets.split(ROWS_AT_ONCE), strict=True)
    ]
