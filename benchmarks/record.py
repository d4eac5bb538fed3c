"""What was measured, as a table for people and as JSON for the next time."""

import json
import os
import subprocess
from collections import Counter
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from benchmarks.turns import Rows, Task
from system.errors import DataError
from system.files import write_durably
from system.machine import name_of

ROOT = Path(__file__).parent.parent
FORMATS = {  # of the columns that end so; the others are rates, as tokens/s is
    "milliseconds": ",.1f",
    "first step, s": ".1f",
    "peak memory, GB": ".2f",
    "ours is faster (full, shared)": ".2f",
    "ours is faster": ".2f",
    "of products alone": ".0%",
    "of one process": ".2f",
    "communication": ".0%",
    "new / old": ".2f",
    "loss": ".4f",
    "spread": ".4f",
    "minutes": ".1f",
    "nats a token": ".3f",
    "bits a byte": ".3f",
    "largest difference": ".4f",
}


def labels(texts: Sequence[Path]) -> dict[Path, str]:
    """What columns call each text: its name, or its whole path where others are named so."""
    names = Counter(text.stem for text in texts)
    return {text: text.stem if names[text.stem] == 1 else str(text) for text in texts}


def table(rows: Rows, *, corner: str = "") -> str:
    """Markdown of what is in the rows, padded so that it reads well as it is."""
    columns = dict.fromkeys(column for numbers in rows.values() for column in numbers)
    lines = [[corner, *columns]]
    for name, numbers in rows.items():
        lines.append([name, *(shown(numbers[c], c) if c in numbers else "-" for c in columns)])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    lines = [[line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def shown(value: float | list[float], column: str) -> str:
    form = next((form for end, form in FORMATS.items() if column.endswith(end)), ",.0f")
    if isinstance(value, list):
        return ("-" if column == "middle half" else ", ").join(f"{part:{form}}" for part in value)
    return f"{value:{form}}"


def conditions(task: Task, packages: dict[str, str]) -> dict[str, Any]:
    """Where, when and with what was measured: whatever may explain another number."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or a folder without history
        commit = "unknown"
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "commit": commit,
        "hardware": f"{name_of(torch.device('cpu'))}, {os.cpu_count()} processors",
        "device": str(task.machine()),
        "packages": packages,
        "task": str(task),
    }


def save(path: Path, record: dict[str, Any]) -> None:
    text = json.dumps(record, indent=1, allow_nan=False)
    write_durably(path, lambda file: file.write(f"{text}\n".encode()))


def load(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        for numbers in record["rows"].values():
            numbers.items()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DataError(
            f"not a record of a benchmark ({path}): make one with bench.py PART --json {path}"
        ) from error
    return record


def compare(old: dict[str, Any], new: dict[str, Any]) -> str:
    """How many times as fast each row became, after what else is different between the two."""
    lines = [
        f"{key}: {old.get(key)} -> {new.get(key)}"
        for key in ("date", "commit", "hardware", "device", "packages", "task")
        if old.get(key) != new.get(key)
    ]
    rows: Rows = {}
    for name, numbers in new["rows"].items():
        for column, value in numbers.items():
            before = old["rows"].get(name, {}).get(column)
            is_rate = column not in FORMATS and isinstance(value, int | float)
            if is_rate and column != "GFLOP/s" and isinstance(before, int | float) and before:
                rows[f"{name}, {column}"] = {
                    "old": before,
                    "new": value,
                    "new / old": value / before,
                }
    only = sorted(old["rows"].keys() ^ new["rows"].keys())
    lines += [f"only in one of the two: {', '.join(only)}"] if only else []
    if not rows:
        raise DataError("the two records have no row in common: record the same part twice")
    return "\n".join([*lines, "", table(rows)])
