"""What a file holds, by its content and its name: a text, records, or an archive of such files."""

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath, PurePosixPath
from typing import NamedTuple

from corpus.addresses import is_hidden
from corpus.archives import SUFFIXES, UNPACKERS, ZIP, located, members, open_member, unpacked
from corpus.forms import RECORDS, Rules, plain_pieces, record_texts
from corpus.pieces import Piece, document_pieces, in_batches
from corpus.text import binary_kind, encoding_of
from system.errors import DataError

MAX_LAYERS = 2  # a gzip file in a zip archive
PARQUET, TAR = "a Parquet table", "a tar archive"
TAR_MARK = slice(257, 262)
HEAD_BYTES = 1 << 13
NO_TEXT = {"a PNG picture", "a JPEG picture", "a GIF picture", "a PDF document"}
MEANT_AS_TEXT = {".txt", ".md", *RECORDS}


class Opened(NamedTuple):
    """What is known of an opened file, on the disk or in an archive."""

    name: str  # in messages: books.zip/a.jsonl
    num_packed: int
    is_named: bool = False  # by data itself, so that it has to be a text
    num_layers: int = 0  # of archives around it


def pieces_in(
    file: io.BufferedReader, opened: Opened, rules: Rules
) -> Iterator[tuple[Piece, bool]]:
    """The pieces of each text in the file, and whether a text begins with it."""
    head = file.peek(HEAD_BYTES)[:HEAD_BYTES]
    kind = TAR if head[TAR_MARK] == b"ustar" else binary_kind(head)
    form = ".parquet" if kind == PARQUET else form_of(opened.name, head)
    if kind in UNPACKERS and opened.num_layers < MAX_LAYERS:
        inner = unpacked(file, kind, num_packed=opened.num_packed, name=opened.name)
        deeper = opened._replace(num_layers=opened.num_layers + 1)
        yield from pieces_in(inner, deeper, rules)
    elif kind == ZIP and opened.num_layers == 0:
        yield from pieces_in_zip(file, opened, rules)
    elif not opened.is_named and (kind in NO_TEXT or is_binary(head, kind, form)):
        rules.found["no_text"] += 1
    elif kind and kind != PARQUET:
        advice = "unpack it first" if kind.endswith("archive") else "give UTF-8, or Parquet"
        raise DataError(f"not a text ({opened.name} looks like {kind}): {advice}")
    else:
        yield from pieces_of_text(file, opened, rules, form=form)


def form_of(name: str, head: bytes) -> str:
    """The suffix that says the form: .jsonl of a.jsonl.gz, and of a .json of several objects."""
    suffixes = [s for s in map(str.lower, PurePath(name).suffixes) if s not in SUFFIXES]
    form = suffixes[-1] if suffixes else ""
    start = head.decode(encoding_of(head)[1], "ignore").lstrip("\ufeff \t\r\n")
    return ".jsonl" if form == ".json" and start.startswith("{") else form


def is_binary(head: bytes, kind: str | None, form: str) -> bool:
    """Whether a file that nobody named holds NULs, and nothing says that they are meant as text."""
    return kind is None and form not in MEANT_AS_TEXT and b"\0" in head and not encoding_of(head)[0]


def pieces_in_zip(
    file: io.BufferedReader, opened: Opened, rules: Rules
) -> Iterator[tuple[Piece, bool]]:
    with zipfile.ZipFile(file) as archive:
        for info in members(archive, opened.name):
            path = PurePosixPath(info.filename)
            name = f"{opened.name}/{path}"
            if any(map(is_hidden, path.parts)) and ".." not in path.parts:
                rules.found["hidden"] += 1
                continue
            member = Opened(name, info.compress_size, num_layers=1)
            with tolerated(name, rules), open_member(archive, info, name) as inner:
                yield from pieces_in(inner, member, rules)


def pieces_of_text(
    file: io.BufferedReader, opened: Opened, rules: Rules, *, form: str
) -> Iterator[tuple[Piece, bool]]:
    """The pieces of one text or of its records."""
    _, encoding = encoding_of(file.peek(HEAD_BYTES))
    for counts, key in (("forms", form.lstrip(".") or "text"), ("encodings", encoding)):
        rules.found[counts][key] = rules.found[counts].get(key, 0) + 1
    rules.found["files"] += 1
    if form in RECORDS:
        values, unit = RECORDS[form]
        values = values(file, opened.name, rules)
        texts = record_texts(values, unit, name=opened.name, rules=rules)
        pieces = in_batches(document_pieces(texts))
    else:
        pieces = plain_pieces(file, opened.name, rules)
    for number, piece in enumerate(pieces):
        yield piece, number == 0


@contextmanager
def tolerated(name: str, rules: Rules) -> Iterator[None]:
    """A fault inside ends it if the rules skip faults, else it is a DataError with the name."""
    try:
        with located(name):
            yield
    except DataError as error:
        rules.refuse(error)
