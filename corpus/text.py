"""Which text file we train on, and its text in pieces of bounded size."""

import codecs
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from system.errors import DataError
from system.files import as_path
from tokenizer import END_OF_TEXT

TEXT_NAMES = ("TinyStories.txt", "data.txt", "example.txt")
PROJECT = Path(__file__).parent.parent  # where train.py lies
BLOCK_BYTES = 1 << 18
MAX_PIECE_CHARS = 1 << 19  # a piece with a block more stays below tiktoken's limit: 999,998 spaces
SEARCHED_CHARS = 10_000
# GPT-2's pre-tokenizer never joins a word to the space after it, nor anything to a special token,
# so cutting there changes no id.
SAFE_CUT = re.compile(rf"(?<=\S)[ \n]|{re.escape(END_OF_TEXT)}")
BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
BINARY_SIGNATURES = {
    b"PK\x03\x04": "a zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
    b"7z\xbc\xaf": "a 7z archive",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"%PDF": "a PDF document",
    b"PAR1": "a Parquet table",
    codecs.BOM_UTF32_LE: "UTF-32",
}


def chosen_text(named: str) -> Path:
    """The text that `config["data"]` names, by default the first that lies beside train.py."""
    return as_path(named) if named else find_text_file(PROJECT)


def find_text_file(folder: Path) -> Path:
    """The first of TinyStories.txt, data.txt and example.txt that is in the folder."""
    found = [folder / name for name in TEXT_NAMES if os.path.lexists(folder / name)]
    if not found:
        names = " or ".join(TEXT_NAMES)
        raise DataError(f"no text to train on ({folder.resolve()}): put {names} there")
    path = found[0]
    if not path.is_file():
        raise DataError(f"not a regular file ({path}): put a text file in its place")
    if not os.access(path, os.R_OK):
        raise DataError(f"no permission to read the text ({path}): chmod u+r it")
    return path


def last_safe_cut(text: str) -> int:
    """Where the last word that is surely whole ends: last_safe_cut("a cat sa") -> 5, else 0."""
    cuts = [match.start() for match in SAFE_CUT.finditer(text, max(0, len(text) - SEARCHED_CHARS))]
    return cuts[-1] if cuts else 0


class TextReader:
    """A text file in pieces, cut where no token spans the cut; their ids join to the text's ids.

    Reads UTF-8, and UTF-16 that has a byte order mark; line ends become \\n. DataError says what is
    wrong with the file and where, unless `replace_invalid` asks for U+FFFD in its place.
    """

    def __init__(self, path: Path, *, replace_invalid: bool = False) -> None:
        self.path = path
        self.replace_invalid = replace_invalid
        self.num_replaced = 0

    def pieces(self) -> Iterator[str]:
        """Strings that join to the whole text."""
        self.num_replaced, pending = 0, ""
        for text in self._decoded_blocks():
            pending += text
            cut = last_safe_cut(pending)
            if cut == 0 and len(pending) > MAX_PIECE_CHARS:
                cut = len(pending) - len(END_OF_TEXT)  # the next block may complete one
            if cut > 0:
                yield pending[:cut]
                pending = pending[cut:]
        if pending:
            yield pending

    def _decoded_blocks(self) -> Iterator[str]:
        size = self.path.stat().st_size
        meter = {"total": size, "unit": "B", "unit_scale": True, "leave": False}
        with (
            self.path.open("rb") as file,
            tqdm(desc="tokenizing", delay=2, disable=None, **meter) as progress,
        ):
            from_bytes = self._decoder(start=file.read(BLOCK_BYTES))
            decoder = io.IncrementalNewlineDecoder(from_bytes, translate=True)
            file.seek(0)
            for block in _blocks_and_end(file):
                try:
                    yield decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    offset = file.tell() - len(error.object) + error.start
                    raise self._invalid(offset, error.encoding) from error
                progress.update(len(block))

    def _decoder(self, start: bytes) -> codecs.IncrementalDecoder:
        kinds = [kind for mark, kind in BINARY_SIGNATURES.items() if start.startswith(mark)]
        encodings = [name for mark, name in BYTE_ORDER_MARKS.items() if start.startswith(mark)]
        if not encodings and b"\0" in start:
            kinds.append("binary data, or UTF-16 without its byte order mark: it has NUL bytes")
        if kinds:
            raise DataError(f"not a text ({self.path} looks like {kinds[0]}): give plain UTF-8")
        encoding = encodings[0] if encodings else "utf-8"
        errors = self._replace_and_count() if self.replace_invalid else "strict"
        return codecs.getincrementaldecoder(encoding)(errors)

    def _replace_and_count(self) -> str:
        def replace(error: UnicodeError) -> tuple[str | bytes, int]:
            self.num_replaced += 1
            return codecs.replace_errors(error)

        codecs.register_error("replace_and_count", replace)
        return "replace_and_count"

    def _invalid(self, offset: int, encoding: str) -> DataError:
        from_bytes = codecs.getincrementaldecoder(encoding)()
        decoder = io.IncrementalNewlineDecoder(from_bytes, translate=True)
        with self.path.open("rb") as file:
            sizes = (min(BLOCK_BYTES, offset - at) for at in range(0, offset, BLOCK_BYTES))
            line = 1 + sum(decoder.decode(file.read(size)).count("\n") for size in sizes)
        line += decoder.decode(b"", final=True).count("\n")
        return DataError(
            f"invalid {encoding} ({self.path}, byte {offset}, line {line}): "
            "repair it, or set replace_invalid_utf8 to read it as U+FFFD"
        )


def _blocks_and_end(file: BinaryIO) -> Iterator[bytes]:
    """The file's blocks, then b"" so that a decoder can finish."""
    while block := file.read(BLOCK_BYTES):
        yield block
    yield b""
