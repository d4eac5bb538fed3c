"""How each form of file holds its documents: plain text, JSON, tables."""

import csv
import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from corpus.pieces import Piece, text_pieces
from corpus.text import BLOCK_BYTES, INVALID, NUL, REPAIR, decoded, marked
from system.errors import DataError
from tokenizer import END_OF_TEXT

MAX_RECORD_CHARS = 1 << 26  # JSON and CSV are read a record at a time
NO_TEXT = re.compile(r"[\0\ud800-\udfff]")
FIRST_ITEM, NEXT_ITEM = re.compile(r"\s*\[\s*"), re.compile(r"\s*,\s*")
EMPTY_LIST, LIST_END = re.compile(r"\s*\[\s*\]\s*"), re.compile(r"\s*\]\s*")
BATCH_ROWS = 64  # of Parquet in memory at once
NUM_SHOWN = 3  # of the faults that were skipped


@dataclass(frozen=True)
class Rules:
    """How text is read, and what was found in it so far."""

    field: str  # of a record, that holds its text
    skips: bool  # what cannot be read is counted and left out
    replace_invalid: bool  # bytes that are no text are read as U+FFFD
    found: dict[str, Any] = field(default_factory=dict)
    scratch: Path | None = None  # where a Parquet table in an archive is unpacked

    def refuse(self, error: DataError) -> None:
        """Raises the error, or counts it where faults are skipped."""
        if not self.skips:
            raise error
        self.found["skipped"] += 1
        if len(self.found["faults"]) < NUM_SHOWN:
            self.found["faults"].append(str(error))

    def cleaned(self, text: str, place: str) -> str | None:
        """The text of a document with line ends as \\n; None if it is skipped for what is in it."""
        if "\r" in text:
            text = text.replace("\r\n", "\n").replace("\r", "\n")
        bad = None if text.isascii() and "\0" not in text else NO_TEXT.search(text)
        if bad is None:
            return text
        if self.replace_invalid:
            text, num_replaced = NO_TEXT.subn("\ufffd", text)
            self.found["replaced"] += num_replaced
            return text
        causes = {"\0": NUL, INVALID: "invalid bytes, or half a surrogate pair"}
        cause = causes.get(bad[0], "half a surrogate pair")
        self.refuse(DataError(f"{cause} ({place}): {REPAIR}"))
        return None


def plain_pieces(file: BinaryIO, name: str, rules: Rules) -> Iterator[Piece]:
    """A document is what `<|endoftext|>` separates."""
    blocks = decoded(file, name, replace_invalid=rules.replace_invalid, keep_invalid=rules.skips)
    pieces = text_pieces(counted(blocks, rules))
    return without_faults(pieces, name, rules) if rules.skips else pieces


def counted(blocks: Iterable[tuple[str, int]], rules: Rules) -> Iterator[str]:
    for text, num_replaced in blocks:
        rules.found["replaced"] += num_replaced if not rules.skips else 0
        yield text


def without_faults(pieces: Iterable[Piece], name: str, rules: Rules) -> Iterator[Piece]:
    """The pieces without the documents, or the parts of a long one, that are no text."""
    number = 1
    for piece in pieces:
        documents = piece.text.split(END_OF_TEXT)
        numbered = enumerate(documents, number)
        texts = [rules.cleaned(text, f"{name}, document {n}") for n, text in numbered]
        text = END_OF_TEXT.join(text for text in texts if text is not None)
        if text or not piece.text:
            yield Piece(text)
        number += len(documents) - 1


def record_texts(
    values: Iterable[tuple[int, Any]], unit: str, *, name: str, rules: Rules
) -> Iterator[str]:
    """A document is a record: a string, or the one in its field."""
    for number, value in values:
        text = value.get(rules.field) if isinstance(value, dict) else value
        if not isinstance(text, str):
            rules.refuse(DataError(fault_of(value, f"{name}, {unit} {number}", rules.field)))
        elif (text := rules.cleaned(text, f"{name}, {unit} {number}")) is not None:
            yield text


def fault_of(value: Any, place: str, name: str) -> str:
    """Why a record has no text."""
    if isinstance(value, Exception):
        return f"{value} ({place}): repair it, or set data_errors to skip"
    if not isinstance(value, dict):
        return f"neither a text nor an object ({place}: {type(value).__name__}): repair it"
    if name in value:
        return f"{name!r} is no text ({place}: {type(value[name]).__name__}): set data_field"
    keys = ", ".join(map(repr, [*value][:9]))
    return f"no field {name!r} ({place} has {keys or 'none'}): set data_field to the text's"


