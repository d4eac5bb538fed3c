"""Hashes of files, taken once: from then on a file is known by its size, times and inode."""

import json
import os
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

from system.files import file_sha256, stamp_of, write_durably

KNOWN_NAME = "known.json"  # of the records beside tokens
FRESH_NS = 3 * 10**9  # the coarsest clock of a disk, FAT's, ticks every two seconds


class KnownFiles:
    """The SHA-256 of files, from records in JSON where the files are as they were.

    A file that changed just before it was read is not recorded: it could change again within one
    tick of the disk's clock and look the same. So a changed file is never taken for the old one.
    """

    def __init__(self, record_paths: Iterable[Path]) -> None:
        self.known: dict[str, list[Any]] = {}  # absolute path: [*stamp, sha256]
        self.is_changed = False
        for path in record_paths:
            with suppress(OSError, ValueError, TypeError):  # none, or damaged
                self.known |= dict(json.loads(path.read_bytes()))

    def sha256(self, path: Path) -> str:
        """Hex digest of the file's content; OSError if it cannot be read."""
        stamp, name = stamp_of(path), os.fspath(path.absolute())
        known = self.known.get(name)
        if isinstance(known, list) and known[:-1] == stamp:
            return known[-1]
        start = time.time_ns()
        digest = file_sha256(path)
        is_old = max(stamp[1:3]) + FRESH_NS < start
        if is_old and stamp_of(path) == stamp:
            self.record(path, digest)
        return digest

    def sha256_of(self, paths: Sequence[Path]) -> str:
        """The hash of a text's only file, or that of the hashes of its files."""
        hashes = [self.sha256(path) for path in paths]
        return hashes[0] if len(hashes) == 1 else sha256("\n".join(hashes).encode()).hexdigest()

    def record(self, path: Path, sha256: str) -> None:
        """Takes down the hash of a file as it is now, which nobody else writes."""
        self.known[os.fspath(path.absolute())] = [*stamp_of(path), sha256]
        self.is_changed = True

    def save(self, record_path: Path) -> None:
        """Writes down what is new, and forgets files that are gone."""
        if self.is_changed:
            there = {name: known for name, known in self.known.items() if os.path.exists(name)}
            content = json.dumps(there, indent=1).encode()
            write_durably(record_path, lambda file: file.write(content))
            self.is_changed = False
