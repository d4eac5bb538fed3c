"""What `data` names, and its text in pieces of bounded size."""

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from corpus.forms import RECORDS, Rules
from corpus.listing import Listing, Named, files_of
from corpus.pieces import Piece
from corpus.reading import Opened, form_of, pieces_in, tolerated
from corpus.text import BLOCK_BYTES, why_chosen
from system.errors import DataError
from system.files import stamp_of
from tokenizer import END_OF_TEXT


class Sources:
    """Files to read in order; a document is a file's text, or what `<|endoftext|>` separates there.

    In JSON, CSV and Parquet a document is a record. Between two files is a separator, unless the
    first one ends with its own.
    """

    def __init__(self, listing: Listing, why: str, rules: Rules) -> None:
        self.paths, self.why = listing.paths, why
        self._listing, self._rules = listing, rules
        self._stamps = [stamp_of(path) for path in listing.paths]

    @property
    def found(self) -> dict[str, Any]:
        """What was found in the text, in plain types; complete when the last piece has come."""
        return self._rules.found

    def part(self, index: int, total: int) -> "Sources":
        """The files of one of so many parts: each file is in one, in the same order."""
        paths = self._listing.paths
        first, stop = (len(paths) * number // total for number in (index, index + 1))
        return Sources(replace(self._listing, paths=paths[first:stop]), self.why, self._rules)

    def recipe(self) -> list[Any]:
        """What the ids depend on besides the content: two texts alike in both have the same."""
        forms = [form_of(path.name, b"") for path in self.paths]
        records = [form if form in RECORDS else "" for form in forms]
        return [self._rules.field, self._rules.skips, self._rules.replace_invalid, records]

    @property
    def num_bytes(self) -> int:
        """Of the files as they lie on the disk; `found["num_read"]` grows to it."""
        return sum(size for size, *_ in self._stamps)

    def pieces(self, *, scratch: Path | None = None) -> Iterator[Piece]:
        """The text, read anew by each call. DataError says what is wrong with a file and where.

        Tables in archives are unpacked in the folder `scratch`, or else in the system's.
        """
        self._rules = replace(self._rules, scratch=scratch)
        self._begin()
        last = None
        for piece, is_first_of_file in self._pieces_of_files():
            if is_first_of_file and last and not last.is_ended:
                self.found["documents"] += 1
                yield Piece(END_OF_TEXT)
            self.found["documents"] += piece.num_separators
            yield piece
            last = piece
        if last is None:
            raise _no_text(self._listing, self.found)
        self.found["documents"] += not last.is_ended

    def _begin(self) -> None:
        self.found.update(files=0, bytes=self.num_bytes, num_read=0, documents=0, replaced=0)
        self.found.update(forms={}, encodings={}, skipped=0, faults=[])
        self.found.update(hidden=self._listing.num_hidden, no_text=self._listing.num_special)
        for fault in self._listing.faults:
            self._rules.refuse(fault)

    def _pieces_of_files(self) -> Iterator[tuple[Piece, bool]]:
        for path, stamp in zip(self.paths, self._stamps, strict=True):
            num_read = self.found["num_read"]
            opened = Opened(str(path), stamp[0], is_named=path in self._listing.named)
            with (
                _Watched(path, stamp, self.found) as raw,
                io.BufferedReader(raw, BLOCK_BYTES) as file,
            ):
                raw.check()
                with tolerated(str(path), self._rules):
                    yield from pieces_in(file, opened, self._rules)
                raw.check()
            self.found["num_read"] = num_read + stamp[0]


def open_sources(
    data: Named, *, field: str = "text", errors: str = "stop", replace_invalid: bool = False
) -> Sources:
    """The sources that `data` names; for "" the first of TEXT_NAMES beside train.py.

    `field` holds a record's text. With errors="skip" what cannot be read is left out and counted.
    """
    listing = files_of(data)
    if listing.faults and errors != "skip":
        raise listing.faults[0]
    if not listing.paths:
        raise _no_text(listing, {"no_text": listing.num_special, "faults": []})
    why = why_chosen(listing.paths[0], "") if data == "" else "given as data"
    if len(listing.paths) > 1:
        why = f"the first of {len(listing.paths):,} files in {listing.name}"
    return Sources(listing, why, Rules(field, errors == "skip", replace_invalid))


def opened(data: Named, config: dict[str, Any]) -> Sources:
    """The sources that `data` names, to be read as the config says."""
    return open_sources(
        data,
        field=config["data_field"],
        errors=config["data_errors"],
        replace_invalid=config["replace_invalid_utf8"],
    )


def lines_about(found: dict[str, Any], field: str) -> list[str]:
    """What was found, for a person: how many documents, what one is, and what was left out."""
    records = sum(count for form, count in found["forms"].items() if f".{form}" in RECORDS)
    kinds = [f"a record's {field!r}"] if records else []
    if num_texts := found["files"] - records:
        file = "a file's text, or " if num_texts > 1 else ""
        kinds.append(f"{file}what <|endoftext|> separates")
    forms = ", ".join(f"{count:,} {form}" for form, count in sorted(found["forms"].items()))
    lines = [f"documents: {found['documents']:,}, from {forms}; one is {' or '.join(kinds)}"]
    if found["hidden"] or found["no_text"]:
        lines.append(
            f"passed over: {found['hidden']:,} hidden, {found['no_text']:,} pictures and the like"
        )
    if found["skipped"]:
        lines.append(f"skipped {found['skipped']:,} that cannot be read: {found['faults'][0]}")
    return lines


def _no_text(listing: Listing, found: dict[str, Any]) -> DataError:
    counts = f"{len(listing.paths)} files, of which {found['no_text']} pictures and the like"
    seen = "; ".join([counts, f"{listing.num_hidden} hidden", *found["faults"]])
    return DataError(f"no text in {listing.name} ({seen}): put some there")


class _Watched(io.FileIO):
    """A file that is to stay as it is while it is read; `found` says how far reading has come."""

    def __init__(self, path: Path, stamp: list[int], found: dict[str, Any]) -> None:
        super().__init__(path)
        self._stamp, self._found, self._before = stamp, found, found["num_read"]
        self._changed = DataError(f"the text changed while it was read ({path}): start again")

    def check(self) -> None:
        if stamp_of(self.fileno()) != self._stamp:
            raise self._changed

    def readinto(self, buffer: Any) -> int:
        count = super().readinto(buffer)
        position = self.tell()
        if position > self._stamp[0]:  # it grows, perhaps faster than it is read
            raise self._changed
        self._found["num_read"] = self._before + position
        return count
