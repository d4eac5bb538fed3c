"""The numbers beside texts: each against a naive count, and the recommendation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from generation.comparison import (
    STRATEGIES,
    Comparison,
    Numbers,
    Reference,
    compare_settings,
    find_reference,
    human_passages,
    plot_comparison,
)
from generation.generator import TextGenerator
from generation.scoring import log_probabilities, score_document
from generation.textstats import distinct_share, longest_copy, repeated_share
from storage.checkpoint import build_model
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID

T = 7
SIZES = {
    "seq_len": T,
    "embedding_dim": 12,
    "num_layers": 1,
    "num_heads": 3,
    "dropout": 0.0,
    "ffn_hidden_dim": 20,
}


@pytest.fixture(scope="module")
def generator(tokenizer) -> TextGenerator:
    torch.manual_seed(0)
    return TextGenerator(build_model(SIZES, tokenizer.encoding.n_vocab), tokenizer)


# ---------------------------------------------------------------- statistics


def test_distinct_and_repeated_shares():
    assert distinct_share([[1, 2, 1, 2]], 2) == 2 / 3
    assert distinct_share([[1, 2], [1, 2]], 2) == 1 / 2
    assert distinct_share([[1]], 2) == 1.0
    assert repeated_share([[1, 1, 1]], 1) == 2 / 3
    assert repeated_share([[1, 2], [1, 2]], 2) == 0.0
    assert repeated_share([[], [1, 2, 3]], 4) == 0.0


def naive_copy(text: list[int], source: list[int]) -> int:
    joined = "".join(map(chr, source))
    parts = (text[i:j] for i in range(len(text)) for j in range(i + 1, len(text) + 1))
    return max((len(part) for part in parts if "".join(map(chr, part)) in joined), default=0)


@pytest.mark.parametrize("seed", range(8))
def test_the_longest_copy_is_the_longest_common_passage(seed):
    choose = np.random.default_rng(seed)
    source = choose.integers(50_000, 50_004, 400).astype(np.uint16)
    texts = [choose.integers(50_000, 50_004, length).tolist() for length in (1, 17, 30)]
    texts[2][5:5] = source[200 : 200 + 2 * seed].tolist()
    expected = max(naive_copy(text, source.tolist()) for text in texts)
    assert longest_copy(texts, source) == expected


def test_nothing_and_everything_copied():
    source = np.arange(10, dtype=np.uint16)
    assert longest_copy([[20, 21]], source) == 0
    assert longest_copy([[]], source) == longest_copy([], source) == 0
    assert longest_copy([list(range(10))], source) == 10
    assert longest_copy([list(range(12))], source) == 10
    assert longest_copy([[3, 4]], source[:1]) == 0


# ---------------------------------------------------------------- scores


@torch.no_grad()
def test_log_probabilities_within_the_context_are_those_of_the_logits(generator):
    ids = [END_OF_TEXT_ID, 5, 6, 7, 5]
    logs = generator.model(torch.tensor([ids[:-1]]))[0].log_softmax(-1)
    expected = torch.stack([logs[i, token] for i, token in enumerate(ids[1:])])
    torch.testing.assert_close(log_probabilities(generator.model, ids), expected)


@torch.no_grad()
@pytest.mark.parametrize("num_ids", [1, 2, T, T + 1, T + 2, 3 * T])
def test_every_token_of_a_long_text_is_predicted_once_from_enough_before_it(generator, num_ids):
    ids = torch.arange(num_ids).tolist()
    logs = log_probabilities(generator.model, ids)
    assert len(logs) == num_ids - 1
    for i, value in enumerate(logs.tolist(), start=1):
        contexts = [ids[i - length : i] for length in range(min(i, T // 2), min(i, T) + 1)]
        possible = [
            generator.model(torch.tensor([context]))[0, -1].log_softmax(-1)[ids[i]].item()
            for context in contexts
        ]
        assert any(math.isclose(value, other, rel_tol=1e-5) for other in possible)


def test_a_text_is_scored_document_by_document(generator, tokenizer):
    scores = generator.score(f"One day.\n{END_OF_TEXT}\nTwo 雪.")
    alone = [score_document(generator.model, tokenizer, text) for text in ("One day.", "Two 雪.")]
    assert scores == alone
    assert scores[1].num_bytes == 8
    loss = -scores[0].log_probability / scores[0].num_tokens
    assert math.isclose(scores[0].perplexity, math.exp(loss))
    assert math.isclose(scores[0].bits_per_byte * 8, -scores[0].log_probability / math.log(2))
    assert generator.score("") == []


# ---------------------------------------------------------------- side by side

HUMAN = Numbers(log_probability=-3.0, distinct_2=0.8, repeated_4=0.0, longest_copy=5)


def test_the_setting_nearest_to_human_text_is_recommended():
    near = replace(HUMAN, log_probability=-2.9)
    far = replace(HUMAN, distinct_2=0.1, repeated_4=0.9)
    comparison = Comparison({"far": "a", "near": "b"}, {"far": far, "near": near}, HUMAN)
    assert comparison.distances() == {"far": 0.5, "near": 0.25}
    assert comparison.recommended == "near"
    assert "nearest to the held-out text: near" in str(comparison)


def test_without_human_text_nothing_is_recommended_and_the_note_says_why():
    numbers = {"greedy": replace(HUMAN, longest_copy=None)}
    comparison = Comparison({"greedy": "a"}, numbers, notes=["no text here"])
    assert comparison.recommended is None
    assert "no text here" in comparison.table()
    assert "-" in comparison.table().splitlines()[1]


def test_all_settings_are_measured(generator):
    choose = np.random.default_rng(0)
    reference = Reference(choose.integers(0, 99, 500), choose.integers(0, 99, 60))
    comparison = compare_settings(generator, "Once", max_new_tokens=6, seed=0, reference=reference)
    assert list(comparison.texts) == list(comparison.numbers) == list(STRATEGIES)
    assert comparison.recommended in STRATEGIES
    assert comparison.texts["greedy"] == generator.generate("Once", 6, temperature=0)
    for numbers in [*comparison.numbers.values(), comparison.human]:
        assert numbers.log_probability < 0
        assert 0 < numbers.distinct_2 <= 1


def test_human_passages_begin_where_documents_do():
    ids = np.array([1, 2, END_OF_TEXT_ID, 3, 4, 5, END_OF_TEXT_ID, 6])
    starts = [body for _, body in human_passages(ids, 2)]
    assert starts == [[1, 2], [3, 4], [6]]


def test_the_picture_is_a_png(tmp_path):
    for human in (HUMAN, None):
        comparison = Comparison({"a": ""}, {"a": HUMAN}, human)
        plot_comparison(tmp_path / "picture.png", comparison)
        assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_training_text_is_found_again_only_if_it_is_the_same(
    tokenizer, text_folder, tiny_config
):
    from corpus.token_cache import file_sha256

    state = {"config": tiny_config, "text_sha256": file_sha256(text_folder / "data.txt")}
    reference, notes = find_reference(tokenizer, state)
    assert notes == []
    assert len(reference.train_ids) > len(reference.val_ids) > 0
    for wrong in ({**state, "text_sha256": "0"}, {}):
        reference, (note,) = find_reference(tokenizer, wrong)
        assert reference is None
        assert "no comparison" in note
    (text_folder / "data.txt").unlink()
    assert find_reference(tokenizer, state)[0] is None
