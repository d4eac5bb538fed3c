"""What an export is worth: the written model read back and compared with ours."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from generation.decoding import Context, continue_rows
from generation.row import prompt_ids
from generation.settings import Sampling
from model import Transformer
from tokenizer import GPT2Tokenizer

RECEIPT_TOKENS = 50


@dataclass(frozen=True)
class Receipt:
    """What was written, read back by `reader`, beside the model on a greedy text of the model."""

    reader: str
    logit_difference: float
    num_agreeing: int
    num_tokens: int

    def __str__(self) -> str:
        return (
            f"read back by {self.reader}: largest logit difference {self.logit_difference:.1e}, "
            f"greedy tokens that agree {self.num_agreeing} of {self.num_tokens}"
        )


@torch.no_grad()
def compare(
    model: Transformer, prompt: str, reader: str, logits_of: Callable[[Tensor], Tensor]
) -> Receipt:
    """The receipt for what computes `logits_of(ids)`, (1, T) -> (1, T, V).

    One pass over our greedy text will do: where the likeliest next token is the same at all its
    positions, greedy decoding writes the same text.
    """
    start = prompt_ids(GPT2Tokenizer(), prompt)[: max(1, model.seq_len // 2)]
    num_prompt, num_new = len(start), min(RECEIPT_TOKENS, model.seq_len - len(start))
    context = Context(model, [start], max_new_tokens=num_new)
    steps = continue_rows(context, Sampling(temperature=0), seeds=[0])
    ids = torch.tensor([start + [step[0] for step in steps]])
    ours, theirs = model(ids), logits_of(ids)
    agrees = theirs.argmax(-1)[0, num_prompt - 1 : -1] == ids[0, num_prompt:]
    difference = (ours - theirs).abs().max().item()
    return Receipt(reader, difference, int(agrees.sum()), agrees.numel())


def prompt_of(config: dict[str, Any]) -> str:
    return config.get("sample_prompt", "Once upon a time")
