"""Downloads from a server that misbehaves in the ways that are known of servers."""

import hashlib
import io
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path

import pytest
import requests
from gpt2_server import FileServer, Handler, cut, drip, hang_at, reply, serve
from waiting import wait_until

from system import fetch
from system.errors import DownloadError
from system.fetch import RemoteFile

CONTENT = random.Random(0).randbytes(300_007)
FILE = RemoteFile(len(CONTENT), hashlib.sha256(CONTENT).hexdigest())
PATH = "/models/file"


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(fetch, "STALL_SECONDS", 0.4)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server:
        server.files[PATH] = CONTENT
        yield server


mirror = server


def fetched(folder: Path, *servers: FileServer, file: RemoteFile = FILE) -> bytes:
    fetch.fetch([f"{server.url}/file" for server in servers], folder / "file", file)
    assert [path.name for path in folder.iterdir()] == ["file"]
    return (folder / "file").read_bytes()


def refusal(folder: Path, *servers: FileServer, file: RemoteFile = FILE) -> str:
    with pytest.raises(DownloadError) as caught:
        fetched(folder, *servers, file=file)
    assert not (folder / "file").exists()
    return str(caught.value)


# cut connections and killed processes


@pytest.mark.parametrize(("has_length", "file"), [(1, FILE), (0, FILE), (1, RemoteFile())])
def test_a_connection_cut_at_twenty_bytes_is_continued(server, tmp_path, has_length, file):
    cuts = sorted(random.Random(1).sample(range(len(CONTENT)), 20))
    server.script.extend(cut(until, has_length) for until in cuts)
    assert fetched(tmp_path, server, file=file) == CONTENT
    assert server.num_sent == len(CONTENT)  # not a byte twice
    assert len(server.requests) == 21


FETCH = """
import sys, pathlib
from system import fetch
url, path, size, sha256 = sys.argv[1:]
fetch.fetch([url], pathlib.Path(path), fetch.RemoteFile(int(size), sha256))
"""


def kill_at(until: int, server: FileServer, arguments: list[str]) -> int:
    """The bytes sent to a process that is killed when no byte has come for it since byte `until`.

    Of these it has written all but a megabyte, sooner or later.
    """
    server.is_hanging.clear()
    server.script.append(hang_at(until))
    num_sent = server.num_sent
    process = subprocess.Popen(
        [sys.executable, "-c", FETCH, *arguments],
        cwd=Path(fetch.__file__).parent.parent,
        stderr=subprocess.DEVNULL,
    )
    assert server.is_hanging.wait(30)
    part = Path(f"{arguments[1]}.part")
    wait_until(lambda: part.exists() and part.stat().st_size > until - 1_000_000)
    process.kill()
    process.wait()
    return server.num_sent - num_sent


def test_of_a_process_killed_at_twenty_bytes_at_most_a_megabyte_is_fetched_again(server, tmp_path):
    content = server.files[PATH] = random.Random(2).randbytes(20_000_000)
    file = RemoteFile(len(content), hashlib.sha256(content).hexdigest())
    arguments = [f"{server.url}/file", str(tmp_path / "file"), str(file.size), file.sha256]
    cuts = sorted(random.Random(3).sample(range(len(content)), 20))
    for before, until in zip([0, *cuts[:-1]], cuts, strict=True):
        assert kill_at(until, server, arguments) <= until - before + 1_000_000
    num_sent = server.num_sent
    assert fetched(tmp_path, server, file=file) == content
    assert server.num_sent - num_sent <= len(content) - cuts[-1] + 1_000_000


@pytest.mark.parametrize(("part", "num_requests"), [(CONTENT, 0), (bytes(len(CONTENT)), 1)])
def test_a_complete_part_is_asked_for_again_only_if_it_is_rotten(
    server, tmp_path, part, num_requests
):
    (tmp_path / "file.part").write_bytes(part)
    assert fetched(tmp_path, server) == CONTENT
    assert len(server.requests) == num_requests


# never a piece of one file and a piece of another


def change_file(handler: Handler) -> None:
    handler.server.etag, handler.server.files[PATH] = '"two"', CONTENT
    serve(handler)


def ignore_range(handler: Handler) -> None:
    del handler.headers["Range"]
    change_file(handler)


@pytest.mark.parametrize(
    "answer",
    [
        ignore_range,
        change_file,
        reply(416, Content_Range=f"bytes */{len(CONTENT)}"),
        reply(206, CONTENT[1:], Content_Range=f"bytes 1-{len(CONTENT) - 1}/{len(CONTENT)}"),
        reply(206, CONTENT[5000:], Content_Range="bytes 5000-300000/300001"),
        reply(206, CONTENT[5000:]),
    ],
    ids=["range ignored", "etag changed", "416", "other start", "other total", "no range"],
)
def test_a_part_that_cannot_be_continued_starts_over(server, tmp_path, answer):
    server.files[PATH] = bytes(len(CONTENT))  # of another version of the file
    server.script.extend([cut(5000), answer, change_file])
    file = RemoteFile(len(CONTENT))  # no hash would tell a file of two pieces
    assert fetched(tmp_path, server, file=file) == CONTENT
    assert "Range" in server.requests[1][1]


def test_without_an_etag_and_from_another_address_nothing_is_continued(server, mirror, tmp_path):
    server.etag = ""
    server.script.append(cut(5000))
    assert fetched(tmp_path, server) == CONTENT
    assert "Range" not in server.requests[1][1]
    (tmp_path / "file").unlink()
    server.etag = '"one"'
    server.files[PATH] = bytes(len(CONTENT))
    server.script.extend([cut(200_000), reply(404)])
    assert fetched(tmp_path, server, mirror) == CONTENT
    assert "Range" not in mirror.requests[0][1]


