"""Files that mean harm: pickles that call, zips that lie. `write_all` puts them into a folder."""

import io
import pickle
import struct
import tarfile
import zipfile
from pathlib import Path

import torch
from tiny_run import tiny_state

PREFIX = "archive/"
CALLS = {
    "os system": ("touch pwned",),
    "os popen": ("touch pwned",),
    "os _exit": (0,),
    "builtins eval": ("__import__('os').system('touch pwned')",),
    "builtins exec": ("open('pwned', 'w')",),
    "builtins open": ("pwned", "w"),
    "builtins compile": ("1", "x", "eval"),
    "builtins bytearray": (10**11,),
    "subprocess Popen": ("touch pwned",),
    "importlib import_module": ("antigravity",),
    "runpy run_path": ("pwned.py",),
    "socket create_connection": (("127.0.0.1", 9),),
    "webbrowser open": ("about:blank",),
    "pickle loads": (b"cos\nsystem\n.",),
    "torch.storage _load_from_bytes": (b"x",),
    "ctypes CDLL": ("libc.so.6",),
    "functools partial": (print, 1),
    "sys exit": (0,),
}


def call_of(name: str, arguments: tuple) -> bytes:
    """A pickle, without its end, that calls the function when it is loaded."""
    module, function = name.rsplit(" ", 1)
    values = pickle.dumps(arguments, protocol=2)[2:-1]  # without header and end
    return f"c{module}\n{function}\n".encode() + values + b"R"


def pickles() -> dict[str, bytes]:
    """Pickles that run code at load, on each of the ways that the format has."""
    bare = {name: b"\x80\x02" + call_of(name, values) + b"." for name, values in CALLS.items()}
    call = call_of("os system", ("touch pwned",))
    key = b"X\x14\0\0\0optimizer_state_dict"
    return {
        **bare,
        "in a dict": b"\x80\x02}" + key + call + b"s.",
        "in nested lists": b"\x80\x02" + b"]" * 50 + call + b"a" * 50 + b".",
        "as a key": b"\x80\x02}" + call + b"Nsh.",
        "inst": b"(S'touch pwned'\nios\nsystem\n.",
        "obj": b"(cos\nsystem\nS'touch pwned'\no.",
        "newobj": b"\x80\x02cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85\x81.",
        "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        "extension": b"\x80\x02\x82\x01.",
        "build": b"\x80\x02cos\nPathLike\n}X\x01\0\0\0aNsb.",
    }


def archive_of(pickled: bytes, **more: bytes) -> bytes:
    """A zip as torch writes it around a pickle."""
    return zip_of({"data.pkl": pickled, "version": b"3\n", "byteorder": b"little", **more})


