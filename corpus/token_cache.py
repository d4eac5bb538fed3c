"""The tokens of a text, kept on disk and mapped from there."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from corpus.text import BLOCK_BYTES, TextReader
from system.errors import DataError
from system.files import exclusive, sweep_parts, write_durably
from tokenizer import END_OF_TEXT, TABLE_SHA256, GPT2Tokenizer

CACHE_FOLDER_NAME = ".tokens"
CACHE_VERSION = 1
DIGEST_BYTES = hashlib.sha256().digest_size


@dataclass(frozen=True)
class Tokens:
    """The ids of a whole text, mapped from disk, and the SHA-256 of the file they come from."""

    ids: np.ndarray  # (N,) uint16, read-only
    text_sha256: str
    num_replaced: int = 0  # invalid sequences read as U+FFFD while tokenizing


def load_tokens(
    text_path: Path,
    tokenizer: GPT2Tokenizer,
    *,
    cache_parents: Sequence[Path],
    replace_invalid: bool = False,
) -> Tokens:
    """The text's ids, from their cache, which is built where it is missing or damaged.

    The cache is `.tokens/<key>.bin` in the first writable folder of `cache_parents`. The key is a
    hash of the text's content and of the tokenizer, so a changed text never meets a stale cache.
    """
    text_sha256 = file_sha256(text_path)
    recipe = f"{CACHE_VERSION} {text_sha256} {TABLE_SHA256} {replace_invalid}"
    name = hashlib.sha256(recipe.encode()).hexdigest()[:32] + ".bin"
    cache_paths = [parent / CACHE_FOLDER_NAME / name for parent in cache_parents]
    for cache_path in cache_paths:
        ids = read_cache(cache_path)
        if ids is not None:
            return Tokens(ids, text_sha256)
    reader = TextReader(text_path, replace_invalid=replace_invalid)
    ids = build_cache(cache_paths, reader, tokenizer, text_sha256)
    return Tokens(ids, text_sha256, reader.num_replaced)


def file_sha256(path: Path) -> str:
    """Hex digest of the file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def build_cache(
    cache_paths: Sequence[Path], reader: TextReader, tokenizer: GPT2Tokenizer, text_sha256: str
) -> np.ndarray:
    """The reader's ids, written to the first of the paths that can be written."""
    for cache_path in cache_paths[:-1]:
        try:
            return _build_cache_at(cache_path, reader, tokenizer, text_sha256)
        except OSError:  # read-only, or full
            continue
    return _build_cache_at(cache_paths[-1], reader, tokenizer, text_sha256)


def _build_cache_at(
    cache_path: Path, reader: TextReader, tokenizer: GPT2Tokenizer, text_sha256: str
) -> np.ndarray:
    cache_path.parent.mkdir(exist_ok=True)
    with exclusive(cache_path.with_suffix(".lock")):
        ids = read_cache(cache_path)  # another process may have built it while we waited
        if ids is None:
            sweep_parts(cache_path.parent)
            write_durably(
                cache_path,
                lambda file: write_ids(file, reader, tokenizer),
                verify=lambda _: check_unchanged(reader.path, text_sha256),
            )
            ids = read_cache(cache_path)
    if ids is None:
        raise DataError(f"the token cache changed while written ({cache_path}): start again")
    return ids


def check_unchanged(text_path: Path, text_sha256: str) -> None:
    """DataError if somebody wrote the text while it was read."""
    if file_sha256(text_path) != text_sha256:
        raise DataError(f"the text changed while it was read ({text_path}): start again")


def write_ids(file: BinaryIO, reader: TextReader, tokenizer: GPT2Tokenizer) -> None:
    """Writes the cache format: the ids as little-endian uint16, then their SHA-256 (32 bytes)."""
    digest = hashlib.sha256()
    is_blank = True
    for piece in reader.pieces():
        is_blank = is_blank and piece.isspace()
        ids = tokenizer.encoding.encode_to_numpy(
            piece, allowed_special={END_OF_TEXT}, disallowed_special=()
        )
        block = ids.astype("<u2").tobytes()
        digest.update(block)
        file.write(block)
    if is_blank:
        raise DataError(f"the text is empty or blank ({reader.path}): put some stories in it")
    file.write(digest.digest())


def read_cache(cache_path: Path) -> np.ndarray | None:
    """The ids of a cache file, mapped; None where it is missing, torn or damaged."""
    try:
        num_bytes = cache_path.stat().st_size - DIGEST_BYTES
        if num_bytes <= 0 or num_bytes % 2:
            return None
        with cache_path.open("rb") as file:
            file.seek(num_bytes)
            expected = file.read()
        ids = np.memmap(cache_path, dtype="<u2", mode="r", shape=(num_bytes // 2,))
    except OSError:
        return None
    return ids if hashlib.sha256(ids).digest() == expected else None
