"""A report on runs as one HTML file, without a network: tables, curves, samples, how they came."""

from collections.abc import Iterator, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from corpus.report import histogram
from generation.comparison import COLUMNS as STATISTICS
from generation.comparison import COMPARED, HUMAN
from generation.row import printable
from reports import bokeh_charts, charts
from reports.charts import Group, look_of
from reports.jsonl import Line
from reports.runs import RecordedRun, cells_of, groups_of, rows_of
from system.files import write_durably

TEMPLATE_PATH = Path(__file__).parent.parent / "assets" / "report.html"
MOST_SAMPLES = 2000  # of all runs together
HOW_TO_GET_MORE = (
    "Curves to zoom in, with values on hover, come with Bokeh: pip install bokeh, "
    "then python report.py once more."
)
LEGEND = (
    "<p>The best evaluation of each run, a star in the curves; a cross is where one stopped before "
    "its end. Runs that differ in the seed alone are one row, mean ± standard deviation, and one "
    "curve with a band. Bold curves are of validation, thin ones of training. The last columns are "
    "what the configs have apart.</p>"
)


def write(path: str | Path, runs: Sequence[RecordedRun]) -> None:
    """Writes the report on these runs."""
    content = page(runs)
    write_durably(path, lambda file: file.write(content.encode()))


def page(runs: Sequence[RecordedRun], script: str = "") -> str:
    """The report as HTML; whatever the runs contain is text in it and no more."""
    groups = groups_of(runs)
    curves, library = drawn(groups)
    parts = [section("Results", table_of(groups)), section("Curves", curves)]
    for run in (run for group in groups for run in group):
        most = max(2, MOST_SAMPLES // len(runs))
        parts.append(section(run.name, samples_of(run, most) + "\n".join(about(run))))
    title = f"{runs[0].name}: a run" if len(runs) == 1 else f"{len(runs)} runs"
    return document(title, "\n".join(parts), library=library, script=script)


def document(title: str, content: str, *, library: str = "", script: str = "") -> str:
    """A page that needs no other file: for a phone as for a desk, in the light and the dark."""
    template = Template(TEMPLATE_PATH.read_text(encoding="utf-8"))
    parts = {"library": library, "content": content, "script": script}
    return template.substitute(title=text(title), **parts)


def text(value: Any) -> str:
    """The value as text of a page: no tag, and no character that turns the writing round."""
    return escape(printable(str(value)))


def section(title: str, content: str) -> str:
    return f"<section>\n<h2>{text(title)}</h2>\n{content}\n</section>" if content else ""


def drawn(groups: Sequence[Group]) -> tuple[str, str]:
    """The curves, and the script that they need."""
    panels = charts.panels_of(groups)
    if not panels:
        return "<p>No report yet.</p>", ""
    try:
        return bokeh_charts.draw(panels, groups)
    except ImportError:
        return f"{charts.svg(panels, groups)}<p>{HOW_TO_GET_MORE}</p>", ""


def table_of(groups: Sequence[Group]) -> str:
    """The table of the runs, which a click on a heading sorts."""
    found = rows_of(groups)
    heads = "".join(
        f'<th scope="col" aria-sort="none"><button>{text(heading)}</button>'
        for heading in cells_of(found[0])
    )
    body = []
    for number, row in enumerate(found):
        color, dash = look_of(number)
        style = f"border-color:{color};border-top-style:{dash.replace('dotdash', 'double')}"
        cells, keys = cells_of(row), [row[name] for name in row if not name.endswith("_spread")]
        line = f'<span class="line" style="{style}"></span>'
        body.append("<tr>")
        for column, (cell, key) in enumerate(zip(cells.values(), keys, strict=True)):
            key = "" if key != key else key
            mark = line if column == 0 else ""
            body.append(f'<td data-key="{escape(str(key))}">{mark}{text(cell)}')
    return (
        f'<div class="wide" tabindex="0" role="region" aria-label="Results">'
        f'<table class="numbers"><thead><tr>{heads}<tbody>{"".join(body)}</table></div>{LEGEND}'
    )


def samples_of(run: RecordedRun, most: int) -> str:
    """What the model wrote at each evaluation, with a slider from one to the next."""
    found = [line for line in run.lines if line.get("sample")]
    if not found:
        return ""
    chosen = np.unique(np.linspace(0, len(found) - 1, min(most, len(found))).astype(int))
    figures = [
        f"<figure><figcaption>step {found[i]['step']:,}, validation loss "
        f"{found[i].get('val_loss') or 0:.3f}</figcaption><pre>{text(found[i]['sample'])}</pre>"
        "</figure>"
        for i in chosen
    ]
    last = len(chosen) - 1
    label = text(f"sample of {run.name}, from the first to the last")
    slider = f'<input type="range" min="0" max="{last}" value="{last}" aria-label="{label}">'
    return slider + "\n".join(figures)


def rows(values: dict[str, Any]) -> str:
    """A line for each name, with its value or its values."""
    lines = []
    for name, value in values.items():
        cells = value if isinstance(value, list) else [value]
        lines.append(f'<tr><th scope="row">{text(name)}' + "".join(f"<td>{text(c)}" for c in cells))
    return f'<div class="wide" tabindex="0"><table>{"".join(lines)}</table></div>'


def about(run: RecordedRun) -> Iterator[str]:
    """What the first line of the run's history tells, each part to be opened."""
    named = {
        "Data and model": rows(lines_of(run.head.get("about", []))),
        "Documents by their number of tokens": bars(histogram(run.head.get("facts", {}))),
        "Ways of sampling": comparison(run.head.get("comparison", {})),
        "Memory": memory(run),
        "Environment": rows(run.head.get("environment", {})),
        "Config": rows(run.head.get("config", {})),
    }
    for title, content in named.items():
        if content:
            yield f"<details><summary>{text(title)}</summary>{content}</details>"


def lines_of(pairs: Sequence[Sequence[str]]) -> dict[str, str]:
    """Names and what they say; those that occur again under one."""
    found: dict[str, str] = {}
    for name, said in pairs:
        found[name] = f"{found[name]}\n{said}" if name in found else said
    return found


def bars(counts: Sequence[tuple[str, int]]) -> str:
    """A bar for each named count."""
    highest = max((count for _, count in counts), default=0)
    lines = [
        f'<tr><th scope="row">{text(name)}<td>{count:,}'
        f'<td class="room"><span class="bar" style="width:{100 * count / highest:.1f}%"></span>'
        for name, count in counts
    ]
    return f"<table>{''.join(lines)}</table>" if lines else ""


def comparison(found: Line) -> str:
    """The numbers of each way of sampling beside human text, and what each of them wrote."""
    if not found:
        return ""
    numbers = {HUMAN: found.get("human") or {}, **found["numbers"]}
    shown = {"setting": [STATISTICS[column][0] for column in COMPARED]}
    for name, values in numbers.items():
        known = [values.get(column) for column in COMPARED]
        shown[name] = ["-" if value is None else f"{value:.2f}" for value in known]
    nearest = ", ".join(found.get("nearest", []))
    note = f"<p>Nearest to the {HUMAN}: {text(nearest)}</p>" if nearest else ""
    return rows(shown) + note + rows(found["texts"])


def memory(run: RecordedRun) -> str:
    """The most memory that was in use, and when it was first reached."""
    tokens, used = run.curve("memory_bytes")
    if not len(used):
        return ""
    first = tokens[used.argmax()]
    return rows({"most in use": f"{used.max() / 1e9:.2f} GB, first after {first:,.0f} tokens"})
