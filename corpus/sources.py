"""What `data` names, found and resolved, and its text in pieces of bounded size."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from corpus.pieces import Piece, text_pieces
from corpus.text import chosen_text, decoded, why_chosen
from system.errors import DataError

Named = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class Rules:
    """How the text of a source is read."""

    field: str  # of a record, that holds its text
    skips: bool  # what cannot be read is counted and left out
    replace_invalid: bool  # bytes that are no text are U+FFFD


class Sources:
    """Files to read in order; a document is a file's text, or what `<|endoftext|>` separates there.

    Between two files is a separator, unless the first one ends with its own.
    """

    def __init__(self, paths: Sequence[Path], why: str, rules: Rules) -> None:
        self.paths, self.why, self.rules = paths, why, rules
        self.found: dict[str, Any] = {}
        self._identity = [[os.fspath(path.absolute()), *_stamp(path)] for path in paths]

    def identity(self) -> list[list[Any]]:
        """[path, bytes, mtime, ctime (ns), inode] of each file when the sources were opened."""
        return self._identity

    @property
    def num_bytes(self) -> int:
        """Of the files as they lie on the disk."""
        return sum(size for _, size, *_ in self._identity)

    def pieces(self) -> Iterator[Piece]:
        """The text; `found` says what it was when the last piece has come.

        Each call reads anew. DataError says what is wrong with a file and where.
        """
        self.found = {"files": 0, "bytes": self.num_bytes, "num_read": 0, "documents": 0}
        self.found |= {"replaced": 0}
        held = None
        for piece, is_first_of_file in self._pieces_of_files():
            if held is not None:
                held = Piece(held.text, True) if is_first_of_file else held
                self.found["documents"] += held.ends_document
                yield held
            held = piece
        if held is not None:
            self.found["documents"] += 1
            yield held

    def _pieces_of_files(self) -> Iterator[tuple[Piece, bool]]:
        for path, stamp in zip(self.paths, self._identity, strict=True):
            for number, piece in enumerate(self._pieces_of(path, stamp[1:])):
                yield piece, number == 0

    def _pieces_of(self, path: Path, stamp: list[int]) -> Iterator[Piece]:
        changed = DataError(f"the text changed while it was read ({path}): start again")
        start = self.found["num_read"]
        with path.open("rb") as file:
            if _stamp(file.fileno()) != stamp:
                raise changed
            blocks = decoded(file, str(path), replace_invalid=self.rules.replace_invalid)
            yield from text_pieces(self._noticed(blocks, file, start, stamp[0], changed))
            if _stamp(file.fileno()) != stamp:
                raise changed
        self.found["files"] += 1

    def _noticed(
        self, blocks: Iterator[tuple[str, int]], file: BinaryIO, start: int, size: int, changed
    ) -> Iterator[str]:
        for text, num_replaced in blocks:
            self.found["replaced"] += num_replaced
            self.found["num_read"] = start + file.tell()
            if file.tell() > size:
                raise changed
            yield text


def open_sources(
    data: Named, *, field: str = "text", errors: str = "stop", replace_invalid: bool = False
) -> Sources:
    """The sources that `data` names; for "" the first of TEXT_NAMES beside train.py."""
    rules = Rules(field, errors == "skip", replace_invalid)
    path = chosen_text(data)
    return Sources([path], why_chosen(path, data), rules)


def _stamp(file: Path | int) -> list[int]:
    status = os.stat(file)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]
