"""What an archive holds, unpacked as it is read; DataError where it is damaged, cut or a bomb."""

import bz2
import gzip
import io
import lzma
import sys
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from corpus.text import BLOCK_BYTES
from system.errors import DataError, UserError

BOMB_BYTES, BOMB_RATIO = 1_000_000_000, 200  # more than both is no text
ZSTD_INPUT_BYTES = 1 << 12  # of which some may unpack to 32,000 times as much at once
ZIP = "a zip archive"
SUFFIXES = {".gz", ".zst", ".bz2", ".xz", ".zip"}
DAMAGE = (EOFError, zlib.error, lzma.LZMAError, zipfile.BadZipFile, NotImplementedError)
DAMAGE_OF_EXTRAS = {"ZstdError", "ArrowInvalid"}  # their packages may not be there


def unpacked(file: BinaryIO, kind: str, *, num_packed: int, name: str) -> io.BufferedReader:
    """What the compressed file of `num_packed` bytes unpacks to."""
    return io.BufferedReader(_Bounded(UNPACKERS[kind](file), num_packed, name), BLOCK_BYTES)


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
    return io.BufferedReader(_Bounded(archive.open(info), info.compress_size, name), BLOCK_BYTES)


@contextmanager
def located(name: str) -> Iterator[None]:
    """Inside, what a damaged file raises becomes a DataError that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        is_damage = isinstance(error, DAMAGE) or type(error).__name__ in DAMAGE_OF_EXTRAS
        if not is_damage and (getattr(error, "errno", 0) is not None):  # else of no disk's making
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


class _Bounded(io.RawIOBase):
    """A file that is read to its end unless it turns out to be a bomb."""

    def __init__(self, file: BinaryIO, num_packed: int, name: str) -> None:
        self._file, self._num_packed, self._name = file, num_packed, name
        self._num_bytes = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._file.readinto(buffer)
        self._num_bytes += count
        check_no_bomb(self._num_bytes, self._num_packed, self._name)
        return count


class _ZstdFile(io.RawIOBase):
    """What frames of zstd hold; the library's own readers end quietly where a file was cut."""

    def __init__(self, file: BinaryIO, new_decompressor: Any) -> None:
        self._file, self._new_decompressor = file, new_decompressor
        self._frame, self._unpacked = None, memoryview(b"")

    def readinto(self, buffer: Any) -> int:
        while not self._unpacked:
            is_over = self._frame is not None and self._frame.eof
            packed = self._frame.unused_data if is_over else b""
            self._frame = None if is_over else self._frame
            packed = packed or self._file.read(ZSTD_INPUT_BYTES)
            if not packed and self._frame is None:
                return 0
            if not packed:
                raise EOFError("it ends inside a frame")
            self._frame = self._frame or self._new_decompressor().decompressobj()
            self._unpacked = memoryview(self._frame.decompress(packed))
        count = min(len(buffer), len(self._unpacked))
        buffer[:count], self._unpacked = self._unpacked[:count], self._unpacked[count:]
        return count


def _open_zstd(file: BinaryIO) -> BinaryIO:
    if sys.version_info >= (3, 14):
        from compression import zstd

        return zstd.open(file)
    try:
        import zstandard
    except ImportError as error:
        raise DataError(f"reading .zst needs zstandard ({error}): pip install zstandard") from error
    return _ZstdFile(file, zstandard.ZstdDecompressor)


UNPACKERS = {
    "a gzip archive": gzip.open,
    "a bzip2 archive": bz2.open,
    "an xz archive": lzma.open,
    "a zstd archive": _open_zstd,
}
