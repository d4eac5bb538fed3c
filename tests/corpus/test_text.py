"""The right text file is found, read in pieces that change no id, and its faults are located."""

import bz2
import codecs
import gzip
import lzma
import os
import random
import re
import zipfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corpus import text
from corpus.text import (
    BINARY_SIGNATURES,
    BYTE_ORDER_MARKS,
    TEXT_NAMES,
    TextReader,
    decode_text,
    find_text_file,
)
from system.errors import DataError
from tokenizer import END_OF_TEXT

PROPERTY = settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
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


def random_text(seed, fragments, length):
    return "".join(random.Random(seed).choices(fragments, k=length))


def written(folder, content):
    path = folder / "data.txt"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def pieces_of(folder, content):
    return list(TextReader(written(folder, content)).pieces())


def error_of(folder, content):
    with pytest.raises(DataError) as caught:
        pieces_of(folder, content)
    assert caught.value.exit_code == 3
    assert str(folder / "data.txt") in str(caught.value)
    return str(caught.value)


@pytest.fixture
def small_blocks(monkeypatch):
    """Makes a few bytes of text need many blocks."""
    monkeypatch.setattr(text, "BLOCK_BYTES", 7)
    monkeypatch.setattr(text, "SEARCHED_CHARS", 5)


@pytest.fixture
def as_nobody(tmp_path, monkeypatch):
    """Runs the test in tmp_path without the rights of root, whom no permission stops."""
    monkeypatch.chdir(tmp_path)
    if os.geteuid() != 0:
        yield
        return
    tmp_path.chmod(0o777)
    os.setresuid(65534, 65534, 0)
    yield
    os.setresuid(0, 0, 0)


# which file


@pytest.mark.parametrize("first", range(len(TEXT_NAMES)))
def test_first_present_name_is_taken(tmp_path, first):
    for name in TEXT_NAMES[first:]:
        (tmp_path / name).touch()
    (tmp_path / "aaa.txt").touch()
    assert find_text_file(tmp_path) == tmp_path / TEXT_NAMES[first]


def test_names_are_tried_in_the_promised_order():
    assert TEXT_NAMES == ("TinyStories.txt", "data.txt", "example.txt")


def test_empty_folder_is_an_error_with_the_three_names_and_the_folder(tmp_path):
    with pytest.raises(DataError, match="no text to train on") as caught:
        find_text_file(tmp_path)
    assert all(name in str(caught.value) for name in (*TEXT_NAMES, str(tmp_path)))


PRETENDERS = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a broken link": lambda path: path.symlink_to("nowhere"),
    "a device": lambda path: path.symlink_to(os.devnull),
}


@pytest.mark.parametrize("make", PRETENDERS.values(), ids=PRETENDERS)
def test_what_is_no_file_is_an_error_and_never_passed_over(tmp_path, make):
    make(tmp_path / "data.txt")
    (tmp_path / "example.txt").write_text("a good text that nobody asked for")
    with pytest.raises(DataError, match="not a regular file") as caught:
        find_text_file(tmp_path)
    assert str(tmp_path / "data.txt") in str(caught.value)


def test_link_to_a_text_is_a_text(tmp_path):
    (tmp_path / "stories").write_text("Once")
    (tmp_path / "data.txt").symlink_to("stories")
    assert find_text_file(tmp_path).read_text() == "Once"


@pytest.mark.usefixtures("as_nobody")
def test_unreadable_file_is_an_error_that_says_so():
    written(Path(), "Once").chmod(0)
    with pytest.raises(DataError, match=r"no permission to read the text \(data.txt\)"):
        find_text_file(Path())


# encodings and line ends


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
    ],
    ids=["UTF-8", "UTF-8 with mark", "UTF-16 LE", "UTF-16 BE"],
)
@pytest.mark.parametrize("block_bytes", [4, 5, 7, 1 << 20])
def test_same_text_in_any_encoding_and_line_end(
    tmp_path, monkeypatch, line_end, mark, encoding, block_bytes
):
    monkeypatch.setattr(text, "BLOCK_BYTES", block_bytes)
    content = "Once, a café\n\nsold 雪 and 😀 Ċ.\n" + END_OF_TEXT + "\n"
    stored = mark + content.replace("\n", line_end).encode(encoding)
    assert "".join(pieces_of(tmp_path, stored)) == content


