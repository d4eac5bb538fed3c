"""A zip file as torch writes it, verified to the last byte before torch reads it.

torch.load checks no CRC, and its reader takes more than its writer makes. Here an archive is right
only if it looks as torch leaves it: plain entries one after the other, known names, no name twice,
every CRC right, and a pickle that asks for nothing but tensors.
"""

import os
import pickletools
import re
import zipfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import BinaryIO

BLOCK_BYTES = 1 << 20
NUM_THREADS = min(4, os.cpu_count() or 1)  # zlib works without Python's lock
PICKLE_NAME = "data.pkl"
ENTRY_NAME = re.compile(
    r"([\w.-]+)/(data\.pkl|version|byteorder|\.format_version|\.storage_alignment"
    r"|\.data/serialization_id|data/[0-9]+)",
    re.ASCII,
)
HEADER_BYTES = 30  # before an entry's name and its data
END_BYTES = 22  # of the record at the end, which has no comment
END_RECORD = re.compile(rb"PK\x05\x06.{16}\x00\x00", re.DOTALL)
DTYPES = ("BFloat16", "Half", "Float", "Double", "Bool", "Byte", "Char", "Short", "Int", "Long")
WANTED_GLOBALS = {
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {dtype}Storage" for dtype in DTYPES),
}


def check(file: BinaryIO, *, only_pickle: bool = False) -> None:
    """Fails unless every byte that torch will use is as it was written.

    With ValueError or, for zipfile and pickletools meet damage with many kinds, any other error.
    `only_pickle` leaves out the CRCs of the tensors, which take nearly all the time.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END_BYTES))
    if not END_RECORD.fullmatch(file.read()):
        raise ValueError("cut short, or not a zip archive")
    with zipfile.ZipFile(file) as archive:
        entries = checked_entries(archive)
        check_pickle(b"".join(blocks(archive, entries.pop(PICKLE_NAME))))
        others = [] if only_pickle else entries.values()
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(lambda entry: deque(blocks(archive, entry), maxlen=0), others))


def checked_entries(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The entries by their names in the archive's folder; ValueError unless they are torch's."""
    entries, folders, end = {}, set(), 0
    for entry in sorted(archive.infolist(), key=lambda entry: entry.header_offset):
        name = ENTRY_NAME.fullmatch(entry.orig_filename)
        if not name or name[2] in entries:
            raise ValueError(f"unknown entry, or one twice: {entry.orig_filename[:80]!r}")
        is_folder = entry.external_attr & 0xFF  # torch would leave the memory as it is
        if is_folder or entry.compress_type or entry.compress_size != entry.file_size:
            raise ValueError(f"entry {entry.filename} is compressed, or a folder")
        if entry.header_offset < end or (not entries and entry.header_offset > 0):
            raise ValueError(f"entry {entry.filename} does not follow the one before")
        end = entry.header_offset + HEADER_BYTES + len(entry.filename) + entry.file_size
        folders.add(name[1])
        entries[name[2]] = entry
    if len(folders) > 1 or PICKLE_NAME not in entries or end > archive.start_dir:
        raise ValueError(f"no {PICKLE_NAME}, more than one archive, or bytes outside the file")
    return entries


def blocks(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Iterator[bytes]:
    """The entry's bytes; BadZipFile in the end unless their CRC is the one that is noted."""
    with archive.open(entry) as opened:
        yield from iter(partial(opened.read1, BLOCK_BYTES), b"")


def check_pickle(pickled: bytes) -> None:
    """ValueError if the pickle names anything that no tensor needs; torch.load calls no other."""
    for opcode, argument, _ in pickletools.genops(pickled):
        if "GLOBAL" in opcode.name and argument not in WANTED_GLOBALS:
            wanted = str(argument or opcode.name)[:80]
            raise ValueError(f"unsafe, its pickle asks for {wanted!r}; nothing was run")