def zip_of(entries: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w", method) as archive:
        for name, content in entries.items():
            archive.writestr(PREFIX + name if name[0] != "/" else name, content)
    return raw.getvalue()


def good() -> bytes:
    raw = io.BytesIO()
    torch.save(tiny_state(), raw)
    return raw.getvalue()


def entries_of(archive: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(archive)) as source:
        return {name.removeprefix(PREFIX): source.read(name) for name in source.namelist()}


def patched(archive: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """The archive with bytes changed at an offset from the last header with the signature."""
    start = archive.rindex(signature) + offset
    return archive[:start] + value + archive[start + len(value) :]


def twice(name: str) -> bytes:
    raw = io.BytesIO(good())
    with zipfile.ZipFile(raw, "a") as archive:
        archive.fp.seek(0, 2)
        info = zipfile.ZipInfo(PREFIX + name)
        archive.filelist.append(info)  # not NameToInfo: no warning about the second one
        archive.filelist.pop()
        archive.NameToInfo.pop(PREFIX + name)
        archive.writestr(info, b"\x80\x02}.")
    return raw.getvalue()


def huge(shape: str) -> bytes:
    """A tensor that claims a shape, over a storage of 24 bytes."""
    sizes = {"long": (10**10,), "wide": (10**5, 10**5), "stride": (10**10,)}[shape]
    strides = {"long": (1,), "wide": (10**5, 1), "stride": (0,)}[shape]
    storage = b"(X\x07\0\0\0storagectorch\nFloatStorage\nX\x01\0\0\x000X\x03\0\0\0cpuK\x06tQ"
    shape_and_stride = b"".join(pickle.dumps(value, protocol=2)[2:-1] for value in (sizes, strides))
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n("
        + storage
        + b"K\0"
        + shape_and_stride
        + b"\x89ccollections\nOrderedDict\n)RtR"
    )
    pickled = (
        b"\x80\x02}(X\x06\0\0\0config}X\x10\0\0\0model_state_dict}X\x01\0\0\0a" + tensor + b"su."
    )
    return archive_of(pickled, **{"data/0": bytes(24)})


def laughs() -> bytes:
    """A list of two lists of two lists ...: 2^60 leaves in a few bytes."""
    levels = b"".join(
        b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60)
    )
    body = b"(X\x06\0\0\0config}X\x10\0\0\0model_state_dict}X\x01\0\0\0x]q\0" + levels + b"u."
    return archive_of(b"\x80\x02}" + body)


def zips() -> dict[str, bytes]:
    """Archives that torch or zipfile might take, and that no torch has written."""
    whole = good()
    entries = entries_of(whole)
    zeros = {**entries, "data/0": bytes(200 << 20)}
    central, end = b"PK\x01\x02", b"PK\x05\x06"
    return {
        "bomb": zip_of(zeros, zipfile.ZIP_DEFLATED),
        "bzip2": zip_of(entries, zipfile.ZIP_BZIP2),
        "lzma": zip_of(entries, zipfile.ZIP_LZMA),
        "duplicate pickle": twice("data.pkl"),
        "duplicate tensor": twice("data/0"),
        "parent folder": zip_of({**entries, "../evil": b"x"}),
        "absolute name": zip_of({**entries, "/etc/evil": b"x"}),
        "backslash": zip_of({**entries, "data\\0": b"x"}),
        "capitals": zip_of({**entries, "DATA.PKL": b"x"}),
        "unknown name": zip_of({**entries, "code/evil.py": b"x"}),
        "no pickle": zip_of({"version": b"3"}),
        "empty archive": zip_of({}),
        "data before": b"#!/bin/sh\n" + whole,
        "data after": whole + b"x" * 30,
        "comment": patched(whole, end, 20, b"\x05\0") + b"hello",
        "encrypted": patched(whole, central, 8, b"\x09\x08"),
        "folder bit": patched(whole, central, 38, b"\x10"),
        "offset outside": patched(whole, central, 42, struct.pack("<L", 2**31)),
        "overlap": patched(whole, central, 42, struct.pack("<L", 0)),
        "size too large": patched(whole, central, 20, struct.pack("<LL", 2**31, 2**31)),
        "size too small": patched(whole, central, 20, struct.pack("<LL", 1, 1)),
        "wrong crc": patched(whole, central, 16, b"\0\0\0\0"),
        "directory outside": patched(whole, b"PK\x06\x06", 48, struct.pack("<Q", 2**40)),
        "directory of terabytes": patched(whole, b"PK\x06\x06", 40, struct.pack("<Q", 2**42)),
        "long shape": huge("long"),
        "wide shape": huge("wide"),
        "stride 0": huge("stride"),
        "billion laughs": laughs(),
        "deep nesting": archive_of(b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."),
        "missing storage": zip_of({k: v for k, v in entries.items() if k != "data/3"}),
    }


def old_formats() -> dict[str, bytes]:
    """What torch wrote before it wrote zips; some of it runs code in old readers."""
    call = b"\x80\x02" + call_of("os system", ("touch pwned",)) + b"."
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(call)
            archive.addfile(info, io.BytesIO(call))
    legacy = io.BytesIO()
    torch.save(tiny_state(), legacy, _use_new_zipfile_serialization=False)
    return {"tar": raw.getvalue(), "raw pickle": call, "legacy": legacy.getvalue() + call}


def write_all(folder: Path) -> dict[str, int]:
    """Writes every file; how many there are of each kind."""
    calls = pickles()
    raw = {f"raw {name}": content for name, content in list(calls.items())[:8]}
    kinds: dict[str, dict[str, bytes]] = {
        "pickle": {name: archive_of(content) for name, content in calls.items()} | raw,
        "zip": zips(),
        "old": old_formats(),
    }
    for kind, files in kinds.items():
        for name, content in files.items():
            (folder / f"{kind} {name}.pt").write_bytes(content)
    return {kind: len(files) for kind, files in kinds.items()}