# faults in the text


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("bad", [b"\xff", b"\xc3(", b"\xe2\x82", b"\xf0\x9f\x98", b"\xed\xa0\x80"])
@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8], ids=["", "with mark"])
def test_invalid_utf8_is_located_wherever_the_blocks_end(tmp_path, bad, mark):
    for length in range(20):
        before = mark + ("aé\n😀\r\nb"[:9] * 3)[:length].encode()
        line = len(re.split(b"\r\n|\r|\n", before))
        for after in (b"", b"the end"):
            message = error_of(tmp_path, before + bad + after)
            assert f"byte {len(before)}, line {line}):" in message


def test_invalid_utf8_after_the_first_megabyte_is_located(tmp_path):
    before = b"one line\n" * 130_000
    assert len(before) > 1 << 20
    message = error_of(tmp_path, before + b"caf\xe9 au lait\n" + b"more\n" * 1000)
    assert f"byte {len(before) + 3}, line 130001):" in message
    assert "set replace_invalid_utf8" in message


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("before", ["ab\ncd", "Ċ\u0a05\nĊ"], ids=["ASCII", "bytes like line ends"])
def test_invalid_utf16_is_located(tmp_path, encoding, before):
    stored = ("\ufeff" + before).encode(encoding)
    lone_surrogate = "\ud800a".encode(encoding, "surrogatepass")
    message = error_of(tmp_path, stored + lone_surrogate)
    assert f"byte {len(stored)}, line 2):" in message


@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"], ids=["LF", "CRLF", "CR"])
def test_lines_are_counted_as_editors_count_them(tmp_path, line_end):
    before = "one\ntwo\n".replace("\n", line_end).encode()
    assert f"byte {len(before)}, line 3):" in error_of(tmp_path, before + b"\xff")


BYTES = st.lists(st.sampled_from([*b"a \r\n\0\xff\xe2\x82\xac\xf0\x9f\x98\xd8"])).map(bytes)


@PROPERTY
@given(BYTES, st.sampled_from([b"", *BYTE_ORDER_MARKS]), st.integers(1, 9))
def test_file_and_prompt_are_read_as_python_reads_them(tmp_path, stored, mark, block_bytes):
    encoding = BYTE_ORDER_MARKS.get(mark, "utf-8")
    plain = stored.decode(encoding, errors="replace")
    expected = re.sub("\r\n?", "\n", plain.replace("\0", "\ufffd"))
    reader = TextReader(written(tmp_path, mark + stored), replace_invalid=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text, "BLOCK_BYTES", block_bytes)
        assert "".join(reader.pieces()) == expected
        assert decode_text(mark + stored, "prompt", replace_invalid=True) == expected
        assert reader.num_replaced == expected.count("\ufffd")
        if not reader.num_replaced:
            assert decode_text(mark + stored, "prompt") == expected
            return
        with pytest.raises(DataError) as caught:
            decode_text(mark + stored, "prompt")
    before = re.split("[\0\ufffd]", plain)[0]
    line = len(re.split("\r\n?|\n", before))
    offset = len(mark) + len(before.encode(encoding))
    assert f" (prompt, byte {offset}, line {line}):" in str(caught.value)


def test_nothing_is_counted_in_a_valid_text_that_holds_replacement_characters(tmp_path):
    reader = TextReader(written(tmp_path, "a \ufffd b"), replace_invalid=True)
    assert "".join(reader.pieces()) == "a \ufffd b"
    assert reader.num_replaced == 0


