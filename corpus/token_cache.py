"""The tokens of a text, kept on disk and mapped from there."""

import hashlib
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np

from corpus.text import BLOCK_BYTES, TextReader
from system.errors import DataError
from system.files import exclusive, sweep_parts, write_durably
from system.process import note
from tokenizer import END_OF_TEXT, TABLE_SHA256, GPT2Tokenizer

CACHE_NAME = re.compile(r"[0-9a-f]{32}\.bin")
CACHE_VERSION = 2
COUNT_BYTES = 8
DIGEST_BYTES = hashlib.sha256().digest_size
NUM_KEPT = 3


class Tokens(NamedTuple):
    """The ids of a whole text, mapped from disk, and the SHA-256 of the file they come from."""

    ids: np.ndarray  # (N,) uint16, read-only
    text_sha256: str
    num_replaced: int  # invalid sequences and NULs, read as U+FFFD


def load_tokens(
    text_path: Path,
    tokenizer: GPT2Tokenizer,
    *,
    cache_parents: Sequence[Path],
    replace_invalid: bool = False,
) -> Tokens:
    """The text's ids, from or into `.tokens/<key>.bin` in the first usable of `cache_parents`.

    The key is a hash of the text's content and of the tokenizer: no cache is ever stale.
    """
    text_sha256 = file_sha256(text_path)
    recipe = f"{CACHE_VERSION} {text_sha256} {TABLE_SHA256} {replace_invalid}"
    name = hashlib.sha256(recipe.encode()).hexdigest()[:32] + ".bin"
    cache_paths = [parent / ".tokens" / name for parent in cache_parents]
    for cache_path in cache_paths:
        if tokens := read_cache(cache_path, text_sha256):
            with suppress(OSError):  # of a folder that cannot be written
                os.utime(cache_path)  # used now: `remove_old_caches` keeps it
            return tokens
    reader = TextReader(text_path, replace_invalid=replace_invalid)
    for cache_path in cache_paths[:-1]:
        with suppress(OSError):  # read-only, or full
            return _build_cache_at(cache_path, reader, tokenizer, text_sha256)
    return _build_cache_at(cache_paths[-1], reader, tokenizer, text_sha256)


def file_sha256(path: Path) -> str:
    """Hex digest of the file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _build_cache_at(
    cache_path: Path, reader: TextReader, tokenizer: GPT2Tokenizer, text_sha256: str
) -> Tokens:
    folder = cache_path.parent
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder / "lock"):
        tokens = read_cache(cache_path, text_sha256)  # built by another process while we waited?
        if tokens is None:
            sweep_parts(folder)
            write_durably(cache_path, lambda file: write_ids(file, reader, tokenizer, text_sha256))
            tokens = read_cache(cache_path, text_sha256)
            remove_old_caches(folder)
    if tokens is None:
        raise DataError(f"the token cache changed while written ({cache_path}): start again")
    return tokens


def remove_old_caches(folder: Path) -> None:
    """Removes all but the NUM_KEPT caches used last; a cache has its name and digest right."""
    paths = [path for path in folder.iterdir() if CACHE_NAME.fullmatch(path.name)]
    paths = sorted(filter(Path.is_file, paths), key=lambda path: path.stat().st_mtime_ns)
    for path in paths[:-NUM_KEPT]:
        num_bytes = path.stat().st_size
        if read_sealed(path) is not None:
            with suppress(OSError):  # Windows removes no file that is in use
                path.unlink()
                note(f"removed the tokens of an earlier text ({path}, {num_bytes / 1e6:.1f} MB)")


def write_ids(
    file: BinaryIO, reader: TextReader, tokenizer: GPT2Tokenizer, text_sha256: str
) -> None:
    """The cache format: ids (little-endian uint16), COUNT_BYTES of num_replaced, their SHA-256."""
    digest = hashlib.sha256()
    is_blank = True
    for piece in reader.pieces():
        is_blank = is_blank and piece.isspace()
        block = tokenizer.encode_to_numpy(piece, {END_OF_TEXT}).astype("<u2").tobytes()
        digest.update(block)
        file.write(block)
    if is_blank:
        raise DataError(f"the text is empty or blank ({reader.path}): put some stories in it")
    if file_sha256(reader.path) != text_sha256:
        raise DataError(f"the text changed while it was read ({reader.path}): start again")
    count = reader.num_replaced.to_bytes(COUNT_BYTES, "little")
    digest.update(count)
    file.write(count + digest.digest())


def read_cache(cache_path: Path, text_sha256: str) -> Tokens | None:
    """The tokens of a cache file, mapped; None where it is missing, torn or damaged."""
    content = read_sealed(cache_path)
    if content is None:
        return None
    num_replaced = int.from_bytes(content[-COUNT_BYTES:].tobytes(), "little")
    return Tokens(content[:-COUNT_BYTES].view("<u2"), text_sha256, num_replaced)


def read_sealed(path: Path) -> np.ndarray | None:
    """What comes before the digest that a file ends with, mapped; None if the digest is wrong."""
    try:
        raw = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError):  # ValueError: empty
        return None
    content, digest = raw[:-DIGEST_BYTES], raw[-DIGEST_BYTES:]
    return content if hashlib.sha256(content).digest() == digest.tobytes() else None
