"""Which text file we train on where none is named, and how bytes become text."""

import codecs
import io
import os
import re
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from system.errors import DataError
from system.files import as_path

TEXT_NAMES = ("TinyStories.txt", "data.txt", "example.txt")
PROJECT = Path(__file__).parent.parent  # where train.py lies
BLOCK_BYTES = 1 << 19
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
    b"": "utf-8",
}
INVALID = "\ud800"  # stands for bytes that no encoding allows: no valid text holds half a pair
BAD = re.compile(f"([\0{INVALID}])")
NUL = "NUL, as in binary data or in UTF-16 without its byte order mark"
REPAIR = "repair it, or set replace_invalid_utf8 to read it as U+FFFD"
BINARY_SIGNATURES = {
    b"PK\x03\x04": "a zip archive",
    b"PK\x05\x06": "a zip archive",  # an empty one
    b"\x1f\x8b": "a gzip archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\x50\x2a\x4d\x18": "a zstd archive",  # that begins with a frame to skip
    **{b"BZh%d1AY&SY" % level: "a bzip2 archive" for level in range(1, 10)},
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF87a": "a GIF picture",
    b"GIF89a": "a GIF picture",
    b"%PDF-": "a PDF document",
    b"PAR1\x15": "a Parquet table",
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
}
SIGNATURE_BYTES = max(map(len, BINARY_SIGNATURES))


def chosen_text(named: str | Path) -> Path:
    """The text that `config["data"]` names; for "" the first of TEXT_NAMES beside train.py."""
    wanted = [as_path(named)] if named else [PROJECT / name for name in TEXT_NAMES]
    path = next(filter(os.path.lexists, wanted), wanted[0] if named else None)
    if path is None:
        names, others = " or ".join(TEXT_NAMES), names_not_taken()
        hint = f"; or rename what lies there: {', '.join(others)}" if others else ""
        raise DataError(f"no text to train on ({PROJECT}): put {names} there{hint}")
    if not os.path.isfile(path):
        raise DataError(f"missing, or not a regular file ({path}): put a text file there")
    if not os.access(path, os.R_OK):
        raise DataError(f"no permission to read the text ({path}): allow it to your user")
    return path


def why_chosen(path: Path, named: str | Path) -> str:
    """Why `chosen_text` took this one, and what lies beside it that may have been meant."""
    if named:
        return "given as data"
    others = [name for name in names_not_taken() if not path.samefile(PROJECT / name)]
    passed_over = f"; not taken: {', '.join(others)} (rename, or give as data)" if others else ""
    return f"the first found of {', '.join(TEXT_NAMES)}{passed_over}"


def validation_text_of(path: Path) -> list[Path]:
    """TinyStories-valid.txt of TinyStories.txt and of TinyStories-train.txt, where it exists."""
    valid = path.with_name(f"{path.stem.removesuffix('-train')}-valid{path.suffix}")
    return [valid] if valid != path and valid.is_file() else []


def shown_path(path: Path) -> str:
    """The path as seen from the working folder, where it lies in there."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def names_not_taken() -> list[str]:
    """Files beside train.py with names like TEXT_NAMES: data.txt.txt, TinyStoriesV2-train.txt."""
    pattern = re.compile(r"(tinystories|data|example).*\.txt.*", re.IGNORECASE)
    files = sorted(path.name for path in PROJECT.iterdir() if path.is_file())
    named = [name for name in files if pattern.fullmatch(name) and name not in TEXT_NAMES]
    return [name for name in named if not Path(name).stem.endswith("-valid")]


def decode_text(raw: bytes, name: str, *, replace_invalid: bool = False) -> str:
    """The text of a prompt or a small file called `name`, by the rules of `decoded`."""
    blocks = decoded(io.BytesIO(raw), name, replace_invalid=replace_invalid)
    return "".join(text for text, _ in blocks)


def decoded(
    file: BinaryIO, name: str, *, replace_invalid: bool = False, keep_invalid: bool = False
) -> Iterator[tuple[str, int]]:
    """The file's text in blocks, and how many characters of each stand for invalid bytes or NUL.

    Reads UTF-8, and UTF-16 that has a byte order mark; line ends become \\n. DataError says what is
    wrong and where, unless `replace_invalid` asks for U+FFFD in its place.
    With `keep_invalid` these are INVALID and NUL, for the caller to judge.
    """
    head = file.read(SIGNATURE_BYTES)
    if kind := binary_kind(head):
        raise DataError(f"not a text ({name} looks like {kind}): give plain UTF-8")
    mark, encoding = encoding_of(head)
    codecs.register_error("mark_invalid", lambda error: (INVALID, error.end))
    decoder = codecs.getincrementaldecoder(encoding)("mark_invalid")
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    line, num_bytes = 1, len(mark)
    blocks = chain([head[len(mark) :]], iter(lambda: file.read(BLOCK_BYTES), b""))
    for block in chain(filter(None, blocks), [b""]):  # the last, so that it can finish
        start = num_bytes - len(decoder.getstate()[0])
        num_bytes += len(block)
        text = decoder.decode(block, final=not block)
        num_bad = text.count(INVALID) + text.count("\0")
        if num_bad and not (replace_invalid or keep_invalid):
            valid, bad, _ = BAD.split(text, maxsplit=1)
            offset = start + len(valid.encode(encoding))
            line += line_ends.decode(valid, final=True).count("\n")
            cause = f"invalid {encoding}" if bad == INVALID else NUL
            raise DataError(f"{cause} ({name}, byte {offset}, line {line}): {REPAIR}")
        text = BAD.sub("\ufffd", text) if num_bad and not keep_invalid else text
        text = line_ends.decode(text, final=not block)
        line += text.count("\n")
        yield text, num_bad


def marked(raw: bytes) -> str:
    """The text of UTF-8 bytes; what is none is INVALID."""
    codecs.register_error("mark_invalid", lambda error: (INVALID, error.end))
    return raw.decode("utf-8", "mark_invalid")


def encoding_of(head: bytes) -> tuple[bytes, str]:
    """The byte order mark that a text begins with, if any, and the encoding that follows."""
    mark = next(filter(head.startswith, BYTE_ORDER_MARKS))
    return mark, BYTE_ORDER_MARKS[mark]


def binary_kind(head: bytes) -> str | None:
    """What the first SIGNATURE_BYTES of a file say it is, if that is no text."""
    return next((kind for mark, kind in BINARY_SIGNATURES.items() if head.startswith(mark)), None)
