"""What was once found out about a text, kept beside its tokens for the next start."""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from system.files import write_durably

NUM_KEPT = 16
Note = dict[str, Any]  # plain values


def remembered(paths: Sequence[Path], key: str, compute: Callable[[], Note]) -> Note:
    """The note of that key in one of the files; else what is computed, kept in the first usable."""
    notes = [read(path) for path in paths]
    for known in notes:
        if key in known:
            return known[key]
    note = compute()
    for path, known in zip(paths, notes, strict=True):
        newest = dict(list(known.items())[1 - NUM_KEPT :])
        content = json.dumps({**newest, key: note}, indent=1).encode()
        with suppress(OSError):  # read-only, or full
            write_durably(path, lambda file, content=content: file.write(content))
            break
    return note


def read(path: Path) -> dict[str, Note]:
    """The notes in a file; none where it is missing, damaged or not ours."""
    with suppress(OSError, ValueError):
        notes = json.loads(path.read_bytes())
        if isinstance(notes, dict) and all(isinstance(note, dict) for note in notes.values()):
            return notes
    return {}
