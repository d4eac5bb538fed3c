"""TensorFlow's checkpoint files, read without TensorFlow: an index of tensors, and their bytes.

The index is a sorted table of LevelDB's kind: blocks of entries whose keys share their beginnings,
a block that says where the blocks are, and a footer that says where that one is. An entry is a
protocol buffer, `BundleEntryProto`. The tensors lie one after the other in the data file.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
from google_crc32c import extend, value

FOOTER_BYTES, MAGIC = 48, 0xDB4775248B80FB57
FLOAT32 = 1  # DT_FLOAT
BLOCK_BYTES = 1 << 20
DTYPE, SHAPE, SHARD, OFFSET, SIZE, CRC = 1, 2, 3, 4, 5, 6  # fields of an entry


@dataclass(frozen=True)
class BundledTensor:
    """A float32 tensor in a data file: looks like an array, and is read when sliced."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    checksum: int

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, step = rows.indices(self.shape[0])
        assert step == 1, "rows that follow each other"
        num_in_row = prod(self.shape[1:])
        count, offset = max(0, stop - start) * num_in_row, self.offset + 4 * start * num_in_row
        return np.fromfile(self.path, "<f4", count, offset=offset).reshape(-1, *self.shape[1:])

    def without_first_axis(self) -> "BundledTensor":
        """The same numbers, where the first axis has one place."""
        assert self.shape[0] == 1
        return BundledTensor(self.path, self.offset, self.shape[1:], self.checksum)

    def check(self) -> None:
        """ValueError unless the bytes in the file are those that were written."""
        left, found = 4 * prod(self.shape), 0
        with self.path.open("rb") as file:
            file.seek(self.offset)
            while block := file.read(min(BLOCK_BYTES, left)):
                found, left = extend(found, block), left - len(block)
        if left or masked(found) != self.checksum:
            raise ValueError(f"{self.path.name} is damaged")


def read_bundle(prefix: Path) -> dict[str, BundledTensor]:
    """The tensors of a checkpoint in one data file, by name; ValueError where it is damaged."""
    index = prefix.with_name(f"{prefix.name}.index").read_bytes()
    data = prefix.with_name(f"{prefix.name}.data-00000-of-00001")
    try:
        entries = {key.decode(): fields(entry) for key, entry in table(index) if key}
        return {name: tensor_of(data, entry) for name, entry in entries.items()}
    except (IndexError, KeyError, struct.error, TypeError) as error:
        raise ValueError(f"its index is damaged, {error!r}") from error


def tensor_of(data: Path, entry: dict[int, list]) -> BundledTensor:
    shape = [fields(size).get(1, [0])[0] for size in fields(entry[SHAPE][0]).get(2, [])]
    sizes = prod(shape) * 4, entry.get(SIZE, [0])[0]
    if entry[DTYPE] != [FLOAT32] or entry.get(SHARD, [0]) != [0] or sizes[0] != sizes[1]:
        raise ValueError(f"a tensor is no float32 in {data.name}")
    return BundledTensor(data, entry.get(OFFSET, [0])[0], tuple(shape), entry[CRC][0])


def masked(checksum: int) -> int:
    """A CRC-32C as LevelDB notes it, for one may be part of what another is of."""
    return ((checksum >> 15 | checksum << 17) + 0xA282EAD8) % 2**32


def number(data: bytes, place: int) -> tuple[int, int]:
    """A whole number in groups of 7 bits, the lowest first, and the place behind it."""
    result = shift = 0
    while True:
        byte = data[place]
        result, shift, place = result | (byte & 127) << shift, shift + 7, place + 1
        if byte < 128:
            return result, place


def table(index: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a sorted table."""
    footer = index[-FOOTER_BYTES:]
    if len(footer) < FOOTER_BYTES or struct.unpack("<Q", footer[-8:]) != (MAGIC,):
        raise ValueError("its index is cut short, or none")
    place = 0
    for _ in range(2):  # a table of other things comes first
        offset, place = number(footer, place)
        size, place = number(footer, place)
    for _, handle in block(index, offset, size):
        offset, place = number(handle, 0)
        yield from block(index, offset, number(handle, place)[0])


def block(index: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of a block; ValueError unless its checksum is right."""
    end = offset + size + 1  # a byte that says whether it is compressed counts too
    body, (checksum,) = index[offset:end], struct.unpack_from("<I", index, end)
    if body[-1] != 0 or masked(value(body)) != checksum:
        raise ValueError("its index is damaged")
    (num_restarts,) = struct.unpack("<I", body[-5:-1])
    place, end, key = 0, size - 4 - 4 * num_restarts, b""
    while place < end:
        num_shared, place = number(body, place)
        num_new, place = number(body, place)
        length, place = number(body, place)
        key = key[:num_shared] + body[place : place + num_new]
        place += num_new + length
        yield key, body[place - length : place]


def fields(message: bytes) -> dict[int, list]:
    """The fields of a protocol buffer, by number: whole numbers, or bytes."""
    found: dict[int, list] = {}
    place = 0
    while place < len(message):
        tag, place = number(message, place)
        if tag & 7 == 0:
            item, place = number(message, place)
        elif tag & 7 == 2:
            length, place = number(message, place)
            item, place = message[place : place + length], place + length
        elif tag & 7 == 5:
            (item,), place = struct.unpack_from("<I", message, place), place + 4
        else:
            raise ValueError("its index is damaged")
        found.setdefault(tag >> 3, []).append(item)
    return found