@pytest.mark.parametrize("note", [b"\xff\xfe", b'%s\n"one"\r\nX: y', b'%s\n"\xe9"', b"%s\n"])
def test_a_damaged_note_of_what_a_part_is_starts_over(server, tmp_path, note):
    (tmp_path / "file.part").write_bytes(CONTENT[:5000])
    note = note.replace(b"%s", f"{server.url}/file".encode())
    (tmp_path / "file.part.etag").write_bytes(note)
    assert fetched(tmp_path, server) == CONTENT
    assert "Range" not in server.requests[0][1]


# wrong answers


def too_much(handler: Handler) -> None:
    handler.start(200, {})
    for _ in range(20):  # enough to tell, and too little to fill a disk
        handler.send(CONTENT)


PAGE = b"<?xml version='1.0'?><Error>BlobNotFound</Error>"
WRONG = {
    "wrong bytes": reply(200, bytes(len(CONTENT))),
    "page": reply(200, PAGE, Content_Type="application/xml"),
    "page as long as the file": reply(200, PAGE.ljust(len(CONTENT))),
    "gzip": reply(200, CONTENT, Content_Encoding="gzip"),
    "too much": too_much,
    "404": reply(404),
    "403": reply(403),
    "429": reply(429),
    "redirect to a file": reply(302, Location="file:///etc/hostname"),
    "redirect to nowhere": reply(302, Location="http://["),
}


@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_answer_is_not_asked_for_twice_but_the_mirror_is(server, mirror, tmp_path, answer):
    server.script.append(answer)
    assert fetched(tmp_path, server, mirror) == CONTENT
    assert (len(server.requests), len(mirror.requests)) == (1, 1)
    assert server.requests[0][1]["Accept-Encoding"] == "identity"


def test_the_failures_of_both_addresses_are_told(server, mirror, tmp_path):
    server.script.append(WRONG["wrong bytes"])
    mirror.script.append(too_much)
    message = refusal(tmp_path, server, mirror)
    assert f"{server.url}/file: SHA-256" in message
    assert f"{mirror.url}/file: more than the {len(CONTENT)} bytes" in message
    assert DownloadError.exit_code == 5


@pytest.mark.parametrize("body", [PAGE, b"\n<html>", b"\xef\xbb\xbf<?xml", b"\x1f\x8b\x08"])
def test_a_page_is_no_file_of_unknown_size(server, tmp_path, body):
    server.files[PATH] = body
    assert "web page or gzip" in refusal(tmp_path, server, file=RemoteFile())


def test_a_hash_from_one_source_warns_and_a_confirmed_one_refuses(server, tmp_path, capsys):
    file = RemoteFile(len(CONTENT), "0" * 64, is_confirmed=False)
    assert fetched(tmp_path, server, file=file) == CONTENT
    assert "which only one source gives: going on" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answer", "reason"),
    [(reply(500), "HTTP 500"), (reply(503), "HTTP 503"), (cut(0), "300007 more expected")],
)
def test_a_server_that_fails_is_tried_again_a_few_times(server, tmp_path, answer, reason):
    server.script.extend([answer] * (fetch.MAX_FAILURES - 1))
    assert fetched(tmp_path, server) == CONTENT
    server.script.extend([answer] * 100)
    (tmp_path / "file").unlink()
    assert reason in refusal(tmp_path, server)
    assert len(server.requests) == 2 * fetch.MAX_FAILURES


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("is_date", [True, False])
def test_retry_after_is_waited_for_but_not_longer_than_the_cap(
    server, tmp_path, monkeypatch, status, is_date
):
    monkeypatch.setattr(fetch, "MAX_RETRY_AFTER_SECONDS", 0.3)
    text = formatdate(time.time() + 3600, usegmt=True) if is_date else "3600"
    server.script.append(reply(status, Retry_After=text))
    start = time.perf_counter()
    assert fetched(tmp_path, server) == CONTENT
    assert 0.3 <= time.perf_counter() - start < 3


# stalls and redirects


def say_nothing(handler: Handler) -> None:
    handler.server.is_released.wait(60)


@pytest.mark.parametrize("answer", [say_nothing, hang_at(0), hang_at(5000), drip, lambda _: None])
def test_a_silent_a_dripping_and_a_closed_connection_are_tried_again(server, tmp_path, answer):
    server.script.append(answer)
    assert fetched(tmp_path, server) == CONTENT
    assert len(server.requests) == 2


def test_a_redirect_is_followed_but_not_in_a_circle(server, tmp_path):
    server.files["/elsewhere"] = CONTENT
    server.script.append(reply(307, Location="/elsewhere"))
    assert fetched(tmp_path, server) == CONTENT
    (tmp_path / "file").unlink()
    server.script.extend([reply(302, Location=PATH)] * 100)
    assert "Exceeded 5 redirects" in refusal(tmp_path, server)


@pytest.mark.parametrize(
    ("url", "target"), [("https://a/b", "http://a/b"), ("http://a/b", "ftp://a/b")]
)
def test_a_redirect_never_leads_to_a_worse_protocol(tmp_path, monkeypatch, url, target):
    asked = []

    def redirect(adapter, request, **_):
        asked.append(request.url)
        answer = requests.Response()
        answer.status_code, answer.url, answer.raw = 302, request.url, io.BytesIO()
        answer.request = request
        answer.headers["Location"] = target
        return answer

    monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", redirect)
    with pytest.raises(DownloadError, match=target):
        fetch.fetch([url], tmp_path / "file", FILE)
    assert asked == [url]
