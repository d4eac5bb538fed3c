"""Text from a model: `TextGenerator` against a naive loop, and `python generate.py`."""

import re
from pathlib import Path

import pytest
import torch
from tiny_model import SIZES, T

from generation.comparison import STRATEGIES, side_by_side
from generation.generator import TextGenerator
from generation.row import printable
from storage import checkpoint
from storage.checkpoint import build_model
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID

ROOT = Path(__file__).parent.parent.parent
B = 3


@pytest.fixture(scope="module")
def generator(tokenizer) -> TextGenerator:
    """An untrained model of the whole vocabulary, which likes some tokens far more than others."""
    torch.manual_seed(0)
    model = build_model(SIZES, tokenizer.encoding.n_vocab)
    torch.nn.init.normal_(model.input_embedding.embedding.weight)
    return TextGenerator(model, tokenizer)


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


def test_rows_of_a_batch_do_not_see_each_other(generator):
    tokens = torch.randint(1000, (B, 4), generator=torch.Generator().manual_seed(1))
    together = list(generator.stream_tokens(tokens, 2 * T, temperature=0))
    for row, column in zip(tokens.tolist(), torch.stack(together, dim=1).tolist(), strict=True):
        assert row + column == naive_greedy(generator.model, row, 2 * T)


def test_identical_rows_of_a_batch_are_sampled_each_for_itself(generator):
    tokens = torch.full((20, 2), 5)
    first = next(generator.stream_tokens(tokens, 1, seed=0))
    assert len(set(first.tolist())) > 2


def test_no_new_tokens_is_the_prompt(generator):
    assert generator.generate("Once", max_new_tokens=0) == "Once"


def test_poll_can_stop_the_text_between_tokens(generator):
    def poll() -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        generator.generate("Once", 5, poll=poll)


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


def test_a_row_that_has_ended_stays_ended_while_others_go_on(two_words):
    tokens = torch.tensor([[1], [0]])
    steps = [step.tolist() for step in two_words.stream_tokens(tokens, 50, temperature=0)]
    assert steps == [[END_OF_TEXT_ID, 1], [END_OF_TEXT_ID, END_OF_TEXT_ID]]


# ---------------------------------------------------------------- prompts


def test_an_empty_prompt_is_the_start_of_a_document(generator, tokenizer):
    assert generator.prompt_ids("") == [END_OF_TEXT_ID]
    ids = naive_greedy(generator.model, [END_OF_TEXT_ID], 5)
    assert generator.generate("", 5, temperature=0) == tokenizer.decode(ids[1:])


def test_end_of_text_in_a_prompt_is_plain_text(generator):
    prompt = f"The end.{END_OF_TEXT}"
    assert END_OF_TEXT_ID not in generator.prompt_ids(prompt)
    assert generator.generate(prompt, 3).startswith(prompt)


@pytest.mark.parametrize("unit", ["word ", "a", " ", "😀", "!?"])
def test_a_prompt_of_a_megabyte_is_read_by_its_end(generator, tokenizer, unit):
    prompt = unit * (1_000_000 // len(unit.encode()))
    text = generator.generate(prompt, 3, temperature=0)
    last = tokenizer.encode(prompt)[-T:]
    new_ids = naive_greedy(generator.model, last, 3)[T:]
    assert text == prompt + tokenizer.decode(new_ids)


# ---------------------------------------------------------------- for the eye


def test_control_characters_are_spelt_out_but_lines_stay():
    text = "a\x1b[31mred\x07\tb\nc\r\x9b2Jé😀"
    assert printable(text) == "a\\x1b[31mred\\x07\tb\nc\\x0d\\x9b2Jé😀"


def test_strategies_are_compared_from_one_prompt(generator):
    texts = generator.compare("Once upon", max_new_tokens=5, seed=0)
    assert list(texts) == list(STRATEGIES)
    assert texts["greedy"] == generator.generate("Once upon", 5, temperature=0)
    assert texts["top-k 10"] == generator.generate("Once upon", 5, top_k=10, seed=0)


def test_the_table_of_texts_has_one_margin_and_no_long_lines():
    texts = {"one": "word " * 60, "a longer name": "\x1b", "empty": ""}
    lines = side_by_side(texts, width=60).splitlines()
    assert max(map(len, lines)) <= 60
    assert lines[0].startswith("one" + " " * 12 + "word word")
    assert lines[1].startswith(" " * 15 + "word")
    assert "a longer name  \\x1b" in lines


# ---------------------------------------------------------------- the command


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory, generator: TextGenerator) -> Path:
    path = tmp_path_factory.mktemp("modèle 雪") / checkpoint.FINAL_NAME
    checkpoint.save(path, {"config": SIZES, "model_state_dict": generator.model.state_dict()})
    return path


