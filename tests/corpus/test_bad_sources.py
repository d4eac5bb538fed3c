"""What cannot be read is one line with the file and the place; on request it is skipped."""

import gzip
import io
import json
import os
import random
import tracemalloc
from pathlib import Path

import pytest
import zstandard
from forms import FORMS, PACKERS, documents_of, parquet_table, table, zipped

from corpus import archives, forms
from corpus.sources import open_sources
from system.errors import DataError

GOOD = {"text": "good"}
PNG = bytes.fromhex("89504e470d0a1a0a0000000d49484452")


def error_of(data, **options):
    """The line that a user sees."""
    with pytest.raises(DataError) as caught:
        list(open_sources(data, **options).pieces())
    assert caught.value.exit_code == 3
    message = str(caught.value)
    assert "\n" not in message
    assert ": " in message
    return message


def texts_skipping(data, **options):
    """The texts that are left, and the faults."""
    sources = open_sources(data, errors="skip", **options)
    return documents_of(sources), sources.found["skipped"], sources.found["faults"]


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# records

BAD_LINES = {
    '{"id": 1}': "no field 'text' (PLACE, line 2 has 'id'): set data_field",
    '{"text": null}': "'text' is no text (PLACE, line 2: NoneType)",
    '{"text": 3}': "'text' is no text (PLACE, line 2: int)",
    "7": "neither a text nor an object (PLACE, line 2: int)",
    '{"text": "a': "no JSON: Unterminated string",
    "[" * 100_000: "no JSON: nested too deeply",
    '{"text": ' + "1" * 5000 + "}": "no JSON: Exceeds the limit",
    r'{"text": "a\ud83d"}': "half a surrogate pair (PLACE, line 2)",
    r'{"text": "a\u0000"}': "NUL, as in binary data",
}


@pytest.mark.parametrize("line", BAD_LINES, ids=lambda line: line[:20])
def test_a_bad_record_is_named_by_its_line_or_skipped(tmp_path, line):
    good = json.dumps(GOOD)
    path = write(tmp_path / "a.jsonl", f"{good}\n{line}\n\n{good}\n")
    assert BAD_LINES[line].replace("PLACE", str(path)) in error_of(path)
    texts, num_skipped, faults = texts_skipping(path)
    assert (texts, num_skipped) == (["good", "good"], 1)
    assert "line 2" in faults[0]


def test_invalid_bytes_and_half_pairs_in_records_are_replaced_on_request(tmp_path):
    path = write(tmp_path / "a.jsonl", b'{"text": "caf\xe9"}\n{"text": "a\\ud83d"}\n')
    assert f"({path}, line 1): repair it, or set replace_invalid_utf8" in error_of(path)
    sources = open_sources(path, replace_invalid=True)
    assert documents_of(sources) == ["caf\ufffd", "a\ufffd"]
    assert sources.found["replaced"] == 2


def test_a_table_without_the_column_or_with_broken_rows(tmp_path):
    path = write(tmp_path / "a.csv", table(["x"]))
    assert f"no column 'body' ({path} has 'id', 'text'): set data_field" in error_of(
        path, field="body"
    )
    path = write(tmp_path / "b.csv", "id,text\n1,good\n2\n3,good\n")
    assert f"only 1 columns ({path}, line 3)" in error_of(path)
    assert texts_skipping(path)[:2] == (["good", "good"], 1)
    path = write(tmp_path / "c.csv", 'id,text\n1,good\n2,"never closed\n')
    assert f"no whole CSV ({path}, line 3: unexpected end of data)" in error_of(path)
    path = write(tmp_path / "d.parquet", parquet_table(["x"]))
    assert f"no column 'body' ({path} has 'id', 'text'): set data_field" in error_of(
        path, field="body"
    )
    assert "no column 'text'" in error_of(write(tmp_path / "e.csv", ""))


@pytest.mark.parametrize("content", ['["a", "b"', '["a" "b"]', '["a", ]', '["a"] x', "7", ""])
def test_a_json_list_that_is_cut_or_is_none(tmp_path, content):
    assert "no whole JSON list (" in error_of(write(tmp_path / "a.json", content))


def test_a_record_without_end_is_an_error_and_not_all_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(forms, "MAX_RECORD_CHARS", 1 << 20)
    for name, start in (("a.jsonl", '{"text": "'), ("a.csv", 'text\n"'), ("a.json", '["')):
        path = write(tmp_path / name, start + "x" * (3 << 20))
        assert f"a record of more than 1,048,576 characters ({path}" in error_of(path)


