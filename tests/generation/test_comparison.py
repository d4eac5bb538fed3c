"""The numbers beside texts: each against a naive count, and the recommendation."""

import math
import re

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from generation import comparison as comparison_module
from generation.comparison import (
    COLUMNS,
    HUMAN,
    STRATEGIES,
    Comparison,
    Reference,
    compare_settings,
    draw_panels,
    human_passages,
    plot_comparison,
    side_by_side,
)
from generation.console import find_reference
from generation.generator import TextGenerator
from generation.scoring import log_probabilities, score_document
from generation.settings import SAMPLE, Sampling
from generation.textstats import distinct_share, longest_copies
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


def test_the_share_of_distinct_runs():
    assert distinct_share([1, 2, 1, 2], 2) == 2 / 3
    assert distinct_share([1, 1, 1], 1) == 1 / 3
    assert distinct_share([1], 2) == distinct_share([], 4) == 1.0


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
    assert longest_copies(texts, source) == [naive_copy(t, source.tolist()) for t in texts]


def test_nothing_and_everything_copied():
    source = np.arange(10, dtype=np.uint16)
    texts = [[20, 21], [], list(range(10)), list(range(12))]
    assert longest_copies(texts, source) == [0, 0, 10, 10]
    assert longest_copies([], source) == []
    assert longest_copies([[3, 4]], source[:1]) == [0]


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


def compared(noise: float, **settings: list[float]) -> Comparison:
    """Of settings given by their means, which eight texts have within the noise."""
    source = np.random.default_rng(0)
    means = {**settings, HUMAN: [-3.0, 0.8, 0.0, 5.0]}
    values = {
        name: np.array(mean) + noise * source.standard_normal((8, 4))
        for name, mean in means.items()
    }
    return Comparison(dict.fromkeys(settings, "text"), values, dict.fromkeys(settings, 9.0))


FAR, NEAR, NEARER = [-1.0, 0.1, 0.9, 30.0], [-2.8, 0.75, 0.05, 6.0], [-2.9, 0.78, 0.02, 5.5]


def test_the_setting_nearest_to_human_text_is_recommended():
    comparison = compared(0.0, far=FAR, near=NEAR, nearer=NEARER)
    assert comparison.distances(np.arange(8)) == pytest.approx(
        [
            1.0,
            np.mean([0.1, 0.05 / 0.7, 0.05 / 0.9, 1 / 25]),
            np.mean([0.05, 0.02 / 0.7, 0.02 / 0.9, 0.02]),
        ]
    )
    assert comparison.as_dict()["recommended"] == "nearer"
    assert "nearest to the held-out text: nearer" in str(comparison)


def test_what_differs_by_chance_alone_is_not_recommended():
    comparison = compared(0.2, far=FAR, near=NEAR, nearer=NEARER)
    assert sorted(comparison.nearest) == ["near", "nearer"]
    assert comparison.as_dict()["recommended"] is None
    assert "by chance alone, so none is recommended" in str(comparison)


def test_equal_settings_are_never_told_apart():
    """Whatever the noise: of nine samples of one distribution none is the nearest."""
    source = np.random.default_rng(1)
    num_told_apart = 0
    for _ in range(50):
        values = {name: source.standard_normal((8, 4)) for name in [*"abcdefghi", HUMAN]}
        comparison = Comparison(dict.fromkeys("abcdefghi", ""), values, {})
        num_told_apart += len(comparison.nearest) == 1
    assert num_told_apart <= 5


def test_every_setting_continues_the_same_openings(generator):
    choose = np.random.default_rng(0)
    reference = Reference(choose.integers(0, 99, 500), choose.integers(0, 99, 60))
    for given in (reference, None):
        comparison = compare_settings(generator, "Once", max_new_tokens=6, seed=0, reference=given)
        assert list(comparison.texts) == list(comparison.speeds) == list(STRATEGIES)
        assert list(comparison.values) == [*STRATEGIES, *[HUMAN] * (given is not None)]
        assert {values.shape for values in comparison.values.values()} == {(8, 4)}
        greedy = comparison.values["greedy"]
        assert len(np.unique(greedy, axis=0)) == 8  # so many different texts
        assert ((greedy[:, 1:3] >= 0) & (greedy[:, 1:3] <= 1)).all()
        assert (greedy[:, 0] < 0).all()
        assert comparison.texts["greedy"] == generator.generate("Once", 6, temperature=0)
        default = generator.generate("Once", 6, seed=0, **SAMPLE)
        assert comparison.texts[str(Sampling(**SAMPLE))] == default


