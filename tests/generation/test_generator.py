"""`TextGenerator` against a naive loop, and the model that it leaves as it was."""

import numpy as np
import pytest
import torch
from tiny_model import SIZES, T, naive_logits

from generation.comparison import STRATEGIES
from generation.fast_weights import prepared
from generation.generator import TextGenerator
from generation.row import prompt_ids
from generation.scoring import log_probabilities
from model import Transformer
from storage.checkpoint import EMBEDDING, build_model
from system.errors import CheckpointError, SamplingError
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID


@pytest.mark.parametrize("prompt", ["Once upon", ""])
def test_greedy_text_is_the_likeliest_token_each_time_past_the_context_too(
    generator, tokenizer, prompt
):
    ids = tokenizer.encode(prompt) or [END_OF_TEXT_ID]  # the start of a document
    for _ in range(2 * T):
        ids.append(naive_logits(generator.model, ids).argmax().item())
    text = generator.generate(prompt, max_new_tokens=2 * T, temperature=0)
    assert text == tokenizer.decode(ids).removeprefix(END_OF_TEXT)


@pytest.mark.parametrize("settings", STRATEGIES.values(), ids=STRATEGIES)
def test_the_same_seed_gives_the_same_text(generator, settings):
    texts = [generator.generate("Once", 12, seed=seed, **settings) for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert (texts[0] == texts[2]) == (settings == {"temperature": 0.0})


def test_without_a_seed_texts_differ(generator):
    assert generator.generate("Once", 12) != generator.generate("Once", 12)


@pytest.mark.parametrize(("settings", "num_pieces"), [({"seed": 3}, 31), ({"num_beams": 2}, 1)])
def test_streamed_pieces_join_to_the_text(generator, settings, num_pieces):
    pieces = list(generator.stream("Once", 30, **settings))
    assert len(pieces) == num_pieces  # one for each token, one for what is left; beams at once
    assert "Once" + "".join(pieces) == generator.generate("Once", 30, **settings)


def test_no_new_tokens_is_the_prompt_and_no_prompts_are_no_texts(generator):
    assert generator.generate("Once", max_new_tokens=0) == "Once"
    assert generator.generate([], 3) == generator.generate([], 3, num_beams=2) == []


def test_several_prompts_and_samples_are_the_texts_that_each_gives_alone(generator):
    prompts, settings = ["One", ""], {"stop": ["zz"], "stop_tokens": [3], "num_samples": 2}
    together = generator.generate(prompts, 12, seed=5, **settings)
    assert (prompts, settings["stop"], settings["stop_tokens"]) == (["One", ""], ["zz"], [3])
    settings["num_samples"] = 1
    assert together == [
        generator.generate(prompt, 12, seed=seed, **settings)
        for prompt in prompts
        for seed in (5, 6)
    ]


@pytest.mark.parametrize(
    "prompt", [None, 5, b"abc", ["a", 3], np.arange(3), np.array("a"), torch.tensor(1)], ids=repr
)
def test_a_prompt_that_is_no_text_is_named(generator, prompt):
    for write in (generator.generate, lambda given, length: next(generator.stream(given, length))):
        with pytest.raises(SamplingError, match=r"^prompt="):
            write(prompt, 1)


@pytest.mark.parametrize("settings", [{"temperature": 0}, {"num_beams": 2}], ids=str)
def test_a_text_ends_at_end_of_text_which_is_not_shown(tokenizer, settings):
    model = build_model(SIZES, tokenizer.encoding.n_vocab)
    with torch.no_grad():  # all states are ones, to which one embedding is most similar
        model.final_norm.weight.zero_()
        model.final_norm.bias.fill_(1.0)
        model.input_embedding.embedding.weight[END_OF_TEXT_ID] = 9.0
    assert TextGenerator(model, tokenizer).generate("Once", 50, **settings) == "Once"


def test_end_of_text_in_a_prompt_is_plain_text(generator):
    prompt = f"The end.{END_OF_TEXT}"
    assert END_OF_TEXT_ID not in prompt_ids(generator.tokenizer, prompt)
    assert generator.generate(prompt, 3).startswith(prompt)


@pytest.fixture
def learner(tokenizer) -> Transformer:
    """A model in the middle of its training, with one frozen layer in evaluation mode."""
    model = build_model({**SIZES, "dropout": 0.5}, tokenizer.encoding.n_vocab).train()
    model.blocks[0].eval()
    return model


USES = {
    "generate": lambda writer: writer.generate("Once", 3, seed=1),
    "beams": lambda writer: writer.generate("Once", 3, num_beams=2),
    "abandoned": lambda writer: next(writer.stream("Once", 3, seed=1)),
    "scores": lambda writer: log_probabilities(writer.model, [1, 2, 3]),
    "prepared": lambda writer: prepared(writer.model, "bfloat16")(torch.tensor([[1, 2]])),
}


@pytest.mark.parametrize("name", USES)
def test_a_model_in_training_is_left_as_it_was(learner, tokenizer, name):
    def state() -> list:
        modes = [module.training for module in learner.modules()]
        wanted = [parameter.requires_grad for parameter in learner.parameters()]
        return [modes, wanted, torch.is_grad_enabled(), torch.get_rng_state().tolist()]

    before = state()
    assert USES[name](TextGenerator(learner, tokenizer)) is not None
    assert state() == before


def test_text_of_a_model_in_training_has_no_dropout(learner, tokenizer):
    writer = TextGenerator(learner, tokenizer)
    pieces = []
    for piece in writer.stream("Once", 12, temperature=0):
        learner.train()  # as a loop would that goes on with its training in between
        pieces.append(piece)
    learner.eval()
    assert "Once" + "".join(pieces) == writer.generate("Once", 12, temperature=0)


@pytest.mark.parametrize("settings", [{"temperature": 3.0, "num_samples": 50}, {"num_beams": 3}])
def test_rows_beyond_the_tokenizer_are_never_chosen(tokenizer, settings):
    """Their text is that of the model without these rows, however likely they are."""
    n_vocab = tokenizer.encoding.n_vocab
    torch.manual_seed(0)
    wide, narrow = build_model(SIZES, n_vocab + 47), build_model(SIZES, n_vocab)
    table = wide.input_embedding.embedding.weight
    torch.nn.init.normal_(table)
    torch.nn.init.normal_(table[n_vocab:], std=5.0)
    narrow.load_state_dict({**wide.state_dict(), EMBEDDING: table[:n_vocab]})
    texts = [
        TextGenerator(model, tokenizer).generate("Once", 12, seed=0, **settings)
        for model in (wide, narrow)
    ]
    assert texts[0] == texts[1]


def test_a_model_of_too_few_tokens_is_refused_at_once(tokenizer):
    with pytest.raises(CheckpointError, match="too few tokens"):
        TextGenerator(build_model(SIZES, 100), tokenizer)