# archives

CONTENT = {name: FORMS[name]([f"document {n} of many" * 20 for n in range(300)]) for name in FORMS}


def packed_forms():
    for suffix, pack in PACKERS.items():
        for name in ("a.txt", "a.jsonl", "a.parquet"):
            yield pytest.param(name + suffix, pack(CONTENT[name]), id=name + suffix)
    yield pytest.param("a.zip", zipped({"a.txt": CONTENT["a.txt"]}), id="a.zip")
    yield pytest.param("a.parquet", CONTENT["a.parquet"], id="a.parquet")


PACKED = list(packed_forms())


@pytest.mark.parametrize(("name", "content"), PACKED)
def test_a_cut_archive_is_an_error_wherever_it_was_cut(tmp_path, name, content):
    path = tmp_path / name
    for size in {len(content) * n // 8 for n in range(1, 8)} | {len(content) - 1, len(content) - 9}:
        assert str(path) in error_of(write(path, content[:size]))


@pytest.mark.parametrize(("name", "content"), PACKED)
def test_a_damaged_archive_is_an_error_or_read_right(tmp_path, name, content):
    whole = documents_of(open_sources(write(tmp_path / name, content)))
    for place in range(11, len(content), max(1, len(content) // 23)):
        damaged = bytearray(content)
        damaged[place] ^= 0x55
        path = write(tmp_path / name, bytes(damaged))
        fault = fault_of(path)
        if fault is not None:
            assert str(path) in fault
        elif not name.endswith(("zst", "parquet")):  # which need have no checksum
            assert documents_of(open_sources(path)) == whole


def fault_of(path):
    """What is wrong with a file, None if nothing is."""
    try:
        for _ in open_sources(path).pieces():
            pass
    except DataError as error:
        return str(error)
    return None


def test_a_table_in_an_archive_is_unpacked_where_the_tokens_are_made(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "nowhere"))
    for name in ("a.parquet", "a.parquet.gz"):
        content = CONTENT["a.parquet"]
        path = write(tmp_path / name, gzip.compress(content) if name.endswith("gz") else content)
        assert list(open_sources(path).pieces(scratch=tmp_path))


def test_repetitive_zstd_data_is_unpacked_in_small_blocks():
    packed = io.BytesIO(zstandard.compress(bytes(50_000_000)))
    assert max(map(len, archives.zstd_blocks(packed))) <= 1 << 23


def test_frames_and_members_that_follow_each_other_are_read_to_the_end(tmp_path):
    for suffix, pack in PACKERS.items():
        path = write(tmp_path / f"a.txt{suffix}", pack(b"one ") + pack(b"") + pack(b"two"))
        assert documents_of(open_sources(path)) == ["one two"]


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_bomb_is_an_error_before_it_is_unpacked_whole(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(archives, "BOMB_BYTES", 1_000_000)
    path = write(tmp_path / f"a{suffix}", PACKERS[suffix](b" " * 50_000_000))
    assert f"unpacks to more than 200 times its size and 0.001 GB ({path})" in error_of(path)
    path = write(tmp_path / "b.zip", zipped({"a.txt": b" " * 5_000_000}))
    assert f"unpacks to more than 200 times its size and 0.001 GB ({path})" in error_of(path)


def test_a_zip_archive_that_cannot_be_trusted_or_read(tmp_path):
    for name in ("../a.txt", "/a.txt", "in/../../a.txt"):
        path = write(tmp_path / "a.zip", zipped({name: b"x", "good.txt": b"good"}))
        assert f"leads out of the archive ({path}/" in error_of(path)
        assert texts_skipping(path)[:2] == (["good"], 1)
    path = write(tmp_path / "b.zip", zipped({"in.zip": zipped({"a.txt": b"x"})}))
    assert f"not a text ({path}/in.zip looks like a zip archive): unpack it first" in error_of(path)
    encrypted = bytearray(zipped({"a.txt": b"x"}))
    encrypted[6] |= 1
    encrypted[encrypted.index(b"PK\x01\x02") + 8] |= 1
    path = write(tmp_path / "c.zip", bytes(encrypted))
    assert f"encrypted ({path}/a.txt): unpack it with its password" in error_of(path)
    assert "no text in " in error_of(write(tmp_path / "d.zip", zipped({})))


# places


def test_a_folder_says_what_it_passed_over(tmp_path):
    write(tmp_path / "a.txt", "good")
    write(tmp_path / "b.png", PNG)
    write(tmp_path / "c.bin", b"\x01\0\x02")
    write(tmp_path / ".hidden.txt", "bad \xff")
    write(tmp_path / ".git" / "config", "bad")
    os.mkfifo(tmp_path / "pipe")
    sources = open_sources(tmp_path)
    assert documents_of(sources) == ["good"]
    assert (sources.found["hidden"], sources.found["no_text"], sources.found["files"]) == (2, 3, 1)


def test_a_folder_without_text(tmp_path):
    assert f"no text in {tmp_path} (0 files" in error_of(tmp_path)
    write(tmp_path / "b.png", PNG)
    assert "(1 files, of which 1 pictures and the like; 0 hidden)" in error_of(tmp_path)
    assert "looks like a PNG picture" in error_of(tmp_path / "b.png")


def test_mixed_encodings_in_a_folder_are_named(tmp_path):
    write(tmp_path / "a.txt", "good")
    path = write(tmp_path / "b.txt", b"caf\xe9")
    write(tmp_path / "c.txt", "é".encode("utf-16"))
    assert f"invalid utf-8 ({path}, byte 3, line 1)" in error_of(tmp_path)
    texts, num_skipped, faults = texts_skipping(tmp_path)
    assert (texts, num_skipped) == (["good", "é"], 1)
    assert str(path) in faults[0]


def test_links(tmp_path):
    write(tmp_path / "a" / "a.txt", "good")
    (tmp_path / "a" / "b").symlink_to(tmp_path / "a")
    assert f"a link to a folder above it ({tmp_path}/a/b)" in error_of(tmp_path)
    assert texts_skipping(tmp_path)[:2] == (["good"], 1)
    (tmp_path / "a" / "b").unlink()
    (tmp_path / "a" / "c.txt").symlink_to("c.txt")
    assert f"a link to nowhere ({tmp_path}/a/c.txt)" in error_of(tmp_path)
    (tmp_path / "a" / "c.txt").unlink()
    (tmp_path / "d").symlink_to("a")
    assert texts_skipping(tmp_path)[:2] == (["good", "good"], 0)


@pytest.mark.usefixtures("as_nobody")
@pytest.mark.parametrize("is_folder", [False, True])
def test_what_may_not_be_read(is_folder):
    write(Path("a/a.txt"), "good")
    write(Path("a/b/b.txt"), "secret")
    (Path("a/b") if is_folder else Path("a/b/b.txt")).chmod(0)
    try:
        assert "no permission to read" in error_of("a")
        assert texts_skipping("a")[:2] == (["good"], 1)
        for name in ("a/b", "a/b/b.txt", "a/b/c"):  # not by way of the folder above
            with pytest.raises(DataError, match=r"permission|missing"):
                open_sources(name)
    finally:
        Path("a/b").chmod(0o755)


def test_a_glob_that_matches_nothing(tmp_path):
    assert f"no file matches ({tmp_path}/*.txt)" in error_of(f"{tmp_path}/*.txt")
    (tmp_path / "folder.txt").mkdir()
    assert "no file matches" in error_of(f"{tmp_path}/*.txt")


def test_a_file_that_has_the_pattern_as_its_name_is_taken(tmp_path):
    path = write(tmp_path / "a[1].txt", "good")
    assert documents_of(open_sources(str(path))) == ["good"]


@pytest.mark.parametrize("suffix", ["", *PACKERS])
def test_invalid_text_is_located_in_every_archive(tmp_path, suffix):
    content = b"good\n" * 100_000 + b"caf\xe9"
    packed = PACKERS[suffix](content) if suffix else content
    path = write(tmp_path / f"a.txt{suffix}", packed)
    assert f"invalid utf-8 ({path}, byte 500003, line 100001)" in error_of(path)


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_memory_does_not_grow_with_a_line(tmp_path, suffix):
    content = random.Random(0).randbytes(12_000_000).hex().encode()  # as dense as text is, packed
    path = write(tmp_path / f"a.txt{suffix}", PACKERS[suffix](content) if suffix else content)
    tracemalloc.start()
    try:
        num_chars = sum(len(piece.text) for piece in open_sources(path).pieces())
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert num_chars == len(content)
    assert peak_bytes < len(content) / 2