def lines_in(file: BinaryIO, name: str) -> Iterator[tuple[int, str]]:
    """Numbered lines; a line longer than MAX_RECORD_CHARS is an error."""
    number, parts, num_chars = 1, [], 0
    for text, _ in chain(decoded(file, name, keep_invalid=True), [("", 0)]):
        *lines, rest = text.split("\n")
        for line in lines:
            yield number, "".join([*parts, line])
            number, parts, num_chars = number + 1, [], 0
        parts.append(rest)
        num_chars += len(rest)
        check_length(num_chars, f"{name}, line {number}")
    if num_chars:
        yield number, "".join(parts)


def check_length(num_chars: int, place: str) -> None:
    if num_chars > MAX_RECORD_CHARS:
        raise DataError(
            f"a record of more than {MAX_RECORD_CHARS:,} characters ({place}): divide it, or "
            "write the text as a plain file, which may be of any length"
        )


def json_lines(file: BinaryIO, name: str, rules: Rules) -> Iterator[tuple[int, Any]]:
    for number, line in lines_in(file, name):
        if line and not line.isspace():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                yield number, ValueError(f"no JSON: {error}")
            except RecursionError:
                yield number, ValueError("no JSON: nested too deeply")


def json_items(file: BinaryIO, name: str, rules: Rules) -> Iterator[tuple[int, Any]]:
    """The items of a list, of which one at a time is in memory."""
    blocks = (text for text, _ in decoded(file, name, keep_invalid=True))
    decode = json.JSONDecoder().raw_decode
    text, at, number, num_wanted = "", 0, 0, 0
    for block in chain(blocks, [None]):
        text, at = text[at:] + (block or ""), 0
        if block is not None and len(text) < num_wanted:
            continue
        check_length(len(text) - BLOCK_BYTES, f"{name}, item {number + 1}")
        while before := (NEXT_ITEM if number else FIRST_ITEM).match(text, at):
            try:
                value, at = decode(text, before.end())
            except (ValueError, RecursionError):  # of an item whose end is still to come, perhaps
                break
            number += 1
            yield number, value
        num_wanted = 2 * (len(text) - at)
    if not (LIST_END if number else EMPTY_LIST).fullmatch(text, at):
        raise DataError(f"no whole JSON list ({name}, after item {number}): repair what follows")


def table_rows(
    file: BinaryIO, name: str, rules: Rules, *, delimiter: str = ","
) -> Iterator[tuple[int, Any]]:
    """The field's column in a table with a header, numbered by the lines at which rows end."""
    csv.field_size_limit(max(csv.field_size_limit(), MAX_RECORD_CHARS))
    lines = (line + "\n" for _, line in lines_in(file, name))
    rows = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        column = column_of(next(rows, []), name, rules)
        for row in rows:
            short = ValueError(f"only {len(row)} columns")
            if row:
                yield rows.line_num, row[column] if column < len(row) else short
    except csv.Error as error:
        place = f"{name}, line {rows.line_num}: {error}"
        raise DataError(f"no whole CSV ({place}): repair the quotes there") from error


def parquet_rows(file: BinaryIO, name: str, rules: Rules) -> Iterator[tuple[int, Any]]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise DataError(f"reading .parquet needs pyarrow ({error}): pip install pyarrow") from error
    with ExitStack() as stack:
        if not file.seekable():  # in an archive
            packed, file = file, stack.enter_context(tempfile.TemporaryFile(dir=rules.scratch))
            shutil.copyfileobj(packed, file)
        table = parquet.ParquetFile(file, buffer_size=BLOCK_BYTES, pre_buffer=False)
        column_of(table.schema_arrow.names, name, rules)
        number = 0
        for batch in table.iter_batches(BATCH_ROWS, columns=[rules.field], use_threads=False):
            column = batch.column(0)
            if pyarrow.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            if column.type in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
                column = column.cast(pyarrow.large_binary())  # no text before its bytes are checked
            for value in column.to_pylist():
                number += 1
                yield number, marked(value) if isinstance(value, bytes) else value


def column_of(names: list[str], name: str, rules: Rules) -> int:
    if rules.field not in names:
        raise DataError(
            f"no column {rules.field!r} ({name} has {', '.join(map(repr, names[:9])) or 'none'}): "
            "set data_field to the text's"
        )
    return names.index(rules.field)


RECORDS = {
    ".jsonl": (json_lines, "line"),
    ".ndjson": (json_lines, "line"),
    ".json": (json_items, "item"),
    ".csv": (table_rows, "line"),
    ".tsv": (partial(table_rows, delimiter="\t"), "line"),
    ".parquet": (parquet_rows, "row"),
}
