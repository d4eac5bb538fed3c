"""The right text file is found, read in pieces that change no id, and its faults are located."""

import bz2
import gzip
import io
import lzma
import os
import re
import zipfile
from contextlib import nullcontext
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus import text
from corpus.archives import UNPACKERS, ZIP
from corpus.reading import PARQUET
from corpus.sources import open_sources
from corpus.text import (
    BINARY_SIGNATURES,
    BYTE_ORDER_MARKS,
    TEXT_NAMES,
    chosen_text,
    decode_text,
    why_chosen,
)
from system.errors import DataError
from tokenizer import END_OF_TEXT

WORDS = [
    "a",
    "the",
    "Once",
    "'s",
    "don't",
    "'",
    "1",
    "42",
    "é",
    "e\u0301",
    "你",
    "😀",
    "👩\u200d👧",
]
SIGNS = [".", ",", "<|", "|>", "<|endof", "<", "--", "\ufeff", END_OF_TEXT]
SPACES = [" ", "  ", "\n", "\n\n", " \n", "\t", "\u00a0", "\u3000", "\x1c", "\x85"]


BYTES = st.lists(st.sampled_from([*b"a \r\n\0\xff\xe2\x82\xac\xf0\x9f\x98\xd8"])).map(bytes)


def strings(*fragments, **sizes):
    return st.lists(st.sampled_from(fragments), **sizes).map("".join)


def written(folder, content):
    path = folder / "data.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(path, **options):
    """The whole text of a file, and how many characters of it stand for what is none."""
    sources = open_sources(path, **options)
    return "".join(piece.text for piece in sources.pieces()), sources.found["replaced"]


def error_of(folder, content):
    with pytest.raises(DataError) as caught:
        read(written(folder, content))
    assert caught.value.exit_code == 3
    assert str(folder / "data.txt") in str(caught.value)
    return str(caught.value)


# which file


@pytest.fixture
def project(tmp_path, monkeypatch):
    """The folder that train.py lies in, empty."""
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.setattr(text, "PROJECT", folder)
    return folder


@pytest.mark.parametrize("first", [0, 1, 2])
def test_first_present_name_is_taken(project, first):
    promised = ("TinyStories.txt", "data.txt", "example.txt")
    for name in promised[first:]:
        (project / name).touch()
    (project / "aaa.txt").touch()
    path = chosen_text("")
    assert path == project / promised[first]
    assert why_chosen(path, "") == f"the first found of {', '.join(promised)}"


def test_empty_folder_is_an_error_with_the_three_names_and_the_folder(project):
    (project / "Stories.txt").touch()
    with pytest.raises(DataError, match="no text to train on") as caught:
        chosen_text("")
    assert str(caught.value).endswith(f"({project}): put {' or '.join(TEXT_NAMES)} there")


@pytest.mark.parametrize(
    "name", ["Data.txt", "data.txt.txt", "TinyStories.TXT", "TinyStoriesV2-GPT4-train.txt"]
)
def test_text_under_a_similar_name_is_not_taken_and_that_is_said(project, name):
    (project / name).write_text("Once")
    with pytest.raises(DataError, match=f"; or rename what lies there: {name}$"):
        chosen_text("")
    (project / "example.txt").write_text("Once")
    path = chosen_text("")
    assert path == project / "example.txt"
    assert why_chosen(path, "").endswith(f"; not taken: {name} (rename, or give as data)")
    assert chosen_text(project / name) == project / name


def test_other_name_of_the_same_file_is_not_mentioned(project):
    (project / "data.txt").write_text("Once")
    (project / "Data.txt").symlink_to("data.txt")  # as where case does not count
    assert "not taken" not in why_chosen(chosen_text(""), "")


PRETENDERS = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a broken link": lambda path: path.symlink_to("nowhere"),
    "a device": lambda path: path.symlink_to(os.devnull),
}


@pytest.mark.parametrize("is_named", [False, True])
@pytest.mark.parametrize("make", PRETENDERS.values(), ids=PRETENDERS)
def test_what_is_no_file_is_an_error_and_never_passed_over(project, make, is_named):
    make(project / "data.txt")
    (project / "example.txt").write_text("a good text that nobody asked for")
    with pytest.raises(DataError, match="missing, or not a regular file") as caught:
        chosen_text(str(project / "data.txt") if is_named else "")
    assert str(project / "data.txt") in str(caught.value)


def test_link_to_a_text_is_a_text(project):
    (project / "stories").write_text("Once")
    (project / "data.txt").symlink_to("stories")
    assert chosen_text("").read_text() == "Once"


def test_named_text_is_taken_or_its_absence_is_an_error(project, monkeypatch):
    monkeypatch.setenv("HOME", str(project))
    (project / "data.txt").write_text("a good text that nobody asked for")
    (project / "stories.md").write_text("Once")
    assert chosen_text("~/stories.md") == project / "stories.md"
    assert why_chosen(project / "stories.md", "~/stories.md") == "given as data"
    for name in ("~/tales.md", "~/data.txt/inside", "~/" + "long" * 100):
        with pytest.raises(DataError, match=rf"missing, .* \({project}.*\): put a text file there"):
            chosen_text(name)


