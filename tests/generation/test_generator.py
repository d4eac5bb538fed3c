"""`TextGenerator` against a naive loop, and the model that it leaves as it was."""

import pytest
import torch
from tiny_model import SIZES, T

from generation.comparison import STRATEGIES
from generation.fast_weights import prepared
from generation.generator import TextGenerator
from generation.row import prompt_ids
from model import Transformer
from storage.checkpoint import EMBEDDING, build_model
from system.errors import CheckpointError, SamplingError
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID


@pytest.fixture(scope="module")
def generator(tokenizer) -> TextGenerator:
    """An untrained model of the whole vocabulary, which likes some tokens far more than others."""
    torch.manual_seed(0)
    model = build_model(SIZES, tokenizer.encoding.n_vocab)
    torch.nn.init.normal_(model.input_embedding.embedding.weight)
    return TextGenerator(model.eval(), tokenizer)


# ---------------------------------------------------------------- many tokens


@torch.no_grad()
def naive_greedy(model: torch.nn.Module, ids: list[int], num_tokens: int) -> list[int]:
    ids = list(ids)
    for _ in range(num_tokens):
        ids.append(model(torch.tensor([ids[-T:]]))[0, -1].argmax().item())
    return ids


def test_greedy_text_is_the_likeliest_token_each_time_past_the_context_too(generator, tokenizer):
    ids = naive_greedy(generator.model, tokenizer.encode("Once upon"), 2 * T)
    text = generator.generate("Once upon", max_new_tokens=2 * T, temperature=0)
    assert text == tokenizer.decode(ids)


@pytest.mark.parametrize("settings", STRATEGIES.values(), ids=STRATEGIES)
def test_the_same_seed_gives_the_same_text(generator, settings):
    texts = [generator.generate("Once", 12, seed=seed, **settings) for seed in (1, 1, 2)]
    assert texts[0] == texts[1]
    assert (texts[0] == texts[2]) == (settings == {"temperature": 0.0})


def test_without_a_seed_texts_differ(generator):
    assert generator.generate("Once", 12) != generator.generate("Once", 12)


def test_streamed_pieces_join_to_the_text(generator):
    settings = {"max_new_tokens": 30, "seed": 3}
    pieces = list(generator.stream("Once", **settings))
    assert len(pieces) == 31  # one for each token, one for what is left
    assert "Once" + "".join(pieces) == generator.generate("Once", **settings)


def test_no_new_tokens_is_the_prompt_and_no_prompts_are_no_texts(generator):
    assert generator.generate("Once", max_new_tokens=0) == "Once"
    assert generator.generate([], 3) == generator.generate([], 3, num_beams=2) == []


def test_several_prompts_and_samples_are_the_texts_that_each_gives_alone(generator):
    together = generator.generate(["One", ""], 12, num_samples=2, seed=5)
    alone = [generator.generate(prompt, 12, seed=seed) for prompt in ("One", "") for seed in (5, 6)]
    assert together == alone


def test_a_stream_is_one_text_in_pieces_or_with_beams_at_once(generator):
    beams = list(generator.stream("Once", 3, num_beams=2))
    assert "Once" + beams[0] == generator.generate("Once", 3, num_beams=2)
    assert len(beams) == 1
    with pytest.raises(SamplingError, match="num_samples=2"):
        next(generator.stream("Once", 3, num_samples=2))


# ---------------------------------------------------------------- the end of a text


@pytest.fixture(scope="module")
def two_words(tokenizer) -> TextGenerator:
    """A model that says token 1 after the tokens 0, 2 and `<|endoftext|>`, which it says after 1.

    Each embedding is (a, -a); normalized and turned around it points to the most opposite a.
    """
    model = build_model({**SIZES, "embedding_dim": 2, "num_heads": 1}, tokenizer.encoding.n_vocab)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for token, a in {0: -1.0, 1: 2.0, 2: -1.0, END_OF_TEXT_ID: -2.0}.items():
            model.input_embedding.embedding.weight[token] = torch.tensor([a, -a])
        model.final_norm.weight.fill_(-1.0)
    return TextGenerator(model, tokenizer)


