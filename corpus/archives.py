"""What an archive holds, unpacked as it is read; DataError where it is damaged, cut or a bomb."""

import bz2
import errno
import gzip
import io
import lzma
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from corpus.text import BLOCK_BYTES
from system.errors import DataError

BOMB_BYTES, BOMB_RATIO = 1_000_000_000, 200  # more than both is no text
ZSTD_INPUT_BYTES = 1 << 8  # may unpack to 32,768 times as much at once
ZIP = "a zip archive"
SUFFIXES = {".gz", ".zst", ".bz2", ".xz", ".zip"}
# What the standard library raises; the last is zipfile's, for a compression that it does not know.
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)
ERRNOS_OF_FILE = {None, errno.EINVAL}  # OSErrors not of the disk: a format's, a seek beyond the end
DAMAGE_OF_EXTRAS = {"ZstdError", "ArrowInvalid"}  # their packages may not be there


def unpacked(file: BinaryIO, kind: str, *, num_packed: int, name: str) -> io.BufferedReader:
    """What the compressed file of `num_packed` bytes unpacks to."""
    return io.BufferedReader(_Unpacked(UNPACKERS[kind](file), num_packed, name), BLOCK_BYTES)


def members(archive: zipfile.ZipFile, name: str) -> list[zipfile.ZipInfo]:
    """The files in a zip archive, in the order of a folder's."""
    infos = [info for info in archive.infolist() if not info.is_dir()]
    num_packed = sum(info.compress_size for info in infos)
    check_no_bomb(sum(info.file_size for info in infos), num_packed, name)
    return sorted(infos, key=lambda info: PurePosixPath(info.filename).parts)


def open_member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, name: str) -> io.BufferedReader:
    """A file in a zip archive; nothing of it is ever written to a path that the archive names."""
    path = PurePosixPath(info.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in info.filename:
        raise DataError(f"a path that leads out of the archive ({name}): pack it anew")
    if info.flag_bits & 1:
        raise DataError(f"encrypted ({name}): unpack it with its password")
    blocks = blocks_of(archive.open, info)
    return io.BufferedReader(_Unpacked(blocks, info.compress_size, name), BLOCK_BYTES)


@contextmanager
def located(name: str) -> Iterator[None]:
    """Inside, what a damaged file raises becomes a DataError that names it."""
    try:
        yield
    except Exception as error:
        is_of_file = isinstance(error, DAMAGE) or type(error).__name__ in DAMAGE_OF_EXTRAS
        if not is_of_file and getattr(error, "errno", 0) not in ERRNOS_OF_FILE:
            raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"damaged or cut ({name}: {reason[:200]}): get the whole file again"
        ) from error


def check_no_bomb(num_bytes: int, num_packed: int, name: str) -> None:
    if num_bytes > max(BOMB_BYTES, BOMB_RATIO * num_packed):
        raise DataError(
            f"unpacks to more than {BOMB_RATIO} times its size and {BOMB_BYTES / 1e9:g} GB "
            f"({name}): no text does; unpack it yourself if you trust it"
        )


class _Unpacked(io.RawIOBase):
    """A file of blocks as they come, which ends with an error if it turns out to be a bomb."""

    def __init__(self, blocks: Iterator[bytes], num_packed: int, name: str) -> None:
        self._blocks, self._num_packed, self._name = blocks, num_packed, name
        self._num_bytes, self._block = 0, memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._block:
            block = next(self._blocks, None)
            if block is None:
                return 0
            self._num_bytes += len(block)
            check_no_bomb(self._num_bytes, self._num_packed, self._name)
            self._block = memoryview(block)
        count = min(len(buffer), len(self._block))
        buffer[:count], self._block = self._block[:count], self._block[count:]
        return count


def blocks_of(open_packed: Callable[[Any], BinaryIO], packed: Any) -> Iterator[bytes]:
    """What `open_packed(packed)` reads."""
    with open_packed(packed) as file:
        yield from iter(lambda: file.read(BLOCK_BYTES), b"")


def zstd_blocks(file: BinaryIO) -> Iterator[bytes]:
    """What the frames hold; the extra's own readers end quietly where a file was cut."""
    if sys.version_info >= (3, 14):
        from compression import zstd

        yield from blocks_of(zstd.open, file)
        return
    try:
        import zstandard
    except ImportError as error:
        raise DataError(f"reading .zst needs zstandard ({error}): pip install zstandard") from error
    frame = None
    while packed := file.read(ZSTD_INPUT_BYTES):
        while packed:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            yield frame.decompress(packed)
            packed, frame = (frame.unused_data, None) if frame.eof else (b"", frame)
    if frame is not None:
        raise EOFError("it ends inside a frame")


UNPACKERS = {
    "a gzip archive": partial(blocks_of, gzip.open),
    "a bzip2 archive": partial(blocks_of, bz2.open),
    "an xz archive": partial(blocks_of, lzma.open),
    "a zstd archive": zstd_blocks,
}
