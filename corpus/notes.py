"""What was once found out about a text, kept beside its tokens for the next start."""

import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from system.files import write_durably

NUM_KEPT = 8
DIGEST_BYTES = 32
Note = dict[str, Any] | np.ndarray  # plain values in a .json, an array in a .bin


def remembered(paths: Sequence[Path], key: str, compute: Callable[[], Note]) -> Note:
    """The note of that key in one of the files; else what is computed, kept in the first usable."""
    notes = [read(path) for path in paths]
    for known in notes:
        if key in known:
            return known[key]
    note = compute()
    for path, known in zip(paths, notes, strict=True):
        content = packed(path, {**dict(list(known.items())[1 - NUM_KEPT :]), key: note})
        with suppress(OSError):  # read-only, or full
            write_durably(path, lambda file, content=content: file.write(content))
            break
    return note


def packed(path: Path, notes: Mapping[str, Note]) -> bytes:
    """The content of the file: JSON, or numpy's own format after its SHA-256."""
    if path.suffix == ".json":
        return json.dumps(notes, indent=1).encode()
    file = io.BytesIO()
    np.savez(file, **notes)
    return sha256(file.getvalue()).digest() + file.getvalue()


def read(path: Path) -> Mapping[str, Note]:
    """The notes in a file; none where it is missing, damaged or not ours."""
    with suppress(OSError, ValueError):
        raw = path.read_bytes()
        if path.suffix == ".json":
            notes = json.loads(raw)
            is_ours = isinstance(notes, dict) and all(isinstance(n, dict) for n in notes.values())
            return notes if is_ours else {}
        if sha256(raw[DIGEST_BYTES:]).digest() == raw[:DIGEST_BYTES]:
            with np.load(io.BytesIO(raw[DIGEST_BYTES:])) as arrays:
                return dict(arrays)
    return {}
