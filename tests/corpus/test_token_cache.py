"""The token cache is right or rebuilt, never stale, says the same each time, and stays small."""

import errno
import hashlib
import os
import shutil
import tracemalloc
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from corpus import text, token_cache
from corpus.text import TextReader
from corpus.token_cache import NUM_KEPT, load_tokens, write_ids
from system.errors import DataError
from system.files import part_path_of
from tokenizer import END_OF_TEXT

STORIES = f"Tom saw a dog. \U0001f600\n{END_OF_TEXT}\nLily ran home.\n" * 7


@pytest.fixture
def load(tmp_path, monkeypatch, tokenizer):
    """Loads a text's tokens from data.txt in the working folder with the cache beside it."""
    monkeypatch.chdir(tmp_path)

    def load_content(content=STORIES, *, parents=(Path(),), tokenizer=tokenizer, **options):
        path = Path("data.txt")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_tokens(path, tokenizer, cache_parents=parents, **options)

    return load_content


def cache_files(folder=Path()):
    return sorted((folder / ".tokens").glob("*.bin"))


# what is in it


def test_tokens_are_the_ids_of_the_text_and_outlive_it_but_cannot_be_written(load, tokenizer):
    tokens = load()
    Path("data.txt").write_text("")
    assert tokens.ids.dtype == np.uint16
    assert tokens.ids.tolist() == tokenizer.encode(STORIES, allowed_special={END_OF_TEXT})
    assert tokens.text_sha256 == hashlib.sha256(STORIES.encode()).hexdigest()
    with pytest.raises(ValueError, match="read-only"):
        tokens.ids[0] = 0


@pytest.mark.parametrize("char", ["a", "\U0001f600", " ", "\n", "-", "é"], ids=ascii)
def test_strange_text_is_tokenized_without_loss(load, tokenizer, monkeypatch, char):
    monkeypatch.setattr(text, "MAX_PIECE_CHARS", 1 << 16)
    content = "Once.\n" * 20_000 + char * 200_000 + "a"
    assert tokenizer.decode(load(content).ids) == content


def test_half_pairs_from_any_reader_are_read_as_the_tokenizer_reads_them(
    load, monkeypatch, tokenizer
):
    content = "a\ud83d b\ude00"
    monkeypatch.setattr(TextReader, "pieces", lambda reader: [content])
    assert load().ids.tolist() == tokenizer.encode(content)


@pytest.mark.parametrize("content", ["", " ", "\n\n \t\n", "\ufeff", "\ufeff\r\n", "\u3000" * 99])
def test_blank_text_is_an_error_and_leaves_no_cache(load, content):
    with pytest.raises(DataError, match=r"empty or blank \(data\.txt\)"):
        load(content)
    assert cache_files() == []


# which one is read


def test_cache_is_built_once_and_then_says_the_same_without_tokenizing(load):
    content = b"caf\xe9 and \xff\xfe twice\0"
    first = load(content, replace_invalid=True)
    (path,) = cache_files()
    inode = path.stat().st_ino
    second = load(content, replace_invalid=True, tokenizer=None)
    assert np.array_equal(first.ids, second.ids)
    assert first.text_sha256 == second.text_sha256
    assert first.num_replaced == second.num_replaced == 4
    assert path.stat().st_ino == inode
    with pytest.raises(DataError, match="byte 3, line 1"):
        load(content)


def test_cache_belongs_to_the_content_and_not_to_the_name_or_the_time(load, tmp_path):
    load()
    renamed = Path("data.txt").rename("example.txt")
    os.utime(renamed, (1, 1))
    assert len(load_tokens(renamed, None, cache_parents=[tmp_path]).ids) > 0
    changed = STORIES.replace("dog", "cat")  # of the same length
    assert load(changed).text_sha256 == hashlib.sha256(changed.encode()).hexdigest()
    assert len(cache_files()) == 2


@pytest.mark.parametrize(("name", "value"), [("TABLE_SHA256", "0" * 64), ("CACHE_VERSION", 0)])
def test_cache_of_another_tokenizer_or_format_is_not_read(load, monkeypatch, name, value):
    with monkeypatch.context() as patch:
        patch.setattr(token_cache, name, value)
        load()
    load()
    assert len(cache_files()) == 2