@pytest.mark.usefixtures("as_nobody")
def test_unreadable_file_is_an_error_that_says_so():
    written(Path(), "Once").chmod(0)
    with pytest.raises(DataError, match=r"no permission to read the text \(data.txt\)"):
        chosen_text("data.txt")


# encodings and line ends


@given(
    strings(*WORDS, *SIGNS, *SPACES, "雪", "Ċ", "\ufffd"),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.sampled_from([(b"", "utf-8"), *BYTE_ORDER_MARKS.items()]),
    st.integers(1, 9),
)
def test_same_text_in_any_encoding_and_line_end(tmp_path, content, line_end, form, block_bytes):
    mark, encoding = form
    content = "a" + content  # a mark of its own at the start would be dropped
    stored = mark + content.replace("\n", line_end).encode(encoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_BYTES", block_bytes)
        path = written(tmp_path, stored)
        assert read(path) == read(path, replace_invalid=True) == (content, 0)
    assert decode_text(stored, "prompt") == content


# faults in the text


def test_invalid_utf8_after_the_first_megabyte_is_located(tmp_path):
    before = b"one line\n" * 130_000
    assert len(before) > 1 << 20
    message = error_of(tmp_path, before + b"caf\xe9 au lait\n" + b"more\n" * 1000)
    assert f"byte {len(before) + 3}, line 130001):" in message
    assert "set replace_invalid_utf8" in message


@given(BYTES, st.sampled_from([b"", *BYTE_ORDER_MARKS]), st.integers(1, 9))
def test_file_and_prompt_are_read_as_python_reads_them(tmp_path, stored, mark, block_bytes):
    stored = b"a " + stored  # no mark of its own
    encoding = BYTE_ORDER_MARKS.get(mark, "utf-8")
    plain = stored.decode(encoding, errors="replace")
    expected = re.sub("\r\n?", "\n", plain.replace("\0", "\ufffd"))
    path = written(tmp_path, mark + stored)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_BYTES", block_bytes)
        assert read(path, replace_invalid=True) == (expected, expected.count("\ufffd"))
        assert decode_text(mark + stored, "prompt", replace_invalid=True) == expected
        before, *rest = re.split("[\0\ufffd]", plain, maxsplit=1)
        line, offset = len(re.split("\r\n?|\n", before)), len(mark + before.encode(encoding))
        place = re.escape(f" (prompt, byte {offset}, line {line}):")
        with pytest.raises(DataError, match=place) if rest else nullcontext():
            assert decode_text(mark + stored, "prompt") == expected


def zipped(content):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("stories.txt", content)
    return file.getvalue()


SAMPLES = {
    "a zip archive": zipped(b"Once upon a time"),
    "a gzip archive": gzip.compress(b"Once upon a time"),
    "a bzip2 archive": bz2.compress(b"Once upon a time"),
    "an xz archive": lzma.compress(b"Once upon a time"),
    "a zstd archive": bytes.fromhex("28b52ffd0400"),
    "a 7z archive": bytes.fromhex("377abcaf271c0004"),
    "a PNG picture": bytes.fromhex("89504e470d0a1a0a0000000d49484452"),
    "a JPEG picture": bytes.fromhex("ffd8ffe000104a464946"),
    "a GIF picture": b"GIF89a",
    "a PDF document": b"%PDF-1.7\n",
    "a Parquet table": b"PAR1\x15\x04",
    "UTF-32": "Once".encode("utf-32"),
}


@pytest.mark.parametrize("kind", sorted({*BINARY_SIGNATURES.values()}))
def test_what_is_no_text_is_named_after_its_signature(tmp_path, kind):
    with pytest.raises(DataError, match=f"prompt looks like {kind}\\): give plain UTF-8"):
        decode_text(SAMPLES[kind], "prompt")
    if kind not in (ZIP, PARQUET, *UNPACKERS):
        assert f"looks like {kind})" in error_of(tmp_path, SAMPLES[kind])


@pytest.mark.parametrize("place", [0, 5, text.BLOCK_BYTES, 2 * text.BLOCK_BYTES + 1])
def test_nul_is_the_same_error_wherever_it_is_and_can_be_replaced(tmp_path, place):
    stored = b"\n" * place + b"\0 end"
    message = error_of(tmp_path, stored)
    assert "NUL, as in binary data or in UTF-16 without its byte order mark" in message
    assert f"byte {place}, line {place + 1}): repair it, or set replace_invalid_utf8" in message
    path = written(tmp_path, stored)
    assert read(path, replace_invalid=True) == ("\n" * place + "\ufffd end", 1)