def zipped(content, path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("stories.txt", content)
    return path.read_bytes()


ARCHIVES = {
    "zip": zipped,
    "gzip": lambda content, path: gzip.compress(content),
    "bzip2": lambda content, path: bz2.compress(content),
    "xz": lambda content, path: lzma.compress(content),
}


@pytest.mark.parametrize("kind", ARCHIVES)
def test_archive_of_a_text_is_recognised(tmp_path, kind):
    stored = ARCHIVES[kind](b"Once upon a time " * 9, tmp_path / "archive")
    assert f"{kind} archive): give plain UTF-8" in error_of(tmp_path, stored)


SIGNATURES = {
    "a PNG picture": "89504e470d0a1a0a0000000d49484452",
    "a JPEG picture": "ffd8ffe000104a464946",
    "a PDF document": b"%PDF-1.7\n".hex(),
    "a Parquet table": b"PAR1\x15\x04".hex(),
    "a zstd archive": "28b52ffd0400",
    "a 7z archive": "377abcaf271c0004",
}


@pytest.mark.parametrize("kind", SIGNATURES)
def test_binary_file_is_named_after_its_signature(tmp_path, kind):
    assert f"looks like {kind})" in error_of(tmp_path, bytes.fromhex(SIGNATURES[kind]))


def test_every_known_signature_is_tested():
    tested = {*SIGNATURES, "a zip archive", "a gzip archive", "a bzip2 archive", "an xz archive"}
    assert {kind for kind in BINARY_SIGNATURES.values() if "UTF" not in kind} == tested


@pytest.mark.parametrize("place", [0, 5, text.BLOCK_BYTES, 2 * text.BLOCK_BYTES + 1])
def test_nul_is_the_same_error_wherever_it_is_and_can_be_replaced(tmp_path, place):
    stored = b"\n" * place + b"\0 end"
    message = error_of(tmp_path, stored)
    assert "NUL, as in binary data or in UTF-16 without its byte order mark" in message
    assert f"byte {place}, line {place + 1}): repair it, or set replace_invalid_utf8" in message
    reader = TextReader(written(tmp_path, stored), replace_invalid=True)
    assert "".join(reader.pieces()) == "\n" * place + "\ufffd end"
    assert reader.num_replaced == 1


@pytest.mark.parametrize("encoding", ["utf-32-le", "utf-32-be"])
def test_utf32_is_named(tmp_path, encoding):
    assert "looks like UTF-32" in error_of(tmp_path, "\ufeffOnce".encode(encoding))


# pieces


@pytest.mark.parametrize("block_bytes", [1, 2, 5, 16, 1000])
@pytest.mark.parametrize("seed", range(8))
def test_ids_of_the_pieces_join_to_the_ids_of_the_text(
    tmp_path, monkeypatch, tokenizer, block_bytes, seed
):
    monkeypatch.setattr(text, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(text, "SEARCHED_CHARS", 5 + seed * 3)
    content = "a" + random_text(seed, WORDS + SIGNS + SPACES, 80)
    pieces = pieces_of(tmp_path, content)
    assert "".join(pieces) == content
    assert len(pieces) > 1 or block_bytes == 1000
    ids = [id_ for piece in pieces for id_ in tokenizer.encode(piece, allowed_special="all")]
    assert ids == tokenizer.encode(content, allowed_special="all")


@pytest.mark.usefixtures("small_blocks")
@pytest.mark.parametrize("seed", range(20))
def test_text_without_a_good_cut_is_cut_but_never_inside_end_of_text(tmp_path, monkeypatch, seed):
    monkeypatch.setattr(text, "MAX_PIECE_CHARS", 30)
    monkeypatch.setattr(text, "SEARCHED_CHARS", 30)
    content = random_text(seed, WORDS + SIGNS, 200)
    pieces = pieces_of(tmp_path, content)
    assert "".join(pieces) == content
    assert max(map(len, pieces)) <= 30 + 7
    assert sum(piece.count(END_OF_TEXT) for piece in pieces) == content.count(END_OF_TEXT) > 0


@pytest.mark.parametrize("char", ["a", " ", "é", "😀"])
def test_endless_line_comes_in_pieces_of_bounded_size(tmp_path, char):
    longest_in_memory = text.MAX_PIECE_CHARS + text.BLOCK_BYTES
    content = char * (2 * longest_in_memory + 1)
    pieces = pieces_of(tmp_path, content)
    assert "".join(pieces) == content
    assert max(map(len, pieces)) <= longest_in_memory
