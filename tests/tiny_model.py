"""A model of a few thousand numbers whose choices are clear, and texts that it continues."""

from collections.abc import Callable, Sequence

import torch

from generation.beam import beam_search
from generation.decoding import Context, continue_rows
from generation.settings import Sampling, Settings
from model import Transformer
from storage.checkpoint import build_model

V, T = 11, 7
SIZES = {
    "seq_len": T,
    "embedding_dim": 12,
    "num_layers": 2,
    "num_heads": 3,
    "dropout": 0.5,
    "ffn_hidden_dim": 20,
}


def clear_model() -> Transformer:
    """Weights far from uniform, so that wrong reads change the choice."""
    torch.manual_seed(0)
    model = build_model(SIZES, V)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@torch.no_grad()
def naive_logits(model: Transformer, ids: Sequence[int]) -> torch.Tensor:
    """Of the next token, without a cache, from what the model sees of the text."""
    return model(torch.tensor([seen(ids)], device=model.device))[0, -1]


def seen(ids: Sequence[int]) -> Sequence[int]:
    """Its window, which drops the first two of T = 7 tokens whenever it has grown too long."""
    while len(ids) > T:
        ids = ids[2:]
    return ids


def check_logits(context: Context, tolerance: float = 1e-4) -> None:
    """They are those of reading the window of each row anew."""
    expected = torch.stack([naive_logits(context.model, row) for row in context.rows])
    # float32, other summation order: some 1e-6 of logits near 10
    torch.testing.assert_close(context.logits(), expected, rtol=tolerance, atol=tolerance)


def tokens_of(
    model, prompts, num_tokens, *, sampling=None, seeds=None, **ending
) -> list[list[int]]:
    """All tokens of each row; greedy unless a `sampling` is given."""
    texts = [[] for _ in prompts]
    context = Context(model, prompts, max_new_tokens=num_tokens)
    sampling, seeds = sampling or Sampling(temperature=0), seeds or range(len(prompts))
    for step in continue_rows(context, sampling, seeds=seeds, **ending):
        for row, token in step.items():
            texts[row].append(token)
    return texts


def beams_of(model, prompts, num_tokens, *, num_beams, **settings) -> list[list[int]]:
    """What beam search finds for each prompt."""
    rows = [prompt for prompt in prompts for _ in range(num_beams)]
    context = Context(model, rows, max_new_tokens=num_tokens)
    return beam_search(context, Settings(num_beams=num_beams, **settings))


def ending_after(lengths: Sequence[int]) -> Callable[[int], bool]:
    """Ends row b once it has been asked about `lengths[b]` times, after one token each."""
    written = [0] * len(lengths)

    def is_over(row: int) -> bool:
        written[row] += 1
        return written[row] >= lengths[row]

    return is_over