def test_a_text_ends_at_end_of_text_which_is_not_shown(two_words, tokenizer):
    prompt = tokenizer.decode([0])
    assert two_words.generate(prompt, 50, temperature=0) == tokenizer.decode([0, 1])


# ---------------------------------------------------------------- prompts


def test_an_empty_prompt_is_the_start_of_a_document(generator, tokenizer):
    ids = naive_greedy(generator.model, [END_OF_TEXT_ID], 5)
    assert generator.generate("", 5, temperature=0) == tokenizer.decode(ids[1:])


def test_end_of_text_in_a_prompt_is_plain_text(generator):
    prompt = f"The end.{END_OF_TEXT}"
    assert END_OF_TEXT_ID not in prompt_ids(generator.tokenizer, prompt)
    assert generator.generate(prompt, 3).startswith(prompt)


# ---------------------------------------------------------------- the caller's model


@pytest.fixture
def learner(tokenizer) -> Transformer:
    """A model in the middle of its training, with one frozen layer in evaluation mode."""
    model = build_model({**SIZES, "dropout": 0.5}, tokenizer.encoding.n_vocab).train()
    model.blocks[0].eval()
    return model


USES = {
    "generate": lambda writer: writer.generate("Once", 3, seed=1),
    "beams": lambda writer: writer.generate("Once", 3, num_beams=2),
    "stream": lambda writer: list(writer.stream("Once", 3, seed=1)),
    "abandoned": lambda writer: next(writer.stream("Once", 3, seed=1)),
    "score": lambda writer: writer.score("Once upon"),
    "prepared": lambda writer: prepared(writer.model, "bfloat16")(torch.tensor([[1, 2]])),
}


@pytest.mark.parametrize("name", USES)
def test_a_model_in_training_is_left_as_it_was(learner, tokenizer, name):
    def state() -> list:
        modes = [module.training for module in learner.modules()]
        wanted = [parameter.requires_grad for parameter in learner.parameters()]
        return [modes, wanted, torch.is_grad_enabled(), torch.get_rng_state().tolist()]

    before = state()
    result = USES[name](TextGenerator(learner, tokenizer))
    assert state() == before
    assert result is not None


def test_text_of_a_model_in_training_has_no_dropout(learner, tokenizer):
    writer = TextGenerator(learner, tokenizer)
    pieces = []
    for piece in writer.stream("Once", 12, temperature=0):
        learner.train()  # as a loop would that goes on with its training in between
        pieces.append(piece)
    learner.eval()
    assert "Once" + "".join(pieces) == writer.generate("Once", 12, temperature=0)


def test_settings_and_prompts_are_left_as_they_were(generator):
    prompts, settings = ["Once", "Two"], {"stop": ["x"], "stop_tokens": [3], "seed": 1}
    generator.generate(prompts, 3, **settings)
    assert prompts == ["Once", "Two"]
    assert settings == {"stop": ["x"], "stop_tokens": [3], "seed": 1}


# ---------------------------------------------------------------- rows that are no tokens


@pytest.mark.parametrize("settings", [{"temperature": 3.0, "num_samples": 50}, {"num_beams": 3}])
def test_rows_beyond_the_tokenizer_are_never_chosen(tokenizer, settings):
    """Their text is that of the model without these rows, however likely they are."""
    n_vocab = tokenizer.encoding.n_vocab
    torch.manual_seed(0)
    wide = build_model(SIZES, n_vocab + 47)
    torch.nn.init.normal_(wide.input_embedding.embedding.weight)
    torch.nn.init.normal_(wide.input_embedding.embedding.weight[n_vocab:], std=5.0)
    narrow = build_model(SIZES, n_vocab)
    weights = wide.state_dict()
    weights[EMBEDDING] = weights[EMBEDDING][:n_vocab]
    narrow.load_state_dict(weights)
    texts = [
        TextGenerator(model, tokenizer).generate("Once", 12, seed=0, **settings)
        for model in (wide, narrow)
    ]
    assert texts[0] == texts[1]


def test_a_model_of_too_few_tokens_is_refused_at_once(tokenizer):
    with pytest.raises(CheckpointError, match="too few tokens"):
        TextGenerator(build_model(SIZES, 100), tokenizer)
