"""A zip file as torch writes it, verified to the last byte before torch reads it.

torch.load checks no CRC, and its reader takes more than its writer makes. Here an archive is right
only if it looks as torch leaves it: plain entries one after the other, known names, no name twice,
every CRC right, and a pickle that asks for nothing but tensors.
"""

import os
import pickletools
import re
import struct
import threading
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import BinaryIO

BLOCK_BYTES = 1 << 20
READING = threading.Lock()
NUM_THREADS = min(4, os.cpu_count() or 1)  # zlib works without Python's lock
PICKLE_NAME = "data.pkl"
ENTRY_NAME = re.compile(
    r"([\w.-]+)/(data\.pkl|version|byteorder|\.format_version|\.storage_alignment"
    r"|\.data/serialization_id|data/[0-9]+)",
    re.ASCII,
)
LOCAL_HEADER = struct.Struct("<4s5H3L2H")
END_RECORD = struct.Struct("<4s4H2LH")  # of the directory, without a comment
HARMLESS_FLAGS = 0x0808  # sizes follow the data; the name is UTF-8
DTYPES = ("BFloat16", "Half", "Float", "Double", "Bool", "Byte", "Char", "Short", "Int", "Long")
WANTED_GLOBALS = {
    "collections OrderedDict",
    "torch Size",
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_tensor_v2",
    *(f"torch {dtype}Storage" for dtype in DTYPES),
}
FOREIGN_OPCODES = {
    *("STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"),
    *("EXT1", "EXT2", "EXT4", "PERSID", "BYTEARRAY8", "NEXT_BUFFER"),
}


class ArchiveError(ValueError):
    """The file is not an intact archive of tensors."""


def check(file: BinaryIO, *, only_pickle: bool = False) -> None:
    """ArchiveError unless every byte that torch will use is as it was written.

    `only_pickle` leaves out the CRCs of the tensors, which take nearly all the time.
    """
    entries, directory_start = read_directory(file)
    names = [ENTRY_NAME.fullmatch(entry.filename) for entry in entries]
    strange = [repr(e.orig_filename) for e, name in zip(entries, names, strict=True) if not name]
    if strange:
        raise ArchiveError(f"unknown entry {strange[0][:80]}")
    if len({name[1] for name in names}) > 1 or len({name[2] for name in names}) < len(names):
        raise ArchiveError("an entry twice, or more than one archive")
    if PICKLE_NAME not in {name[2] for name in names}:
        raise ArchiveError(f"no {PICKLE_NAME}")
    starts = [data_start(file, entry) for entry in entries]
    ends = [entry.header_offset for entry in entries[1:]] + [directory_start]
    for entry, start, end in zip(entries, starts, ends, strict=True):
        if start + entry.file_size > end:
            raise ArchiveError(f"entry {entry.filename} overlaps the next")
    pickle_number = [name[2] for name in names].index(PICKLE_NAME)
    pickle_entry, pickle_start = entries[pickle_number], starts[pickle_number]
    check_crc(file, pickle_entry, pickle_start)
    check_pickle(read_at(file, pickle_start, pickle_entry.file_size))
    if not only_pickle:
        with ThreadPoolExecutor(NUM_THREADS) as pool:
            list(pool.map(partial(check_crc, file), entries, starts))


def read_directory(file: BinaryIO) -> tuple[list[zipfile.ZipInfo], int]:
    """The entries in the order of their bytes, and where the directory after them starts."""
    size = file.seek(0, os.SEEK_END)
    if size < END_RECORD.size:
        raise ArchiveError(f"only {size} bytes")
    end = END_RECORD.unpack(read_at(file, size - END_RECORD.size, END_RECORD.size))
    if end[0] != b"PK\x05\x06" or end[-1] != 0:
        raise ArchiveError("cut short, or not a zip archive")
    try:
        with zipfile.ZipFile(file) as archive:
            entries = sorted(archive.infolist(), key=lambda entry: entry.header_offset)
            directory_start = archive.start_dir
    except OSError:
        raise
    except Exception as error:  # zipfile meets damage with many kinds of error
        raise ArchiveError(f"damaged directory, {error}") from error
    if not entries or entries[0].header_offset != 0:
        raise ArchiveError("does not start with an entry")
    return entries, directory_start


def data_start(file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Where the entry's bytes start; ArchiveError unless they are stored as they are."""
    header = read_at(file, entry.header_offset, LOCAL_HEADER.size)
    if len(header) < LOCAL_HEADER.size:
        raise ArchiveError(f"entry {entry.filename} lies outside the file")
    signature, _, flags, method, *_, name_size, extra_size = LOCAL_HEADER.unpack(header)
    name_start = entry.header_offset + LOCAL_HEADER.size
    name = read_at(file, name_start, name_size)
    is_same = signature == b"PK\x03\x04" and name == entry.orig_filename.encode()
    if not is_same or (flags | entry.flag_bits) & ~HARMLESS_FLAGS:
        raise ArchiveError(f"entry {entry.filename} has a strange header")
    if entry.external_attr & 0xFF:  # torch takes it for a folder, and leaves the memory as it is
        raise ArchiveError(f"entry {entry.filename} has strange attributes")
    if method or entry.compress_type or entry.compress_size != entry.file_size:
        raise ArchiveError(f"entry {entry.filename} is compressed")
    return name_start + name_size + extra_size


def read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    """The file's bytes from the offset on; for several threads, one after the other."""
    with READING:
        file.seek(offset)
        return file.read(size)


def check_crc(file: BinaryIO, entry: zipfile.ZipInfo, start: int) -> None:
    """ArchiveError unless the entry's bytes have the CRC that its writer noted."""
    crc, end = 0, start + entry.file_size
    for offset in range(start, end, BLOCK_BYTES):
        crc = zlib.crc32(read_at(file, offset, min(BLOCK_BYTES, end - offset)), crc)
    if crc != entry.CRC:
        raise ArchiveError(f"entry {entry.filename} has a wrong checksum")


def check_pickle(pickled: bytes) -> None:
    """ArchiveError if loading the pickle would call or build anything but tensors."""
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            is_global = opcode.name == "GLOBAL"
            if opcode.name in FOREIGN_OPCODES or (is_global and argument not in WANTED_GLOBALS):
                wanted = str(argument or opcode.name)[:80]
                raise ArchiveError(f"unsafe, its pickle asks for {wanted!r}; nothing was run")
    except ArchiveError:
        raise
    except Exception as error:  # pickletools meets damage with many kinds of error
        raise ArchiveError(f"damaged pickle, {error}") from error
