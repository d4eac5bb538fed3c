"""Beam search and greedy text equal those of transformers on the same weights."""

import pytest
import torch
from tiny_model import beams_of, tokens_of

from benchmarks.generate_peers import as_transformers
from generation.fast_weights import prepared
from storage.checkpoint import build_model

V, T = 37, 64
SIZES = {
    "seq_len": T,
    "embedding_dim": 16,
    "num_layers": 2,
    "num_heads": 2,
    "dropout": 0.0,
    "ffn_hidden_dim": 32,
}
END = V - 1


def rough_model(sizes: dict[str, int] = SIZES, vocab_size: int = V) -> torch.nn.Module:
    """Weights so large that some tokens are far likelier than others."""
    torch.manual_seed(0)
    model = build_model(sizes, vocab_size)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


@pytest.fixture(scope="module")
def pair():
    ours = rough_model()
    return ours, as_transformers(ours)


@pytest.fixture(scope="module")
def wandering_pair():
    """Text that does not run in a circle, for it depends on the positions; room for 128 tokens."""
    sizes = {**SIZES, "seq_len": 128}
    ours = rough_model(sizes)
    torch.nn.init.normal_(ours.positional_encoding.pe, std=2.0)
    return ours, as_transformers(ours)


def some_prompts(count: int, length: int) -> torch.Tensor:
    return torch.randint(V - 1, (count, length), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def their_text(theirs, prompts: torch.Tensor, num_tokens: int, **settings) -> list[list[int]]:
    """The new ids of each row up to the first end."""
    mask = torch.ones_like(prompts)
    ids = theirs.generate(
        prompts, attention_mask=mask, max_new_tokens=num_tokens, do_sample=False, **settings
    )
    return [cut(row) for row in ids[:, prompts.size(1) :].tolist()]


def cut(ids: list[int]) -> list[int]:
    return ids[: ids.index(END) + 1] if END in ids else ids


def greedy_text(model, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    return [cut(text) for text in tokens_of(model, prompts, num_tokens)]


def test_greedy_text_is_that_of_transformers(wandering_pair):
    ours, theirs = wandering_pair
    prompts = some_prompts(20, 5)
    expected = their_text(theirs, prompts, 100)
    assert greedy_text(ours, prompts.tolist(), 100) == expected
    assert greedy_text(prepared(ours, "float32"), prompts.tolist(), 100) == expected
    assert min(len(set(text)) for text in expected) > 5  # the texts are no monotony


@pytest.mark.parametrize("num_beams", [2, 4])
def test_long_beam_search_is_that_of_transformers(wandering_pair, num_beams):
    ours, theirs = wandering_pair
    prompts = some_prompts(20, 5)
    found = beams_of(ours, prompts.tolist(), 100, num_beams=num_beams, stop_tokens={END})
    assert found == their_text(theirs, prompts, 100, num_beams=num_beams)


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 1.0, 2.0])
@pytest.mark.parametrize("num_beams", [2, 3, 5])
def test_beam_search_is_that_of_transformers(pair, num_beams, length_penalty):
    ours, theirs = pair
    prompts = some_prompts(12, 4)
    settings = {"num_beams": num_beams, "length_penalty": length_penalty}
    found = beams_of(ours, prompts.tolist(), 30, stop_tokens={END}, **settings)
    assert found == their_text(theirs, prompts, 30, **settings)
    assert min(map(len, found)) < 30  # some have ended early


def test_prompts_of_unequal_length_are_searched_as_if_alone(pair):
    ours, _ = pair
    prompts = [[1], [2, 3, 4, 5, 6], [7, 8]]
    settings = {"num_beams": 3, "stop_tokens": {END}}
    together = beams_of(ours, prompts, 20, **settings)
    assert together == [beams_of(ours, [prompt], 20, **settings)[0] for prompt in prompts]


def test_one_beam_is_greedy(pair):
    ours, _ = pair
    prompts = some_prompts(5, 3).tolist()
    found = beams_of(ours, prompts, 30, num_beams=1, stop_tokens={END})
    assert found == greedy_text(ours, prompts, 30)


def test_more_beams_than_tokens_and_no_new_tokens(pair):
    ours, _ = pair
    assert len(beams_of(ours, [[1]], 2, num_beams=V + 3)[0]) == 2
    assert beams_of(ours, [[1]], 0, num_beams=2) == [[]]
