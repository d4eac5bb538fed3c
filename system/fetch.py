"""Addresses -> one checked file: resumed, retried, from the first source that has it right.

The file grows as `<name>.part`, goes on there after any interruption, of the connection or of this
process, and gets its name once its size and hash are right. Pieces of two files never meet in one:
a note beside the part holds the address and the ETag that it belongs to.
"""

import os
import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import requests
from tqdm import tqdm
from urllib3 import Retry
from urllib3.exceptions import HTTPError, MaxRetryError

from system.errors import DownloadError
from system.files import as_path, file_sha256, named, sync_file
from system.process import warn

CONNECT_SECONDS = 4.0  # so that two sources out of reach are given up in under 10 s
STALL_SECONDS = 60.0  # this long below MIN_BYTES_PER_SECOND is a failure
MIN_BYTES_PER_SECOND = 1000
MAX_FAILURES = 5  # in a row; a try that brings 1 % of the file or ENOUGH_BYTES is no failure
ENOUGH_BYTES = 1_000_000
BACKOFF_SECONDS = 0.5  # doubles with each failure in a row
MAX_RETRY_AFTER_SECONDS = 60.0
MAX_REDIRECTS = 5
MAX_UNKNOWN_BYTES = 16_000_000
CHUNK_BYTES = 1 << 16
VALIDATOR = re.compile(rb"[!-~][ -~]*")  # what is sent back: an ETag, or a date
PAGE_OR_GZIP = re.compile(rb"(?:\xef\xbb\xbf)?\s*<[!?a-zA-Z]|\x1f\x8b")


class RemoteFile(NamedTuple):
    """What is known of a file before it comes. An unconfirmed hash warns, it does not refuse."""

    size: int | None = None
    sha256: str | None = None
    is_confirmed: bool = True
    max_bytes: int = MAX_UNKNOWN_BYTES  # for a file of unknown size
    refused: re.Pattern[bytes] = PAGE_OR_GZIP  # at its beginning, for a file of unknown size


class _RefusedError(Exception):
    """This source cannot give the file: on to the next one."""


class _BrokenError(Exception):
    """The transfer failed: worth another try, after `wait` seconds if the server said so."""

    def __init__(self, reason: str, *, wait: float = 0.0, is_reached: bool = True) -> None:
        super().__init__(reason)
        self.wait, self.is_reached = wait, is_reached


def fetch(urls: Sequence[str], path: str | Path, file: RemoteFile) -> None:
    """Puts the checked file at `path`; DownloadError holds what each address did instead."""
    failures, path = [], as_path(path)
    for url in urls:
        try:
            with named(path):
                _fetch_from(url, path, file)
            return
        except _RefusedError as error:
            failures.append(f"{url}: {error}")
    raise DownloadError("; ".join(failures))


def fault_of(path: str | Path, file: RemoteFile) -> str | None:
    """What is wrong with the file at `path`, or None."""
    path = as_path(path)
    if not path.is_file():
        return "missing"
    if file.size not in (None, _size(path)):
        return f"{_size(path)} bytes instead of {file.size}"
    with path.open("rb") as opened:
        if file.size is None and file.refused.match(opened.peek(64)):
            return "a web page or gzip data"
    if file.sha256 is None or (found := file_sha256(path)) == file.sha256:
        return None
    fault = f"SHA-256 {found} instead of {file.sha256}"
    if file.is_confirmed:
        return fault
    warn(f"{path} has {fault}, which only one source gives: going on")
    return None


