"""The numbers beside texts: each against a naive count, and the recommendation."""

import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.figure import Figure
from tiny_model import T, naive_logits

from generation import comparison as comparison_module
from generation import scoring
from generation.comparison import (
    COLUMNS,
    HUMAN,
    STRATEGIES,
    Comparison,
    Reference,
    compare_settings,
    draw_table,
    human_passages,
    plot_comparison,
)
from generation.console import find_reference
from generation.scoring import log_probabilities
from generation.settings import SAMPLE, Sampling
from generation.textstats import distinct_share, longest_copies
from tokenizer import END_OF_TEXT_ID

FEW_IDS = st.lists(st.integers(50_000, 50_003), max_size=30)


def test_the_share_of_distinct_runs():
    assert distinct_share([1, 2, 1, 2], 2) == 2 / 3
    assert distinct_share([1, 1, 1], 1) == 1 / 3
    assert distinct_share([1], 2) == distinct_share([], 4) == 1.0


@given(st.lists(FEW_IDS, max_size=4), FEW_IDS, st.integers(0, 30))
def test_the_longest_copy_is_the_longest_common_passage(texts, source, start):
    texts.append([1, *source[start:], 2])
    joined = bytes(token - 50_000 for token in source)

    def naive(text: list[int]) -> int:
        parts = [text[i:j] for j in range(len(text) + 1) for i in range(j)]
        return max((len(p) for p in parts if bytes(t % 50_000 for t in p) in joined), default=0)

    expected = [naive(text) for text in texts[:-1]] + [len(source[start:])]
    assert longest_copies(texts, np.array(source, np.uint16)) == expected


@torch.no_grad()
@pytest.mark.parametrize("num_ids", [1, 2, T, T + 1, T + 2, 3 * T])
def test_every_token_of_a_long_text_is_predicted_from_what_its_writer_would_see(
    generator, num_ids, monkeypatch
):
    monkeypatch.setattr(scoring, "ROWS_AT_ONCE", 3)
    ids = torch.arange(num_ids).tolist()
    expected = torch.zeros(num_ids - 1)
    for n in range(1, num_ids):
        expected[n - 1] = naive_logits(generator.model, ids[:n]).log_softmax(-1)[ids[n]]
    result = log_probabilities(generator.model, ids)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-6)  # float32


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
    near, nearer = [0.1, 0.05 / 0.7, 0.05 / 0.9, 1 / 25], [0.05, 0.02 / 0.7, 0.02 / 0.9, 0.02]
    expected = [1.0, np.mean(near), np.mean(nearer)]
    assert comparison.distances(np.arange(8)) == pytest.approx(expected)
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


@pytest.mark.parametrize("has_reference", [True, False])
def test_every_setting_continues_the_same_openings(generator, has_reference):
    choose = np.random.default_rng(0)
    reference = Reference(choose.integers(0, 99, 500), choose.integers(0, 99, 60))
    given = reference if has_reference else None
    comparison = compare_settings(generator, "Once", max_new_tokens=6, seed=0, reference=given)
    assert list(comparison.texts) == list(comparison.speeds) == list(STRATEGIES)
    assert list(comparison.values) == [*STRATEGIES, *[HUMAN] * has_reference]
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
    assert numbers["longest_copy"] is numbers["log_probability"] is None  # JSON has no NaN
    assert comparison.table(100).splitlines()[1].split()[1:] == ["0", "-", "1.00", "0.00", "-"]


def test_human_passages_are_parts_of_documents_with_their_openings(monkeypatch):
    monkeypatch.setattr(comparison_module, "OPENING_TOKENS", 2)
    monkeypatch.setattr(comparison_module, "NUM_OPENINGS", 3)
    E = END_OF_TEXT_ID
    ids = np.array([1, 2, 3, E, 4, 5, 6, 7, E, 8, 9, 10, 11, E, 12])
    expected = [([E, 1, 2], [3, E]), ([E, 4, 5], [6, 7]), ([E, 8, 9], [10, 11])]
    assert human_passages(ids, 2) == expected
    bodies = [body for _, body in human_passages(np.arange(10), 3)]
    assert bodies == [[2, 3, 4], [4, 5, 6], [7, 8, 9]]
    assert human_passages(np.arange(2), 3) == [([E, 0, 1], [])]


@pytest.mark.parametrize("width", [40, 60, 200])
def test_tables_wrap_to_the_terminal(width, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    comparison = compared(0.2, far=FAR, near=NEAR, nearer=NEARER)
    comparison.texts.update(far="word " * 60, near="\x1b")
    shown = str(comparison)
    assert max(map(len, shown.splitlines())) <= width
    assert "\nnear    \\x1b\n" in shown  # as wide as "nearer" and two blanks
    for heading, _, _ in COLUMNS.values():
        assert len(re.findall(rf"{heading}\b", shown)) == 2  # the number and what it is


def cells_of(axes) -> list[list[str]]:
    """The texts in the table's cells, row by row."""
    texts = [text.get_text() for text in axes.texts]
    return [texts[start : start + 4] for start in range(0, len(texts), 4)]


def test_the_picture_has_a_row_for_each_setting_the_nearest_first(tmp_path):
    axes = Figure().subplots()
    draw_table(axes, compared(0.0, far=FAR, near=NEAR, nearer=NEARER))
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [HUMAN, "nearer", "near", "far"]
    assert cells_of(axes)[:2] == [
        ["-3.00", "0.80", "0.00", "5.0"],
        ["-2.90", "0.78", "0.02", "5.5"],
    ]
    shades = axes.images[0].get_array()
    assert shades[0].tolist() == [0] * 4
    assert shades[3].tolist() == [1] * 4
    assert "the darker, the less like the held-out text" in axes.get_title(loc="right")
    plot_comparison(tmp_path / "picture.png", compared(0.0, far=FAR))
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def test_the_picture_without_human_text_has_the_numbers_alone():
    comparison = compared(0.0, far=FAR, near=NEAR)
    del comparison.values[HUMAN]
    comparison.values["near"][:, 3] = np.nan
    axes = Figure().subplots()
    draw_table(axes, comparison)
    assert cells_of(axes) == [["-1.00", "0.10", "0.90", "30.0"], ["-2.80", "0.75", "0.05", "-"]]
    assert not axes.images[0].get_array().any()


def test_the_training_text_is_found_again_only_if_it_is_the_same(
    tokenizer, text_folder, tiny_config, capsys
):
    from system.files import file_sha256

    state = {"config": tiny_config, "text_sha256": file_sha256(text_folder / "data.txt")}
    reference = find_reference(tokenizer, state)
    assert len(reference.train_ids) > len(reference.val_ids) > 0
    assert capsys.readouterr().err == ""
    nowhere = {**tiny_config, "data": "~nobody of that name/data.txt"}
    for wrong in ({**state, "text_sha256": "0"}, {}, {**state, "config": nowhere}):
        assert find_reference(tokenizer, wrong) is None
        assert "no comparison with human text" in capsys.readouterr().err
    (text_folder / "data.txt").unlink()
    assert find_reference(tokenizer, state) is None
