"""Guessed tokens: the same text in fewer steps of the model, while that saves time."""

from itertools import product

import pytest
import torch
from tiny_model import SIZES, T, V, ending_after, tokens_of

from generation import decoding, guesses
from generation.guesses import LATE_STEPS, NEW_TRIAL, Guesses
from generation.settings import Sampling
from model import Transformer
from storage.checkpoint import build_model

PROMPTS = [[3], [1, 2, 3, 4, 1, 2, 3], [9, 8, 9, 8, 9, 8], [7, 7, 7, 7]]
LONG = 24  # a context with room for guesses


@pytest.fixture(params=[T, LONG])
def model(request) -> Transformer:
    torch.manual_seed(0)
    model = build_model({**SIZES, "seq_len": request.param}, V)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model.eval()


@pytest.fixture
def always(monkeypatch) -> None:
    """Guesses in every step, whatever they cost and however many rows there are."""
    monkeypatch.setattr(Guesses, "pay", lambda self: True)
    monkeypatch.setattr(guesses, "MOST_ROWS", 10**9)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0),
        Sampling(temperature=0.3),
        Sampling(top_p=0.8, repetition_penalty=1.2),
        Sampling(temperature=0, no_repeat_ngram=3),
    ],
    ids=str,
)
def test_texts_are_those_without_guesses_though_rows_end(model, sampling):
    lengths = [3, 4 * LONG, 17, 40]

    def texts(**settings) -> list[list[list[int]]]:
        settings |= {"sampling": sampling, "seeds": [5, 6, 7, 8]}
        alone = {**settings, "seeds": [5]}
        return [
            tokens_of(model, PROMPTS, 4 * LONG, **settings),
            tokens_of(model, PROMPTS, 4 * LONG, **settings, is_over=ending_after(lengths)),
            *(tokens_of(model, [prompt], 2 * LONG, **alone) for prompt in PROMPTS),
        ]

    guessed, plain = texts(), texts(most_guesses=0)
    assert guessed == plain
    assert [len(text) for text in guessed[1]] == lengths


@pytest.mark.usefixtures("always")
def test_a_text_that_repeats_itself_takes_fewer_steps(model, monkeypatch):
    sizes = []
    read = type(model).hidden_states
    monkeypatch.setattr(
        type(model), "hidden_states", lambda *a: (sizes.append(a[1].size(1)), read(*a))[1]
    )
    text = tokens_of(model, [PROMPTS[1]], 4 * LONG)[0]
    assert len(text) == 4 * LONG
    if model.seq_len == LONG:  # there its greedy text goes in circles
        assert len(sizes) < 2 * LONG
        assert max(sizes[1:]) > 2


@pytest.mark.usefixtures("always")
def test_sampled_tokens_have_the_probabilities_of_the_model(monkeypatch):
    """Chi-square of three tokens, of which the first two are guessed, over all 11 ** 3."""
    torch.manual_seed(1)
    model = build_model({**SIZES, "seq_len": LONG}, V).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    prompt, num_texts = [4, 5, 6, 1, 2, 4, 5, 6], 20_000
    guessed = []
    choose_ahead = decoding.choose_ahead

    def noted(context, guessed_now, *rest):
        guessed.append(guessed_now[0])
        return choose_ahead(context, guessed_now, *rest)

    monkeypatch.setattr(decoding, "choose_ahead", noted)
    counts = torch.zeros(V, V, V, dtype=torch.float64)
    for text in tokens_of(
        model, [prompt] * num_texts, 3, sampling=Sampling(temperature=1), seeds=range(num_texts)
    ):
        counts[tuple(text)] += 1
    assert guessed[0] == [1, 2]
    with torch.no_grad():
        pairs = torch.tensor([[*prompt, *pair] for pair in product(range(V), repeat=2)])
        logs = model(pairs).double().log_softmax(-1)
    places = [logs[:, len(prompt) - 1 + i] for i in range(3)]
    first, second = pairs[:, -2:].T
    every = torch.arange(V * V)
    expected = (places[0][every, first] + places[1][every, second])[:, None] + places[2]
    expected = num_texts * expected.exp().view(V, V, V)
    often = expected >= 5
    statistic = ((counts - expected)[often] ** 2 / expected[often]).sum().item()
    freedom = int(often.sum())
    # mean `freedom`, variance twice that: five standard deviations
    assert abs(statistic - freedom) < 5 * (2 * freedom) ** 0.5


@pytest.mark.usefixtures("always")
def test_a_guess_is_what_followed_the_same_tokens_the_last_time_in_any_row():
    known = Guesses([[1, 2, 3, 4, 1, 2, 3], [9, 1, 2, 3, 5]])
    assert known.of([[1, 2, 3], [7, 7, 7], [2, 3]], 3) == [[5], [], []]
    known.learn([[0, 1, 2, 3, 4, 1], [8, 8, 8, 8]], [[4, 1], [8, 8]])
    assert known.of([[1, 2, 3], [8, 8, 8]], 4) == [[4, 1, 2, 3], [8] * 4]
    assert known.of([[1, 2, 3]], 2) == [[4, 1]]
    assert known.of([[1, 2, 3]], 0) == known.of([[1, 2, 3]], -2) == [[]]


@pytest.mark.parametrize("num_rows", [guesses.MOST_ROWS, guesses.MOST_ROWS + 1])
def test_few_rows_alone_are_guessed(num_rows):
    known, made = Guesses(rows := [[7] * 9] * num_rows), []
    for _ in range(2 * LATE_STEPS):
        made.append(any(known.of(rows, 4)))
        known.learn(rows, [[7]] * num_rows)
    assert any(made) == (num_rows <= guesses.MOST_ROWS)


@pytest.mark.parametrize(
    ("num_right", "cost", "is_worth_it"), [(0, 1.1, False), (3, 2, True), (3, 5, False)]
)
def test_guesses_are_made_while_they_pay_and_tried_again(num_right, cost, is_worth_it, monkeypatch):
    now = 0.0
    monkeypatch.setattr(guesses.time, "perf_counter", lambda: now)
    known, made = Guesses([[7] * 9]), []
    for _ in range(10 * NEW_TRIAL):
        guessed = known.of([[7, 7, 7]], 4)[0]
        made.append(bool(guessed))
        now += cost if guessed else 1.0
        known.learn([[7] * 9], [[7] * (1 + num_right if guessed else 1)])
    late = made[2 * LATE_STEPS :]
    assert sum(made[: 2 * LATE_STEPS]) == LATE_STEPS
    assert sum(late) == (len(late) if is_worth_it else len(late) // NEW_TRIAL)
