"""The picture of a run: losses, perplexity and learning rate."""

import math
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reports.history import History
from system.files import write_durably

PLOTTED_POINTS = 300
TITLE_CHARS = 80  # of a line, for which there is room
HIDDEN_SHARE = 0.05  # of the updates, at the start: their losses would crush the scale
TRAINING, VALIDATION, GREY = "#56b4e9", "#d55e00", "#666666"  # Okabe and Ito's, for every eye
SIZES = {"font.size": 13, "axes.titlesize": 12}  # to be read as a thumbnail, too


class Caption(NamedTuple):
    """What a picture says of its run: model, text and machine; why it ended early, if it did."""

    title: str = ""
    ending: str = ""


NO_CAPTION = Caption()


def draw(
    path: Path, caption: Callable[[], Caption], history: History, pace: str, sample: str
) -> None:
    """Draws the history as it is by now; before the first update there is no curve."""
    if history.train_losses:
        plot_history(path, history, caption())


def plot_history(path: Path, history: History, caption: Caption = NO_CAPTION) -> None:
    """Draws losses, perplexity and the learning rate against tokens seen into a PNG file."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure  # not pyplot: needs no display and keeps no global state
    from matplotlib.ticker import EngFormatter, MaxNLocator

    with rc_context(SIZES), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a letter that the font lacks is a box
        figure = Figure(figsize=(8, 6), layout="constrained")
        losses, rates = figure.subplots(2, sharex=True, height_ratios=[3, 1])
        tokens = np.cumsum([0, *history.num_tokens])  # seen before update 0, 1, ...
        add_losses(losses, history, tokens)
        add_baselines(losses, history)
        if caption.ending:
            seen = history.evaluations[-1].tokens_seen
            losses.axvline(seen, ls="--", lw=1.5, color="black", zorder=1, label=caption.ending)
        figure.legend(loc="outside lower center", ncols=2, frameon=False)  # covers no curve
        losses.set_ylabel("loss (nats per token)")
        title = "\n".join(line[:TITLE_CHARS] for line in caption.title.splitlines())
        losses.set_title(title, parse_math=False, loc="left")
        add_perplexity_axis(losses)
        rates.plot(tokens[:-1], history.learning_rates, color=GREY, lw=2)
        rates.set(xlabel="tokens seen", ylabel="learning rate", ylim=(0, None))
        rates.xaxis.set_major_formatter(EngFormatter(sep=""))
        rates.yaxis.set_major_locator(MaxNLocator(3))
        rates.yaxis.set_major_formatter("{x:g}")
        for axes in (losses, rates):
            axes.grid(alpha=0.3)
        write_durably(path, lambda file: figure.savefig(file, format="png", dpi=120))


def add_losses(losses: Any, history: History, tokens: np.ndarray) -> None:
    """Both curves and the best evaluation, on a scale that begins where the first fall is over."""
    steps, means = binned(history.train_losses, max_points=PLOTTED_POINTS)
    losses.plot(tokens[steps], means, lw=1.5, color=TRAINING, label="training")
    points = [(evaluation.tokens_seen, evaluation.loss) for evaluation in history.evaluations]
    losses.plot(*zip(*points, strict=True), "o-", color=VALIDATION, lw=2.5, label="validation")
    best = history.best
    label = f"best: {best.loss:.3f} at step {best.step:,}"
    star = {"ms": 16, "color": VALIDATION, "mec": "black", "zorder": 3}
    losses.plot([best.tokens_seen], [best.loss], "*", label=label, **star)
    start = tokens[int(HIDDEN_SHARE * len(history.train_losses))]
    curve = [loss for step, loss in zip(steps, means, strict=True) if tokens[step] > start]
    shown = [*curve, *(loss for seen, loss in points if seen > start), best.loss]
    losses.set_ylim(*padded([loss for loss in shown if np.isfinite(loss)]))


def padded(values: Sequence[float]) -> tuple[float, float]:
    """The ends of a scale on which all of them are seen."""
    margin = 0.06 * (max(values) - min(values)) + 1e-3
    return min(values) - margin, max(values) + margin


def add_baselines(losses: Any, history: History) -> None:
    """A line at each baseline, as the loss that so many bits a byte are of this text."""
    first = history.evaluations[0]  # its loss is far from 0
    for name, bits in history.baselines.items():
        height = bits * first.loss / first.bits_per_byte
        label = f"{name}, {bits:.2f} bits a byte"
        losses.axhline(height, ls=":", lw=1.5, color=GREY)
        at_the_right = {"xycoords": ("axes fraction", "data"), "ha": "right", "va": "bottom"}
        look = {"annotation_clip": True, "color": GREY, "fontsize": "small"}
        look["bbox"] = {"color": "white", "pad": 1}
        losses.annotate(label, (0.99, height), **at_the_right, **look)


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
    """End and mean of bins of one size, but for the first: [4, 2, 3] in 2 -> [1, 3], [4.0, 2.5]."""
    size = max(1, -(-len(values) // max_points))
    ends = list(range(len(values), 0, -size))[::-1]
    return ends, [float(np.mean(values[max(0, end - size) : end])) for end in ends]


def plot_rates(
    path: Path, rates: Sequence[float], losses: Sequence[float], *, recommended: float
) -> None:
    """Draws the loss that each learning rate came to, and the recommended one, into a PNG file.

    The recommended one may be nan, for none.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses)
    if not math.isnan(recommended):
        axes.axvline(recommended, ls=":", color="C1", label=f"recommended: {recommended:g}")
        axes.legend()
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss (nats per token), smoothed")
    axes.grid(alpha=0.3)
    write_durably(path, lambda file: figure.savefig(file, format="png", dpi=120))