def test_without_human_text_nothing_is_recommended_and_what_is_not_known_is_a_dash(generator):
    comparison = compare_settings(generator, "Once", max_new_tokens=0, seed=0)
    assert comparison.nearest == []
    numbers = comparison.as_dict()["numbers"]["greedy"]
    assert math.isnan(numbers["longest_copy"])
    assert math.isnan(numbers["log_probability"])
    assert comparison.table(100).splitlines()[1].split()[1:] == ["0", "-", "1.00", "0.00", "-"]


def test_human_passages_are_parts_of_documents_with_their_openings(monkeypatch):
    monkeypatch.setattr(comparison_module, "OPENING_TOKENS", 2)
    monkeypatch.setattr(comparison_module, "NUM_OPENINGS", 3)
    E = END_OF_TEXT_ID
    ids = np.array([1, 2, 3, E, 4, 5, 6, 7, E, 8, 9, 10, 11, E, 12])
    assert human_passages(ids, 2) == [
        ([E, 1, 2], [3, E]),
        ([E, 4, 5], [6, 7]),
        ([E, 8, 9], [10, 11]),
    ]
    assert [body for _, body in human_passages(np.arange(10), 3)] == [
        [2, 3, 4],
        [4, 5, 6],
        [7, 8, 9],
    ]
    assert human_passages(np.arange(2), 3) == [([E, 0, 1], [])]


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_tables_wrap_to_the_terminal(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    comparison = compared(0.2, far=FAR, near=NEAR, nearer=NEARER)
    comparison.texts["far"] = "word " * 60
    shown = str(comparison)
    assert max(map(len, shown.splitlines())) <= width
    for heading, _, _ in COLUMNS.values():
        assert len(re.findall(rf"{heading}\b", shown)) == 2  # the number and what it is


def test_the_table_of_texts_has_one_margin():
    lines = side_by_side({"one": "word " * 60, "a longer name": "\x1b", "empty": ""}, width=60)
    assert lines.splitlines()[0].startswith("one" + " " * 12 + "word word")
    assert lines.splitlines()[1].startswith(" " * 15 + "word")
    assert "a longer name  \\x1b" in lines.splitlines()


def test_the_picture_is_a_png_that_says_what_its_colours_are(tmp_path):
    figure = Figure()
    draw_panels(figure, compared(0.0, far=FAR, near=NEAR))
    assert "green: nearest to the held-out text" in figure.get_suptitle()
    colours = [bar.get_facecolor() for bar in figure.axes[0].patches]
    assert colours[0] != colours[1] == to_rgba("C2")
    plot_comparison(tmp_path / "picture.png", compared(0.0, far=FAR))
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_written_is_a_warning_that_names_it(tmp_path, capsys):
    (tmp_path / "file").touch()
    plot_comparison(tmp_path / "file" / "picture.png", compared(0.0, far=FAR))
    line = capsys.readouterr().err
    assert re.fullmatch(r"warning: no picture of the comparison \(.*picture\.png\): .+\n", line)
    assert ".part" not in line


def test_the_training_text_is_found_again_only_if_it_is_the_same(
    tokenizer, text_folder, tiny_config, capsys
):
    from corpus.token_cache import file_sha256

    state = {"config": tiny_config, "text_sha256": file_sha256(text_folder / "data.txt")}
    reference = find_reference(tokenizer, state)
    assert len(reference.train_ids) > len(reference.val_ids) > 0
    assert capsys.readouterr().err == ""
    for wrong in ({**state, "text_sha256": "0"}, {}):
        assert find_reference(tokenizer, wrong) is None
        assert "no comparison with human text" in capsys.readouterr().err
    (text_folder / "data.txt").unlink()
    assert find_reference(tokenizer, state) is None
