"""The curves that a report has, few enough points of them, and a picture that needs no script."""

import io
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from generation.row import printable
from reports.plot import HIDDEN_SHARE, padded
from reports.runs import RecordedRun, name_of, thinned, together

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00")  # Okabe and Ito
DASHES = ("solid", "dashed", "dotted", "dotdash")  # once the colours are used up
INK = "#757575"  # as easy to read on white as on black
MOST_POINTS = 40_000  # of all curves together: half a megabyte
PANELS = {  # what is drawn against tokens seen: its caption, its height in pixels
    "val_loss": ("loss (nats per token)", 420),
    "learning_rate": ("learning rate", 170),
    "grad_norm": ("gradient norm", 170),
    "tokens_per_second": ("tokens a second", 170),
}
Group = Sequence[RecordedRun]
Point = tuple[float, float]


class Curve(NamedTuple):
    """A line of a panel: x, y and the spread of y, each (N,), what it shows and how it looks."""

    x: np.ndarray
    y: np.ndarray
    spread: np.ndarray
    name: str
    color: str
    dash: str
    is_bold: bool


Panels = dict[str, list[Curve]]


def panels_of(groups: Sequence[Group]) -> Panels:
    """The curves of each of PANELS of which there is one."""
    panels = {name: curves_of(groups, name) for name in PANELS}
    return {name: curves for name, curves in panels.items() if curves}


def look_of(number: int) -> tuple[str, str]:
    """Colour and dash of the group of that number."""
    return COLORS[number % len(COLORS)], DASHES[number // len(COLORS) % len(DASHES)]


def curves_of(groups: Sequence[Group], name: str) -> list[Curve]:
    """Of each group its curve of that name; with the validation loss the training loss as well."""
    names = ["train_loss", name] if name == "val_loss" else [name]
    most = max(60, MOST_POINTS // (5 * len(groups)))
    curves = []
    for number, group in enumerate(groups):
        for each in names:
            if known := [curve for run in group if (curve := run.curve(each)).size]:
                x, y, spread = together(known)
                kept = thinned(y, most)
                points, title = (x[kept], y[kept], spread[kept]), printable(name_of(group))
                curves.append(Curve(*points, title, *look_of(number), each == name))
    return curves


def marks_of(groups: Sequence[Group], *, is_best: bool) -> list[Point]:
    """Where each run was at its best, or where it stopped before its end."""
    evaluated = [run for group in groups for run in group if run.best]
    if is_best:
        return [(run.best["tokens"], run.best["val_loss"]) for run in evaluated]
    return [tuple(run.curve("val_loss")[:, -1]) for run in evaluated if run.is_cut_short]


def baselines_of(groups: Sequence[Group]) -> dict[str, float]:
    """The loss that each baseline of the first group's text is, with the bits a byte it has."""
    found = {}
    for line in (line for group in groups[:1] for line in group[0].lines):
        for name in ("unigram", "bigram", "xz"):
            if line.get(name) and line.get("bits_per_byte"):
                height = line[name] * line["val_loss"] / line["bits_per_byte"]
                found[f"{name}, {line[name]:.2f} bits a byte"] = height
    return found


def range_of(curves: Sequence[Curve]) -> Point:
    """The losses from where the first fall is over."""
    start = HIDDEN_SHARE * max(curve.x[-1] for curve in curves)
    shown = [loss for curve in curves for loss in (*curve.y[curve.x > start], curve.y[-1])]
    return padded(shown)


def svg(panels: Panels, groups: Sequence[Group]) -> str:
    """The same as a picture of lines, which every browser shows."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    colors = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    with rc_context({"svg.fonttype": "none", **dict.fromkeys(colors, INK)}):
        figure = Figure(figsize=(9, 8), layout="constrained", facecolor="none")
        heights = [PANELS[name][1] for name in panels]
        rows = figure.subplots(len(panels), sharex=True, height_ratios=heights, squeeze=False)[:, 0]
        for axes, (name, curves) in zip(rows, panels.items(), strict=True):
            axes.set(facecolor="none", ylabel=PANELS[name][0])
            for x, y, spread, _, color, dash, is_bold in curves:
                style = {"ls": dash.replace("dotdash", "dashdot"), "lw": 2.5 if is_bold else 1}
                axes.plot(x, y, color=color, **style)
                axes.fill_between(x, y - spread, y + spread, color=color, alpha=0.2, lw=0)
        rows[-1].set_xlabel("tokens seen")
        if "val_loss" in panels:
            add_marks(rows[0], groups, panels["val_loss"])
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    picture = text.getvalue()
    return picture[picture.index("<svg") :]


def add_marks(axes: Any, groups: Sequence[Group], curves: Sequence[Curve]) -> None:
    """The scale of the losses, baselines, the best evaluations, and ends before the end."""
    axes.set_ylim(*range_of(curves))
    for height in baselines_of(groups).values():
        axes.axhline(height, ls=":", color=INK)
    for mark, is_best in (("*", True), ("X", False)):
        for point in marks_of(groups, is_best=is_best):
            axes.plot(*point, mark, ms=12, color=INK)
