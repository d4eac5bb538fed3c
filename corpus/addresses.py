"""Addresses such as https://, s3:// and hf://: their files, copied here once and kept."""

import hashlib
import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote, urlsplit

from corpus import text
from system import fetch
from system.errors import DownloadError
from system.files import exclusive, sync_file

FOLDER = ".downloads"  # beside train.py, or in the working folder where that cannot be written
HTML = re.compile(rb"(?:\xef\xbb\xbf)?\s*<(!doctype html|html)", re.IGNORECASE)
MAX_BYTES = 1 << 50  # of a file whose size only its server knows
MAX_TRIES = 5  # in a row that bring nothing


def is_hidden(name: str) -> bool:
    """Whether nobody means a file so named: also what an unfinished download has left."""
    name = PurePosixPath(name).name
    return name.startswith((".", "__MACOSX")) or name.endswith((".part", ".part.etag"))


def is_address(name: str | Path) -> bool:
    return "://" in str(name)


def local_copies(address: str) -> list[Path]:
    """The files at the address. What is here already is taken without a request.

    DownloadError unless all have come whole: a cut line is continued, never taken for the end.
    """
    digest = hashlib.sha256(os.fsencode(address)).hexdigest()[:16]
    parent = text.PROJECT if os.access(text.PROJECT, os.W_OK) else Path.cwd()
    folder = parent / FOLDER / digest
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / ".complete"
    with exclusive(folder / ".lock"):
        if not done.exists():
            try:
                (over_http if re.match("https?://", address) else with_fsspec)(address, folder)
            except (DownloadError, ImportError, ValueError) as error:
                raise DownloadError(
                    f"cannot fetch {address} ({error}): try again, or get it and give its path"
                ) from error
            done.touch()
    return sorted(path for path in folder.iterdir() if not is_hidden(path.name))


def over_http(address: str, folder: Path) -> None:
    name = PurePosixPath(unquote(urlsplit(address).path)).name.lstrip(".") or "text.txt"
    fetch.fetch([address], folder / name, fetch.RemoteFile(max_bytes=MAX_BYTES, refused=HTML))


def with_fsspec(address: str, folder: Path) -> None:
    """Copies the file, the folder or the glob; ImportError or ValueError if nothing can read it."""
    import fsspec

    system, root = fsspec.core.url_to_fs(address)
    with spoken():
        found = system.glob(root) if "*" in root else system.find(root)
        names = [name for name in sorted(found) if not is_hidden(name) and system.isfile(name)]
    if not names:
        raise DownloadError("no file is there")
    for number, name in enumerate(names):
        prefix = f"{number:06d}-" if len(names) > 1 else ""
        copy_whole(system, name, folder / (prefix + PurePosixPath(name).name))


def copy_whole(system: Any, name: str, path: Path) -> None:
    """Copies a file of an fsspec system, from where an earlier try came to."""
    with spoken():
        size, version = system.info(name)["size"], system.ukey(name)
    part = path.with_name(f".{path.name}.{version[:16]}.part")
    num_failures = 0
    with part.open("ab") as target:
        while (start := target.tell()) < size:
            reason = add_rest(target, system, name)
            num_failures = 0 if target.tell() > start else num_failures + 1
            if num_failures == MAX_TRIES:
                raise DownloadError(f"{name} was cut at byte {start} of {size}: {reason}")
            time.sleep(fetch.BACKOFF_SECONDS * num_failures)
    if part.stat().st_size > size:
        part.unlink()
        raise DownloadError(f"{name} changed while it was copied")
    sync_file(part)
    os.replace(part, path)


def add_rest(target: BinaryIO, system: Any, name: str) -> str:
    """Adds what follows in the remote file as far as it comes, and says why no more did."""
    try:
        for block in rest_of(system, name, target.tell()):
            target.write(block)
    except DownloadError as error:
        return str(error)
    return "the line was closed"


def rest_of(system: Any, name: str, start: int) -> Iterator[bytes]:
    with spoken(), system.open(name, "rb") as source:
        source.seek(start)
        yield from iter(lambda: source.read(fetch.CHUNK_BYTES), b"")


@contextmanager
def spoken() -> Iterator[None]:
    """Inside, what a remote system raises is a DownloadError: each has errors of its own."""
    try:
        yield
    except Exception as error:
        raise DownloadError(" ".join(str(error).split()) or type(error).__name__) from error
