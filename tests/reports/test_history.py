"""What a run has measured: its history, the pace, the plot."""

import io
import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib.figure
import pytest
import torch

from reports import plot as plot_module
from reports.history import Evaluation, History, UpdateRecord, pace_of
from reports.plot import NO_CAPTION, Caption, binned, plot_history

V, T = 11, 7
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def history_of(losses: list[float], train_losses: Sequence[float] = ()) -> History:
    """Evaluations with these losses at the steps 0, 10, 20, ...; updates of 100 tokens each."""
    history = History()
    for step, loss in enumerate(train_losses):
        history.add(UpdateRecord(loss, 1.0, 1e-3 / (step + 1), 100, 0.05, 10**9, is_applied=True))
    history.evaluations = [
        Evaluation(10 * i, 1000 * i, loss, loss / 3) for i, loss in enumerate(losses)
    ]
    return history


def test_a_history_comes_back_from_a_file_bit_for_bit():
    history = history_of([3.0, 0.1 + 0.2], train_losses=[1 / 3, 1e-300, 7.0])
    file = io.BytesIO()
    torch.save(history.state_dict(), file)
    file.seek(0)
    assert History.from_state_dict(torch.load(file, weights_only=True)) == history


@pytest.mark.parametrize(
    ("losses", "best_step", "num_since"),
    [([3.0], 0, 0), ([3, 2, 1], 20, 0), ([3, 1, 2, 2], 10, 2), ([1, 1, 1], 0, 2)],
)
def test_the_best_evaluation_is_the_first_of_the_lowest(losses, best_step, num_since):
    history = history_of(losses)
    assert history.best.step == best_step
    assert history.num_no_better() == num_since


@pytest.mark.parametrize(
    ("losses", "num_worse"),
    [
        ([4.0, 4.3, 4.1, 4.3, 4.3], 2),  # what is near the best begins the count again
        ([4.0, 4.1, 4.1, 4.1], 0),
        ([9.0, 4.0, 4.2], 1),  # what came before the best does not count
        ([4.0], 0),
    ],
)
def test_evaluations_near_the_best_one_are_no_worse(losses, num_worse):
    assert history_of(losses).num_no_better(0.05) == num_worse


def test_a_report_averages_the_training_losses_since_the_evaluation_before():
    history = history_of([5.0, 4.0, 3.0], train_losses=[9.0] * 10 + [2.0] * 5 + [3.0] * 5)
    report = history.report()
    assert "step     20" in report
    assert "train 2.500  val 3.000  ppl 20.1  bits/byte 1.000" in report


def test_baselines_stand_beside_the_bits_a_byte_but_in_no_file():
    history = history_of([3.0])
    history.baselines = {"bigram": 1.561, "xz": 1.997}
    assert "bits/byte 1.000 (bigram 1.56, xz 2.00)" in history.report()
    assert History.from_state_dict(history.state_dict()).baselines == {}


def test_a_history_of_an_earlier_version_has_neither_tokens_nor_rates():
    state = history_of([3.0], train_losses=[1.0, 2.0]).state_dict()
    del state["num_tokens"], state["learning_rates"]
    history = History.from_state_dict(state)
    assert (history.train_losses, history.num_tokens) == ([1.0, 2.0], [])


def test_updates_that_overflowed_are_counted():
    history = history_of([5.0], train_losses=[4.0])
    history.add(UpdateRecord(3.0, math.inf, 1e-3, 50, 0.05, 10**9, is_applied=False))
    assert (history.num_skipped, history.num_tokens) == (1, [100, 50])
    assert "1 skipped" in history.report()


def test_perplexity_is_exp_of_the_loss_and_inf_where_that_overflows():
    perplexities = [Evaluation(0, 0, loss, 1.0).perplexity for loss in (0.0, 2.0, 710.0, math.inf)]
    assert perplexities == [1.0, math.exp(2.0), math.inf, math.inf]


def test_the_pace_is_that_of_the_updates_it_is_given():
    assert pace_of([]) == ""
    numbers = {"loss": 2.5, "learning_rate": 3e-4, "grad_norm": 0.25, "memory_bytes": 1_500_000_000}
    recent = [
        UpdateRecord(num_tokens=100, seconds=seconds, is_applied=True, **numbers)
        for seconds in (0.04, 0.06)
    ]
    assert pace_of(recent) == "loss 2.500  lr 3.0e-04  norm 0.25  2,000 tok/s  1.5 GB"


