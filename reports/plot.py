"""The picture of a run: losses, perplexity and learning rate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from reports.history import History
from system.files import write_durably

PLOTTED_POINTS = 300


def draw(path: Path, history: History, pace: str, sample: str) -> None:
    """Draws the history as it is by now; before the first update there is no curve."""
    if history.train_losses:
        plot_history(path, history)


def plot_history(path: Path, history: History) -> None:
    """Draws losses, perplexity and the learning rate against tokens seen into a PNG file."""
    from matplotlib.figure import Figure  # not pyplot: needs no display and keeps no global state
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 6), layout="constrained")
    losses, rates = figure.subplots(2, sharex=True, height_ratios=[3, 1])
    tokens = np.cumsum([0, *history.num_tokens])  # seen before update 0, 1, ...

    steps, means = binned(history.train_losses, max_points=PLOTTED_POINTS)
    losses.plot(tokens[steps], means, lw=1, label="training")
    points = [(evaluation.tokens_seen, evaluation.loss) for evaluation in history.evaluations]
    losses.plot(*zip(*points, strict=True), "o-", ms=4, label="validation")
    add_baselines(losses, history)
    losses.set(ylabel="loss (nats per token)", title="Training and validation loss")
    losses.grid(alpha=0.3)
    losses.legend()
    add_perplexity_axis(losses)

    rates.plot(tokens[:-1], history.learning_rates)
    rates.set(xlabel="tokens seen", ylabel="learning rate", ylim=(0, None))
    rates.grid(alpha=0.3)
    rates.xaxis.set_major_formatter(EngFormatter(sep=""))
    write_durably(path, lambda file: figure.savefig(file, format="png", dpi=120))


def add_baselines(losses: Any, history: History) -> None:
    """A line at each baseline, as the loss that so many bits a byte are of this text."""
    first = history.evaluations[0]  # its loss is far from 0
    for number, (name, bits) in enumerate(history.baselines.items()):
        height = bits * first.loss / first.bits_per_byte
        label = f"{name}, {bits:.2f} bits a byte"
        losses.axhline(height, ls=":", lw=1, color=f"C{number + 2}", label=label)


def add_perplexity_axis(losses: Any) -> None:
    """A second scale on the right of the loss axes: perplexity = exp(loss)."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis = losses.secondary_yaxis(
        "right", functions=(np.exp, lambda value: np.log(np.maximum(value, 1e-9)))
    ).yaxis
    round_numbers = [digit * 10**power for power in range(6) for digit in (1, 2, 5)]
    axis.set_major_locator(FixedLocator(round_numbers))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axis.set_label_text("perplexity")


def binned(values: Sequence[float], *, max_points: int) -> tuple[list[int], list[float]]:
    """End and mean of equal bins: binned([4, 2, 3], max_points=2) -> ([2, 3], [3.0, 3.0])."""
    size = max(1, -(-len(values) // max_points))
    ends = [min(start + size, len(values)) for start in range(0, len(values), size)]
    means = [float(np.mean(values[start : start + size])) for start in range(0, len(values), size)]
    return ends, means


def plot_rates(
    path: Path, rates: Sequence[float], losses: Sequence[float], *, recommended: float
) -> None:
    """Draws the loss that each learning rate came to, and the recommended one, into a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses)
    axes.axvline(recommended, ls=":", color="C1", label=f"recommended: {recommended:g}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss (nats per token), smoothed")
    axes.grid(alpha=0.3)
    axes.legend()
    write_durably(path, lambda file: figure.savefig(file, format="png", dpi=120))
