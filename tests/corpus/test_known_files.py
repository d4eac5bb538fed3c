"""A file is read once to know its hash; a changed one is never taken for the old one."""

import hashlib
import os
import time

import pytest

from corpus import known_files
from corpus.known_files import FRESH_NS, KnownFiles


@pytest.fixture
def record(tmp_path):
    return tmp_path / "known.json"


@pytest.fixture
def text(tmp_path, monkeypatch):
    """A text that has lain there for years, as far as the clock says."""
    path = tmp_path / "data.txt"
    path.write_text("first")
    monkeypatch.setattr(time, "time_ns", lambda: 10**19)
    return path


def sha256(content):
    return hashlib.sha256(content.encode()).hexdigest()


def start(record, path):
    """What a new process takes for the file's hash."""
    known = KnownFiles([record])
    digest = known.sha256(path)
    known.save(record)
    return digest


def test_an_unchanged_file_is_read_once(record, text, monkeypatch):
    assert start(record, text) == sha256("first")
    monkeypatch.setattr(known_files, "file_sha256", None)
    assert start(record, text) == sha256("first")


def edit(path):
    path.write_text("other")


def edit_and_keep_the_time(path):
    before = path.stat()
    path.write_text("other")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def replace(path):
    new = path.with_name("new")
    new.write_text("other")
    before = path.stat()
    os.utime(new, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(new, path)


def shorten(path):
    path.write_text("oth")


@pytest.mark.parametrize("change", [edit, edit_and_keep_the_time, replace, shorten])
def test_a_changed_file_is_known_as_changed(record, text, change):
    start(record, text)
    change(text)
    assert start(record, text) == sha256(text.read_text()) != sha256("first")


def test_touching_a_file_changes_nothing_but_that_it_is_read_again(record, text):
    start(record, text)
    text.touch()
    assert start(record, text) == sha256("first")


def test_an_edit_within_the_same_tick_of_the_clock_is_seen(record, tmp_path, monkeypatch):
    """The stamp of a disk whose clock stands still says nothing of an edit of the same size."""
    path = tmp_path / "data.txt"
    path.write_text("first")
    now = path.stat().st_mtime_ns
    monkeypatch.setattr(known_files, "stamp_of", lambda path: [5, now, now, 1])
    for after in (-FRESH_NS, 0, FRESH_NS):
        monkeypatch.setattr(time, "time_ns", lambda after=after: now + after)
        for content in ("first", "other"):
            path.write_text(content)
            assert start(record, path) == sha256(content)
    monkeypatch.setattr(time, "time_ns", lambda: now + FRESH_NS + 1)
    assert start(record, path) == sha256("other")
    path.write_text("third")  # by now the clock of any disk has moved: this cannot be
    assert start(record, path) == sha256("other")


def test_a_file_that_changes_while_it_is_read_is_not_recorded(record, text, monkeypatch):
    def read_and_change(path, read=known_files.file_sha256):
        digest = read(path)
        edit(path)
        return digest

    monkeypatch.setattr(known_files, "file_sha256", read_and_change)
    assert start(record, text) == sha256("first")
    monkeypatch.undo()
    assert start(record, text) == sha256("other")


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", '{"a": 1}', '{"TEXT": 5}'])
def test_a_damaged_record_is_no_record(record, text, content):
    record.write_text(content.replace("TEXT", str(text)))
    assert start(record, text) == sha256("first")
    assert KnownFiles([record]).known.keys() == {str(text)}


def test_files_that_are_gone_are_forgotten(record, text, tmp_path):
    other = text.with_name("other.txt")
    other.write_text("other")
    start(record, other)
    other.unlink()
    start(record, text)
    assert KnownFiles([record]).known.keys() == {str(text)}