@pytest.mark.parametrize(
    ("values", "max_points", "expected"),
    [
        ([], 3, ([], [])),
        ([4, 2, 3], 2, ([1, 3], [4.0, 2.5])),
        ([1, 2, 3], 3, ([1, 2, 3], [1.0, 2.0, 3.0])),
        ([1, 2, 3], 300, ([1, 2, 3], [1.0, 2.0, 3.0])),
        ([1, 2, 3, 4, 5, 6, 7], 3, ([1, 4, 7], [1.0, 3.0, 6.0])),
        ([5], 1, ([1], [5.0])),
    ],
)
def test_bins_have_the_mean_of_their_values_and_end_where_they_end(values, max_points, expected):
    assert binned(values, max_points=max_points) == expected


@pytest.fixture
def drawn(monkeypatch) -> list[matplotlib.figure.Figure]:
    """Every figure that is saved from now on."""
    figures = []
    save = matplotlib.figure.Figure.savefig

    def savefig(figure: matplotlib.figure.Figure, *arguments: object, **options: object) -> None:
        figures.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", savefig)
    return figures


def plot(folder: Path, history: History, caption: Caption = NO_CAPTION) -> bytes:
    path = folder / "losses.png"
    plot_history(path, history, caption)
    assert [file.name for file in folder.iterdir()] == ["losses.png"]
    return path.read_bytes()


def test_the_plot_has_both_losses_perplexity_and_the_learning_rate(tmp_path, drawn):
    history = history_of([5.0, 3.0, 3.5], train_losses=[5 - 0.1 * i for i in range(20)])
    image = plot(tmp_path, history, Caption("a model on a text", "stopped at step 20 of 99"))
    assert image.startswith(PNG_SIGNATURE)
    assert len(image) > 10_000

    losses, rates = drawn[0].axes
    training, validation, best, ending = losses.get_lines()
    assert [text.get_text() for text in drawn[0].legends[0].get_texts()] == [
        "training",
        "validation",
        "best: 3.000 at step 10",
        "stopped at step 20 of 99",
    ]
    assert training.get_xdata()[-1] == 100 * 20
    assert list(validation.get_xdata()) == [0, 1000, 2000]
    assert list(validation.get_ydata()) == [5.0, 3.0, 3.5]
    assert (best.get_xdata()[0], best.get_ydata()[0]) == (1000, 3.0)
    assert set(ending.get_xdata()) == {2000}
    assert rates.get_lines()[0].get_ydata()[1] == 5e-4
    assert losses.get_title(loc="left") == "a model on a text"
    assert losses.get_ylabel() == "loss (nats per token)"
    assert (rates.get_xlabel(), rates.get_ylabel()) == ("tokens seen", "learning rate")
    (perplexity,) = losses.child_axes
    assert perplexity.get_ylabel() == "perplexity"
    assert perplexity.get_ylim() == pytest.approx([math.exp(loss) for loss in losses.get_ylim()])
    labels = [label.get_text() for label in perplexity.yaxis.get_ticklabels()]
    assert {"50", "100"} <= set(labels)  # exp(3) = 20, exp(5) = 148


def test_the_fall_at_the_start_does_not_crush_the_scale(tmp_path, drawn):
    history = history_of([11.0, 4.0, 3.5], train_losses=[11.0] * 5 + [4.0] * 95 + [3.0] * 100)
    plot(tmp_path, history)
    low, high = drawn[0].axes[0].get_ylim()
    assert low < 3.0
    assert 4.0 < high < 4.2


@pytest.mark.parametrize("title", ["$x_", "雪\n\x1b[0m", "a" * 500])
def test_a_title_is_text_and_needs_no_letters_of_the_font(tmp_path, title):
    history = history_of([5.0], train_losses=[5.0])
    assert plot(tmp_path, history, Caption(title)).startswith(PNG_SIGNATURE)


def test_a_baseline_is_drawn_at_the_loss_of_its_bits_a_byte(tmp_path, drawn):
    history = history_of([6.0, 0.0], train_losses=[1.0] * 20)  # a byte is a third of a token's nats
    history.baselines = {"xz": 1.5}
    plot(tmp_path, history)
    (line,) = [line for line in drawn[0].axes[0].get_lines() if line.get_linestyle() == ":"]
    assert set(line.get_ydata()) == {4.5}
    assert [text.get_text() for text in drawn[0].axes[0].texts] == ["xz, 1.50 bits a byte"]


@pytest.mark.parametrize(("losses", "train_losses"), [([10.8], []), ([10, math.inf], [1.0] * 20)])
def test_no_update_yet_and_a_loss_of_inf_do_not_stop_the_plot(tmp_path, losses, train_losses):
    history = history_of(losses, train_losses=train_losses)
    assert history.report()
    plot_module.draw(tmp_path / "losses.png", lambda: NO_CAPTION, history, "", "")
    assert (tmp_path / "losses.png").exists() == bool(train_losses)