def test_the_command_continues_a_prompt_and_names_its_seed(command, generator):
    options = ["--max-new-tokens=9", "--temperature=0.7", "--top-k=40", "--top-p=0.9"]
    code, text, notes = command("--prompt=Once upon", "--seed=5", "--precision=float32", *options)
    expected = generator.generate("Once upon", 9, temperature=0.7, top_k=40, top_p=0.9, seed=5)
    assert (code, text) == (0, printable(expected) + "\n")
    assert re.fullmatch(r"\(seed 5, \d tokens, [\d,.]+ tokens/s\)\n", notes)


def test_a_drawn_seed_gives_the_same_text_again(command):
    _, text, notes = command("--prompt=Once", "--max-new-tokens=9")
    seed = re.match(r"\(seed (\d+),", notes)[1]
    assert command("--prompt=Once", "--max-new-tokens=9", f"--seed={seed}")[:2] == (0, text)


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("--temperature=-1", "temperature=-1.0 is not a number >= 0"),
        ("--temperature=nan", "temperature=nan is not a number >= 0"),
        ("--top-k=0", "top_k=0 is below 1"),
        ("--top-p=0", "top_p=0.0 is not in (0, 1]"),
        ("--top-p=1.5", "top_p=1.5 is not in (0, 1]"),
        ("--max-new-tokens=-1", "max_new_tokens=-1 is below 0"),
        ("--max-new-tokens=many", "argument --max-new-tokens: invalid int value: 'many'"),
        ("--temp=1", "unrecognized arguments: --temp=1"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_2(command, option, complaint):
    code, text, line = command("--prompt=Once", option)
    assert (code, text) == (2, "")
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    assert complaint in line


def test_a_missing_prompt_is_asked_for(command):
    code, _, line = command()
    assert code == 2
    assert "--prompt" in line


def test_without_a_checkpoint_the_command_says_to_train_one(tmp_path, run_python):
    result = run_python(ROOT / "generate.py", "--prompt=Once", folder=tmp_path)
    assert (result.returncode, result.stdout) == (4, "")
    assert result.stderr == (
        "error: no checkpoint (final_trained_model.pt): train one with python train.py\n"
    )


def test_a_long_prompt_is_printed_whole_with_a_notice(command):
    code, text, notes = command(f"--prompt={'a ' * 50}", "--max-new-tokens=1")
    assert code == 0
    assert text.startswith("a " * 50)
    assert notes.startswith(f"notice: the prompt has 51 tokens, the model reads the last {T}\n")


def test_a_prompt_that_fits_needs_no_notice(command):
    assert "notice" not in command("--prompt=Once", "--max-new-tokens=1")[2]


def test_control_characters_never_reach_the_terminal(command):
    code, text, _ = command("--prompt=\x1b[2J", "--max-new-tokens=0")
    assert (code, text) == (0, "\\x1b[2J\n")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_emoji_gets_their_codes(tmp_path, run_python, model_path, encoding):
    options = [f"--checkpoint={model_path}", "--prompt=snow 雪 😀", "--max-new-tokens=0"]
    result = run_python(
        "-W", "error", ROOT / "generate.py", *options, folder=tmp_path, PYTHONIOENCODING=encoding
    )
    assert (result.returncode, result.stdout) == (0, "snow \\u96ea \\U0001f600\n"), result.stderr


def test_a_trained_model_is_found_in_the_working_folder(trained, tokenizer, run_python):
    options = ["--prompt=Once upon", "--temperature=1.5", "--max-new-tokens=9", "--seed=1"]
    options.append("--precision=float32")
    result = run_python("-W", "error", ROOT / "generate.py", *options, folder=trained.folder)
    model = checkpoint.load_model(trained.folder / checkpoint.FINAL_NAME)
    text = TextGenerator(model, tokenizer).generate("Once upon", 9, temperature=1.5, seed=1)
    assert (result.returncode, result.stdout) == (0, printable(text) + "\n"), result.stderr
