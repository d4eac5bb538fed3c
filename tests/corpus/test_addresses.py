"""A text at an address comes whole, is kept, and a cut line never makes it shorter."""

import io
from collections.abc import Iterator

import fsspec
import pytest
from forms import documents_of, json_lines
from fsspec.implementations.memory import MemoryFileSystem
from gpt2_server import FileServer, cut, reply

from corpus import text
from corpus.sources import open_sources
from system import fetch
from system.errors import DownloadError

STORIES = [f"Tom saw {n} dogs." * 50 for n in range(40)]
CONTENT = json_lines(STORIES)


@pytest.fixture(autouse=True)
def _place(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setattr(fetch, "BACKOFF_SECONDS", 0.001)
    monkeypatch.setattr(text, "PROJECT", tmp_path)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer() as server:
        server.files["/models/a.jsonl"] = CONTENT
        yield server


@pytest.fixture
def memory() -> Iterator[MemoryFileSystem]:
    system = fsspec.filesystem("memory")
    system.pipe({"/books/a.jsonl": CONTENT, "/books/in/b.txt": b"last", "/books/.c": b"hidden"})
    yield system
    system.store.clear()


def texts_at(address):
    return documents_of(open_sources(address))


def refusal(address):
    with pytest.raises(DownloadError) as caught:
        open_sources(address)
    assert caught.value.exit_code == 5
    return str(caught.value)


def test_a_text_on_a_server_is_fetched_once_and_needs_no_server_again(server, tmp_path):
    address = f"{server.url}/a.jsonl"
    assert texts_at(address) == STORIES
    assert len(server.requests) == 1
    server.files.clear()
    assert texts_at(address) == STORIES
    assert len(server.requests) == 1


@pytest.mark.parametrize("has_length", [True, False])
def test_a_cut_line_is_continued(server, has_length):
    server.script += [cut(n, has_length=has_length) for n in (9, 1000, 20_000)]
    if has_length:
        assert texts_at(f"{server.url}/a.jsonl") == STORIES
        assert server.num_sent == len(CONTENT)
    else:  # so that nobody can tell the end from a cut
        assert "the size is neither known nor stated" in refusal(f"{server.url}/a.jsonl")


def test_a_line_that_brings_nothing_and_a_page_are_refused(server):
    server.script += [cut(0)] * fetch.MAX_FAILURES
    assert "(0 bytes read" in refusal(f"{server.url}/a.jsonl")
    server.script.append(reply(200, b"<!DOCTYPE html><p>Sign in"))
    assert "a web page" in refusal(f"{server.url}/a.jsonl")
    assert "HTTP 404" in refusal(f"{server.url}/nowhere.txt")


def test_files_folders_and_globs_of_any_file_system_are_read(memory, tmp_path):
    assert texts_at("memory://books/a.jsonl") == STORIES
    assert texts_at("memory://books") == [*STORIES, "last"]
    assert texts_at("memory://books/*.jsonl") == STORIES
    assert texts_at(["memory://books/a.jsonl", "memory://books/in"]) == [*STORIES, "last"]
    memory.store.clear()
    assert texts_at("memory://books") == [*STORIES, "last"]
    assert "no file is there" in refusal("memory://nowhere")


class CutFileSystem(MemoryFileSystem):
    """Its files end at the bytes of `cuts`, one after the other, and later where they should."""

    protocol = "cut"
    cuts: list[int] = []  # noqa: RUF012  fsspec makes the object

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(path.replace("cut://", "memory://"))

    def open(self, path, *others, **options):
        content = super().open(path, *others, **options).getvalue()
        return io.BytesIO(content[: self.cuts.pop(0)] if self.cuts else content)


def test_a_system_that_ends_a_file_early_is_asked_to_go_on(memory, monkeypatch):
    fsspec.register_implementation("cut", CutFileSystem, clobber=True)
    monkeypatch.setattr(CutFileSystem, "cuts", [0, 5, 5, 5, 20_000])
    assert texts_at("cut://books/a.jsonl") == STORIES
    monkeypatch.setattr(CutFileSystem, "cuts", [2] * 99)
    assert "was cut at byte 2 of 4" in refusal("cut://books/in/b.txt")


@pytest.mark.parametrize("address", ["nosuch://a/b", "s3://bucket/key"])
def test_an_address_that_nothing_can_read_says_so(address):
    if address.startswith("s3:") and "s3fs" in str(fsspec.available_protocols()):
        pytest.skip("s3fs is here")
    assert f"cannot fetch {address} (" in refusal(address)
