"""A checkpoint file whose tensors are made one by one, when their turn to be written comes."""

import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

# Of a zip file: bytes of its fixed parts, and where these say what is read or written here.
LOCAL_BYTES, LOCAL_LENGTHS = 30, 26  # before an entry's data
LISTED_BYTES, LISTED_CHECKSUM, LISTED_LENGTHS = 46, 16, 28  # in the list at the end
DESCRIPTOR_CHECKSUM = 4  # behind the data


@dataclass(frozen=True)
class Later:
    """A float32 tensor that is made when it is wanted."""

    shape: torch.Size
    make: Callable[[], Tensor]
    dtype = torch.float32


def save(
    state: dict[str, Any], file: BinaryIO, *, check: Callable[[dict[str, Tensor]], None] = len
) -> None:
    """Writes what torch.save would, were every `Later` in the state a tensor.

    torch lays the file out and leaves room for all tensors; they and their checksums come after.
    `check` may refuse what was made of them.
    """
    with torch.serialization.skip_data():
        torch.save(with_room(state), file)
    file.flush()
    with open(file.name, "rb") as laid_out, FakeTensorMode():
        places = tensors_in(torch.load(laid_out, weights_only=True))
    checksums: dict[int, int] = {}  # by where the data begins
    for place, leaf in zip(places, tensors_in(state), strict=True):
        tensor = leaf
        if isinstance(leaf, Later):
            tensor = leaf.make()
            check({"a weight": tensor})
        assert tensor.shape == place.shape, "the shape for which there is room"
        data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        start = place.untyped_storage()._checkpoint_offset
        checksums[start] = zlib.crc32(data)
        write_at(file, start, data)
        write_at(file, start + len(data) + DESCRIPTOR_CHECKSUM, checksum_bytes(checksums[start]))
    file.flush()
    list_checksums(file, checksums)


def list_checksums(file: BinaryIO, checksums: dict[int, int]) -> None:
    """Puts the checksums of entries, by where their data begins, into the list at the end."""
    with open(file.name, "rb") as written, zipfile.ZipFile(written) as archive:
        listed = archive.start_dir
        for entry in archive.infolist():
            written.seek(entry.header_offset + LOCAL_LENGTHS)
            start = entry.header_offset + LOCAL_BYTES + sum(struct.unpack("<2H", written.read(4)))
            if start in checksums:
                write_at(file, listed + LISTED_CHECKSUM, checksum_bytes(checksums[start]))
            written.seek(listed + LISTED_LENGTHS)
            listed += LISTED_BYTES + sum(struct.unpack("<3H", written.read(6)))
    file.seek(0, 2)


def write_at(file: BinaryIO, place: int, data: Any) -> None:
    file.seek(place)
    file.write(data)


def checksum_bytes(checksum: int) -> bytes:
    return struct.pack("<I", checksum)


def with_room(tree: Any) -> Any:
    """The tree with tensors that nothing was written to, each of a storage of its own."""
    if isinstance(tree, Tensor | Later):
        return torch.empty(tree.shape, dtype=tree.dtype)
    if isinstance(tree, dict):
        return {key: with_room(child) for key, child in tree.items()}
    return type(tree)(map(with_room, tree)) if isinstance(tree, list | tuple) else tree


def tensors_in(tree: Any) -> list[Any]:
    """The tensors of a tree in the order in which it holds them."""
    if isinstance(tree, Tensor | Later):
        return [tree]
    children = tree.values() if isinstance(tree, dict) else tree
    is_tree = isinstance(tree, dict | list | tuple)
    return [found for child in children for found in tensors_in(child)] if is_tree else []
