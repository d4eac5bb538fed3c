"""Beam search and greedy text equal those of transformers on the same weights."""

import pytest
import torch
from tiny_model import beams_of, tokens_of
from transformers import GPT2Config, GPT2LMHeadModel

from generation.fast_weights import prepared
from model import build_transformer
from weights import huggingface_weights

V = 37
END = V - 1
PROMPTS = torch.randint(V - 1, (20, 5), generator=torch.Generator().manual_seed(3))


@pytest.fixture(scope="module", params=["ending", "wandering"])
def pair(request):
    """A model some of whose tokens are far likelier than others, and transformers' copy of it.

    Its texts end early, or depend so much on the positions that they do not run in a circle.
    """
    is_wandering = request.param == "wandering"
    torch.manual_seed(0)
    T = 128 if is_wandering else 64
    ours = build_transformer(V, T, 16, num_layers=2, num_heads=2, ffn_hidden_dim=32).eval()
    for parameter in ours.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    ours.positional_encoding.pe.data *= 5 if is_wandering else 1
    sizes = {"n_positions": T, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 32}
    config = GPT2Config(vocab_size=V, **sizes, eos_token_id=END, pad_token_id=END)
    theirs = GPT2LMHeadModel(config).eval()
    theirs.transformer.load_state_dict(huggingface_weights(ours))
    return ours, theirs, is_wandering


@torch.no_grad()
def their_text(theirs, num_tokens: int, **settings) -> list[list[int]]:
    """The new ids of each row up to the first end."""
    mask = torch.ones_like(PROMPTS)
    ids = theirs.generate(
        PROMPTS, attention_mask=mask, max_new_tokens=num_tokens, do_sample=False, **settings
    )
    return [cut(row) for row in ids[:, PROMPTS.size(1) :].tolist()]


def cut(ids: list[int]) -> list[int]:
    return ids[: ids.index(END) + 1] if END in ids else ids


def test_greedy_text_is_that_of_transformers_and_of_one_beam(pair):
    ours, theirs, _ = pair
    prompts = PROMPTS.tolist()
    expected = their_text(theirs, 55)
    assert max(len(set(text)) for text in expected) > 3  # the texts are no monotony
    for model in (ours, prepared(ours, "float32")):
        assert [cut(text) for text in tokens_of(model, prompts, 55)] == expected
    assert beams_of(ours, prompts, 55, num_beams=1, stop_tokens={END}) == expected


@pytest.mark.parametrize("length_penalty", [-1.0, 0.0, 2.0])
@pytest.mark.parametrize("num_beams", [2, 3, 5])
def test_beam_search_is_that_of_transformers(pair, num_beams, length_penalty):
    ours, theirs, is_wandering = pair
    settings = {"num_beams": num_beams, "length_penalty": length_penalty}
    found = beams_of(ours, PROMPTS.tolist(), 55, stop_tokens={END}, **settings)
    assert found == their_text(theirs, 55, **settings)
    assert (min(map(len, found)) == 55) == is_wandering


def test_prompts_of_unequal_length_are_searched_as_if_alone(pair):
    ours, *_ = pair
    prompts, settings = [[1], [2, 3, 4, 5, 6], [7, 8]], {"num_beams": 3, "stop_tokens": {END}}
    together = beams_of(ours, prompts, 20, **settings)
    assert together == [beams_of(ours, [prompt], 20, **settings)[0] for prompt in prompts]


def test_more_beams_than_tokens_and_no_new_tokens(pair):
    assert len(beams_of(pair[0], [[1]], 2, num_beams=V + 3)[0]) == 2
    assert beams_of(pair[0], [[1]], 0, num_beams=2) == [[]]