def _fetch_from(url: str, path: Path, file: RemoteFile) -> None:
    """Tries one address until the checked file is at `path`, or too many tries in a row failed."""
    part = path.with_name(f"{path.name}.part")
    enough_bytes = min(ENOUGH_BYTES, (file.size or 0) // 100 + 1)
    num_failures, is_reached = 0, False
    while True:
        size_before = _size(part)
        try:
            _transfer(url, part, file)
            break
        except _BrokenError as error:
            is_reached |= error.is_reached
            has_gained = _size(part) - size_before >= enough_bytes
            num_failures = 0 if has_gained else num_failures + 1
            if not is_reached or num_failures == MAX_FAILURES:
                raise _RefusedError(str(error)) from error
            time.sleep(max(error.wait, BACKOFF_SECONDS * 2**num_failures))
    sync_file(part)
    _note(part).unlink(missing_ok=True)
    os.replace(part, path)


def _transfer(url: str, part: Path, file: RemoteFile) -> None:
    """One try; returns when the part is complete and right."""
    start = _size(part)
    if start == 0 or start != file.size:  # else killed after the last byte: nothing to ask for
        start = _request(url, part, file)
    if fault := fault_of(part, file):
        part.unlink()
        raise (_BrokenError if start else _RefusedError)(fault)


def _request(url: str, part: Path, file: RemoteFile) -> int:
    """Completes the part with the answer to one request, which starts at the returned byte."""
    session = requests.Session()
    session.max_redirects = MAX_REDIRECTS
    session.headers.update({"Accept-Encoding": "identity", **_resume_headers(url, part)})
    if url.startswith("https:"):
        del session.adapters["http://"]  # no redirect leads away from https
    try:
        with session.get(url, stream=True, timeout=(CONNECT_SECONDS, STALL_SECONDS)) as response:
            start, total = _extent(response, part, file)
            if start == 0:
                part.unlink(missing_ok=True)
                validator = response.headers.get("ETag") or response.headers.get("Last-Modified")
                _note(part).write_bytes(f"{url}\n{validator or ''}".encode())
            _append(response, part, total)
    except (requests.RequestException, HTTPError, ValueError) as error:
        raise _meaning(error) from error
    return start


def _meaning(error: Exception) -> Exception:
    """A bad address is refused; whatever else befalls a request is worth another try."""
    cause = error.args[0]
    if isinstance(error, (ValueError, requests.TooManyRedirects)):  # no address, or no safe one
        return _RefusedError(str(cause))
    is_reached = not isinstance(cause, MaxRetryError)
    return _BrokenError(str(cause if is_reached else cause.reason), is_reached=is_reached)


def _note(part: Path) -> Path:
    return part.with_name(f"{part.name}.etag")


def _resume_headers(url: str, part: Path) -> dict[str, str | bytes]:
    """Asks for the rest of the part, on condition that it is still the same file over there."""
    if _size(part) and _note(part).exists():
        source, _, validator = _note(part).read_bytes().partition(b"\n")
        if source == url.encode() and VALIDATOR.fullmatch(validator):  # else it is damaged
            return {"Range": f"bytes={_size(part)}-", "If-Range": validator}
    return {}


def _extent(response: requests.Response, part: Path, file: RemoteFile) -> tuple[int, int]:
    """(byte of the file at which the answer's body starts, bytes of the whole file)."""
    status, headers = response.status_code, response.headers
    if status >= 500 or (status == 429 and "Retry-After" in headers):
        wait = Retry().get_retry_after(response.raw) or 0.0
        raise _BrokenError(f"HTTP {status}", wait=min(wait, MAX_RETRY_AFTER_SECONDS))
    if status not in (200, 206, 416):
        raise _RefusedError(f"HTTP {status}")
    if headers.get("Content-Encoding", "identity") != "identity":
        raise _RefusedError(f"compressed as {headers['Content-Encoding']!r}")
    if status == 200:
        length = headers.get("Content-Length", "")
        start, total = 0, int(length) if length.isdecimal() else file.size
    else:
        given = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", headers.get("Content-Range", ""))
        start, total = map(int, given.groups()) if given else (-1, -1)
        if start != _size(part) or file.size not in (None, total):
            part.unlink(missing_ok=True)
            raise _BrokenError(f"HTTP {status} for another range than asked for")
    if total is None:
        raise _RefusedError("the size is neither known nor stated")
    if not (file.size or 0) <= total <= (file.size or file.max_bytes):
        raise _RefusedError(f"{total} bytes instead of {file.size or file.max_bytes} at most")
    return start, total


def _append(response: requests.Response, part: Path, total: int) -> None:
    """Adds the answer's body to the part until that has `total` bytes."""
    position, name = _size(part), part.name.removesuffix(".part")
    with (
        part.open("ab") as opened,
        tqdm(total=total, initial=position, unit="B", unit_scale=True, desc=name) as bar,
    ):
        for chunk in _chunks(response):
            position += len(chunk)
            if position > total:
                raise _RefusedError(f"more than the {total} bytes that it should have")
            opened.write(chunk)
            opened.flush()  # what the kernel has survives this process
            bar.update(len(chunk))
    if position < total:
        raise _BrokenError(f"cut at byte {position} of {total}")


def _chunks(response: requests.Response) -> Iterator[bytes]:
    """The body as it comes; raises when STALL_SECONDS bring less than MIN_BYTES_PER_SECOND."""
    window_start, window_bytes = time.monotonic(), 0
    while chunk := response.raw.read1(CHUNK_BYTES):
        yield chunk
        window_bytes += len(chunk)
        if window_bytes >= MIN_BYTES_PER_SECOND * STALL_SECONDS:
            window_start, window_bytes = time.monotonic(), 0
        elif time.monotonic() - window_start > STALL_SECONDS:
            raise _BrokenError(f"less than {MIN_BYTES_PER_SECOND} B/s for {STALL_SECONDS:g} s")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