DAMAGES = {
    "empty": lambda stored: b"",
    "only a digest": lambda stored: stored[-32:],
    "a byte short": lambda stored: stored[:-1],
    "an id short": lambda stored: stored[:-2],
    "bit flipped in an id": lambda stored: bytes([stored[0] ^ 1]) + stored[1:],
    "bit flipped in the digest": lambda stored: stored[:-1] + bytes([stored[-1] ^ 128]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_cache_is_built_again(load, damage):
    expected = load().ids.tolist()
    (path,) = cache_files()
    good = path.read_bytes()
    path.unlink()  # the mapping above keeps the old file
    path.write_bytes(damage(good))
    assert load().ids.tolist() == expected
    assert path.read_bytes() == good


# how many stay


def test_part_left_by_a_killed_process_is_swept_when_the_cache_is_built(load):
    Path(".tokens").mkdir()
    ours = part_path_of(Path(".tokens/old.bin"))
    dead_process_id = 2**31 - 1  # more than any system gives out
    part = ours.with_name(ours.name.replace(f".{os.getpid()}.", f".{dead_process_id}."))
    part.touch()
    load()
    assert not part.exists()


def test_only_the_caches_used_last_stay_and_a_removal_is_said(load, capfd):
    contents, paths = [f"{STORIES} {number}" for number in range(NUM_KEPT)], []
    for age, content in enumerate(contents):
        load(content)
        paths += set(cache_files()) - set(paths)
        os.utime(paths[-1], (age, age))
    load(contents[0], tokenizer=None)  # used again, so that it is the newest
    assert capfd.readouterr().err == ""
    load("A new text.")
    assert paths[1] not in cache_files()
    assert {paths[0], *paths[2:]} < set(cache_files())
    assert len(cache_files()) == NUM_KEPT
    assert capfd.readouterr().err.count(f"removed the tokens of an earlier text ({paths[1]}, ") == 1


def test_what_is_not_surely_a_cache_of_ours_is_never_removed(load):
    load()
    (path,) = cache_files()
    foreign = [path.with_name("0" * 32 + ".bin"), path.with_name("backup.bin")]
    foreign[0].write_bytes(b"somebody's bytes, under a name like ours")
    shutil.copy(path, foreign[1])
    for other in foreign:
        os.utime(other, (1, 1))
    for number in range(NUM_KEPT):
        load(f"Another text {number}.")
    assert set(foreign) < set(cache_files())
    assert len(cache_files()) == NUM_KEPT + len(foreign)


# where it lies


def test_read_only_folder_is_passed_over_for_the_next_or_named(load, as_nobody):
    first, second = Path("first"), Path("second")
    first.mkdir(mode=0o555)
    second.mkdir()
    load(parents=[first, second])
    assert len(cache_files(second)) == 1
    (second / ".tokens").chmod(0o555)
    load(parents=[first, second], tokenizer=None)  # it reads what it cannot write
    with pytest.raises(PermissionError, match="first"):
        load(parents=[first])


def test_full_disk_is_an_error_and_leaves_nothing(load, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        load(parents=[tmp_path, tmp_path])
    assert [path.name for path in (tmp_path / ".tokens").iterdir()] == ["lock"]


# others at work


def test_of_two_that_need_a_cache_one_builds_it_and_both_read_it(load, monkeypatch, tokenizer):
    built, loaded = [], []
    arguments = {"tokenizer": tokenizer, "cache_parents": [Path()]}
    second = Thread(target=lambda: loaded.append(load_tokens(Path("data.txt"), **arguments)))

    def write_while_another_needs_it(file, reader, *others):
        built.append(reader.path)
        if not second.is_alive():
            second.start()
            second.join(timeout=0.3)  # enough to build a second one, were it not locked out
        write_ids(file, reader, *others)

    monkeypatch.setattr(token_cache, "write_ids", write_while_another_needs_it)
    first = load()
    second.join()
    assert built == [Path("data.txt")]
    assert np.array_equal(loaded[0].ids, first.ids)


def test_memory_does_not_grow_with_the_text(load, monkeypatch):
    monkeypatch.setattr(text, "BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr(token_cache, "BLOCK_BYTES", 1 << 14)

    def peak(num_stories):
        content = (STORIES * num_stories).encode()
        tracemalloc.start()
        load(content)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    load()  # what is allocated once
    assert peak(2000) < peak(500) + 100_000  # the texts differ by 0.5 MB


def test_text_that_changes_while_it_is_read_is_an_error_and_leaves_no_cache(load, monkeypatch):
    def read_and_change(reader, pieces=TextReader.pieces):
        yield from pieces(reader)
        reader.path.write_text("another text")

    monkeypatch.setattr(TextReader, "pieces", read_and_change)
    with pytest.raises(DataError, match=r"changed while it was read \(data\.txt\)"):
        load()
    assert cache_files() == []
