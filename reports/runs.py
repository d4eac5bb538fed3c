"""What runs have recorded, read again: their best evaluations, what sets them apart, a table."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from generation.row import printable
from reports.jsonl import Line, read
from storage.run_folder import HISTORY_NAME
from system.errors import CheckpointError
from system.files import as_path

OF_ONE = {"seed", "seeds", "output_dir", "resume"}  # in which repetitions of a run differ
COLUMNS = {  # of the table: heading, format, what it is of the best evaluation and the last line
    "bits_per_byte": ("bits a byte", ".3f"),
    "val_loss": ("loss", ".3f"),
    "perplexity": ("perplexity", ",.1f"),
    "step": ("best step", ",.0f"),
    "tokens": ("tokens seen", ",.0f"),
    "tokens_per_second": ("tok/s", ",.0f"),
    "gigabytes": ("GB", ".2f"),
    "minutes": ("minutes", ",.1f"),
}
SPREAD = ("bits_per_byte", "val_loss")  # with a spread beside the mean


@dataclass(frozen=True)
class RecordedRun:
    """A run as its `history.jsonl` tells it: the first line, and the reports."""

    name: str
    head: Line
    lines: list[Line]

    def curve(self, name: str) -> np.ndarray:
        """Tokens seen and the values of that name, where there is one: (2, N)."""
        points = [(line["tokens"], line[name]) for line in self.lines if is_number(line.get(name))]
        return np.array(points, dtype=np.float64).reshape(-1, 2).T

    @cached_property
    def best(self) -> Line:
        """The report with the lowest validation loss, the first of equals; {} without any."""
        evaluated = [line for line in self.lines if is_number(line.get("val_loss"))]
        return min(evaluated, key=lambda line: line["val_loss"], default={})

    @property
    def is_cut_short(self) -> bool:
        """Whether the run has not come to its last step, or not yet."""
        return bool(self.lines) and self.lines[-1]["step"] < (self.head.get("num_steps") or 0)

    @cached_property
    def numbers(self) -> dict[str, float]:
        """What COLUMNS names; NaN for what is not known."""
        _, speeds = self.curve("tokens_per_second")
        last = self.lines[-1] if self.lines else {}
        most = {key: max(self.curve(key)[1], default=np.nan) for key in ("memory_bytes", "seconds")}
        known = {
            **self.best,
            "tokens": last.get("tokens"),
            "tokens_per_second": np.median(speeds) if len(speeds) else None,
            "gigabytes": most["memory_bytes"] / 1e9,
            "minutes": most["seconds"] / 60,
        }
        values = {name: known.get(name) for name in COLUMNS}
        return {k: float(v) if is_number(v) else np.nan for k, v in values.items()}


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def path_of(place: str | Path) -> Path:
    """The history of a run's folder; the path of a file as it is."""
    path = as_path(place)
    return path / HISTORY_NAME if path.is_dir() else path


def load(place: str | Path) -> RecordedRun:
    """The run of a folder or of a history's path; CheckpointError where there is none."""
    path = path_of(place)
    head, lines = read(path)
    if not head:
        raise CheckpointError(f"no history of a run ({path}): name the folder of one that trained")
    name = path.parent.name if path.name == HISTORY_NAME else path.name
    return RecordedRun(name or path.parent.resolve().name, head, lines)


def load_all(places: Sequence[str | Path]) -> list[RecordedRun]:
    """The runs, each with a name of its own: where two folders are called alike, the whole path."""
    runs = [load(place) for place in places]
    names = [run.name for run in runs]
    pairs = zip(places, runs, strict=True)
    return [replace(r, name=str(p)) if names.count(r.name) > 1 else r for p, r in pairs]


def groups_of(runs: Sequence[RecordedRun]) -> list[list[RecordedRun]]:
    """Runs that differ in their seeds alone are together; the group with the fewest bits first."""
    groups: dict[str, list[RecordedRun]] = {}
    for run in runs:
        config = run.head.get("config", {})
        key = repr(sorted((k, repr(config[k])) for k in config if k not in OF_ONE))
        groups.setdefault(key, []).append(run)

    def bits(group: Sequence[RecordedRun]) -> float:
        mean = np.mean([run.numbers["bits_per_byte"] for run in group])
        return np.inf if np.isnan(mean) else float(mean)

    return sorted(groups.values(), key=bits)


def name_of(group: Sequence[RecordedRun]) -> str:
    return ", ".join(run.name for run in group)


def differences(groups: Sequence[Sequence[RecordedRun]]) -> dict[str, list[Any]]:
    """Of each key of the config in which the groups differ its value in each of them."""
    configs = [group[0].head.get("config", {}) for group in groups]
    keys = dict.fromkeys(key for config in configs for key in config if key not in OF_ONE)
    values = {key: [config.get(key) for config in configs] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def rows_of(groups: Sequence[Sequence[RecordedRun]]) -> list[Line]:
    """The table: for each group its name, means and spreads of COLUMNS, what its config has apart.

    A spread is the standard deviation over the seeds, NaN for one run.
    """
    rows = []
    for group in groups:
        row = {"run": printable(name_of(group)), "seeds": len(group)}
        for name in COLUMNS:
            values = [run.numbers[name] for run in group]
            row[name] = float(np.mean(values))
            if name in SPREAD:
                row[f"{name}_spread"] = float(np.std(values, ddof=1)) if len(group) > 1 else np.nan
        rows.append(row)
    for key, values in differences(groups).items():
        for row, value in zip(rows, values, strict=True):
            row[key] = printable(str(value))
    return rows


def cells_of(row: Line) -> dict[str, str]:
    """A row of the table by its headings, for people."""
    cells = {}
    for name, value in row.items():
        if name in COLUMNS:
            heading, form = COLUMNS[name]
            spread = row.get(f"{name}_spread", np.nan)
            cells[heading] = "-" if np.isnan(value) else format(value, form)
            cells[heading] += "" if np.isnan(spread) else f" ± {spread:{form}}"
        elif not name.endswith("_spread"):
            cells[name] = str(value)
    return cells


def as_text(rows: Sequence[Line]) -> str:
    """The rows as aligned columns; a run's name to the left, the rest to the right."""
    shown = [cells_of(row) for row in rows]
    lines = [list(shown[0]), *(list(row.values()) for row in shown)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    first = [line[0].ljust(widths[0]) for line in lines]
    rest = [map(str.rjust, line[1:], widths[1:]) for line in lines]
    return "\n".join("  ".join([name, *cells]) for name, cells in zip(first, rest, strict=True))


def as_csv(rows: Sequence[Line]) -> str:
    """The rows as CSV with a head; an empty cell is what is not known."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: "" if value != value else value for name, value in row.items()})
    return text.getvalue()


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """Places of at most so many of the values (N,): both ends, each part's lowest and highest."""
    if len(values) <= most:
        return np.arange(len(values))
    parts = np.array_split(np.arange(len(values)), max(1, (most - 2) // 2))
    extremes = [part[[values[part].argmin(), values[part].argmax()]] for part in parts]
    return np.unique([0, len(values) - 1, *np.concatenate(extremes)])


def together(
    curves: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens, and mean and standard deviation of curves where all of them are, each (N,)."""
    x = curves[0][0]
    x = x[x <= min(tokens[-1] for tokens, _ in curves)]
    values = np.stack([np.interp(x, *curve) for curve in curves])
    return x, values.mean(0), values.std(0, ddof=min(1, len(values) - 1))
