"""The token cache is right or rebuilt, never stale, says the same each time, and stays small."""

import errno
import hashlib
import os
import shutil
from contextlib import nullcontext
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest

from corpus import pieces, token_build, token_cache
from corpus.sources import Sources, open_sources
from corpus.token_cache import NUM_KEPT, load_tokens
from system.errors import DataError, OutputError
from system.files import part_path_of
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID

STORIES = f"Tom saw a dog. \U0001f600\n{END_OF_TEXT}\nLily ran home.\n" * 7


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads a text's tokens from data.txt in the working folder with the cache beside it."""
    monkeypatch.chdir(tmp_path)

    def load_content(content=STORIES, *, parents=(Path(),), **options):
        path = Path("data.txt")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_tokens(open_sources(path, **options), cache_parents=parents)

    return load_content


@pytest.fixture
def only_read(monkeypatch):
    """From the call of it on, a test fails if it builds a cache."""

    def fail(*arguments):
        raise AssertionError("built")

    return lambda: monkeypatch.setattr(token_cache, "build", fail)


def cache_folders(folder=Path()):
    return sorted(path for path in (folder / ".tokens").iterdir() if len(path.name) == 32)


# what is in it


def test_tokens_are_the_ids_of_the_text_and_outlive_it_but_cannot_be_written(load, tokenizer):
    tokens = load()
    Path("data.txt").write_text("")
    ids = tokenizer.encode(STORIES, allowed_special={END_OF_TEXT})
    assert tokens.ids.dtype == np.uint16
    assert tokens.ids.tolist() == ids
    assert tokens.text_sha256 == hashlib.sha256(STORIES.encode()).hexdigest()
    with pytest.raises(ValueError, match="read-only"):
        tokens.ids[0] = 0


def test_what_readers_look_up_is_that_of_the_tokens(load):
    tokens = load()
    ids = tokens.ids.tolist()
    ends = [place + 1 for place, id_ in enumerate(ids) if id_ == END_OF_TEXT_ID]
    assert tokens.document_ends.tolist() == ends
    for stop in (0, 1, 7, 20, len(ids)):
        assert tokens.used_before(stop).tolist() == sorted(set(ids[:stop]))
    assert tokens.found["documents"] == 8


@pytest.mark.parametrize("char", ["a", "\U0001f600", " ", "\n", "-", "é"], ids=ascii)
def test_strange_text_is_tokenized_without_loss(load, tokenizer, monkeypatch, char):
    monkeypatch.setattr(pieces, "MAX_PIECE_CHARS", 1 << 16)
    content = "Once.\n" * 20_000 + char * 200_000 + "a"
    assert tokenizer.decode(load(content).ids) == content


@pytest.mark.parametrize("content", ["", " ", "\n\n \t\n", "\ufeff", "\ufeff\r\n", "\u3000" * 99])
def test_blank_text_is_an_error_and_leaves_no_cache(load, content):
    with pytest.raises(DataError, match=r"empty or blank \(data\.txt\)"):
        load(content)
    assert [path.name for path in Path(".tokens").iterdir()] == ["lock"]


# which one is read


def test_cache_is_built_once_and_then_says_the_same_without_tokenizing(load, only_read):
    content = b"caf\xe9 and \xff\xfe twice\0"
    first = load(content, replace_invalid=True)
    with pytest.raises(DataError, match="byte 3, line 1"):
        load(content)
    only_read()
    second = load(content, replace_invalid=True)
    assert np.array_equal(first.ids, second.ids)
    assert first.text_sha256 == second.text_sha256
    assert first.found == second.found
    assert second.found["replaced"] == 4


def test_cache_belongs_to_the_content_and_not_to_the_name_or_the_time(load, tmp_path, only_read):
    load()
    changed = STORIES.replace("dog", "cat")  # of the same length
    assert load(changed).text_sha256 == hashlib.sha256(changed.encode()).hexdigest()
    assert len(cache_folders()) == 2
    only_read()
    renamed = Path("data.txt").rename("example.txt")
    os.utime(renamed, (1, 1))
    assert len(load_tokens(open_sources(renamed), cache_parents=[tmp_path]).ids) > 0


@pytest.mark.parametrize(("name", "value"), [("TABLE_SHA256", "0" * 64), ("VERSION", 0)])
def test_cache_of_another_tokenizer_or_format_is_not_read(load, monkeypatch, name, value):
    with monkeypatch.context() as patch:
        patch.setattr(token_cache, name, value)
        load()
    load()
    assert len(cache_folders()) == 2


def test_the_same_bytes_under_a_name_of_another_form_are_another_text(load, tokenizer):
    line = '{"text": "Once"}'
    assert tokenizer.decode(load(line).ids) == line
    Path("data.txt").rename("data.jsonl")
    tokens = load_tokens(open_sources("data.jsonl"), cache_parents=[Path()])
    assert tokenizer.decode(tokens.ids) == "Once"


DAMAGES = {
    "gone": None,
    "empty": lambda stored: b"",
    "a byte short": lambda stored: stored[:-1],
    "two bytes short": lambda stored: stored[:-2],
    "a bit flipped": lambda stored: bytes([stored[0] ^ 1]) + stored[1:],
    "its last bit flipped": lambda stored: stored[:-1] + bytes([stored[-1] ^ 128]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["00000.ids", "00000.ends", "first_seen.bin", "manifest.json"])
def test_damaged_cache_is_built_again(load, name, damage):
    expected = load().ids.tolist()
    path = cache_folders()[0] / name
    good = path.read_bytes()
    path.unlink()  # the mapping above keeps the old file
    if damage:
        path.write_bytes(damage(good))
    assert load().ids.tolist() == expected
    assert path.read_bytes() == good


def test_a_start_on_a_finished_cache_reads_neither_text_nor_tokens(load, monkeypatch, only_read):
    load()
    os.utime("data.txt", (1, 1))
    monkeypatch.setattr("corpus.known_files.FRESH_NS", -(10**18))
    sources = open_sources("data.txt")
    first = load_tokens(sources, cache_parents=[Path()])

    def fail(path):
        raise AssertionError(f"{path} is read whole")

    monkeypatch.setattr("corpus.known_files.file_sha256", fail)
    only_read()
    again = load_tokens(open_sources("data.txt"), cache_parents=[Path()])
    assert np.array_equal(again.ids, first.ids)


# how many stay


def test_part_left_by_a_killed_process_is_swept_when_the_cache_is_built(load):
    Path(".tokens").mkdir()
    ours = part_path_of(Path(".tokens/old"))
    dead_process_id = 2**31 - 1  # more than any system gives out
    part = ours.with_name(ours.name.replace(f".{os.getpid()}.", f".{dead_process_id}."))
    part.mkdir()
    load()
    assert not part.exists()


def test_only_the_caches_used_last_stay_and_a_removal_is_said(load, capfd):
    contents, paths = [f"{STORIES} {number}" for number in range(NUM_KEPT)], []
    for age, content in enumerate(contents):
        load(content)
        paths += set(cache_folders()) - set(paths)
        os.utime(paths[-1] / "manifest.json", (age, age))
    load(contents[0])  # used again, so that it is the newest
    assert capfd.readouterr().err == ""
    load("A new text.")
    assert paths[1] not in cache_folders()
    assert {paths[0], *paths[2:]} < set(cache_folders())
    assert len(cache_folders()) == NUM_KEPT
    assert capfd.readouterr().err.count(f"removed the tokens of an earlier text ({paths[1]}, ") == 1


def old_cache(path):
    """A cache of an earlier version: ids and a count with their digest."""
    content = bytes(range(28))
    path.write_bytes(content + hashlib.sha256(content).digest())


def unfinished_cache(path):
    path.mkdir()
    (path / "00000.ids").write_bytes(bytes(28))
    (path / "progress.json").write_text("[64, 14]")


@pytest.mark.parametrize(
    ("ending", "make"),
    [(".bin", old_cache), (".building", unfinished_cache)],
    ids=["earlier version", "killed process"],
)
def test_what_earlier_versions_and_killed_processes_left_goes_with_the_old_ones(load, ending, make):
    load()
    path = Path(".tokens", "0" * 32 + ending)
    make(path)
    os.utime(path, (1, 1))
    for number in range(NUM_KEPT - 1):
        assert path.exists()
        load(f"Another text {number}.")
    assert not path.exists()


def test_what_is_not_surely_a_cache_of_ours_is_never_removed(load):
    load()
    (cache,) = cache_folders()
    names = ["0" * 32 + ".bin", "backup", "1" * 32, "2" * 32 + ".building", "3" * 32]
    foreign = [Path(".tokens", name) for name in names]
    foreign[0].write_bytes(b"somebody's bytes, under a name like ours")
    shutil.copytree(cache, foreign[1])
    for folder in foreign[2:]:
        shutil.copytree(cache, folder)
        (folder / "notes.txt").touch()
    (foreign[4] / "manifest.json").write_text("{}")
    for path in foreign:
        os.utime(path, (1, 1))
        if (path / "manifest.json").exists():
            os.utime(path / "manifest.json", (1, 1))
    for number in range(NUM_KEPT):
        load(f"Another text {number}.")
    assert all(path.exists() for path in foreign)
    assert not cache.exists()


# where it lies


@pytest.mark.usefixtures("as_nobody")
def test_read_only_folder_is_passed_over_for_the_next_or_named(load, only_read):
    first, second = Path("first"), Path("second")
    first.mkdir(mode=0o555)
    second.mkdir()
    load(parents=[first, second])
    assert len(cache_folders(second)) == 1
    with pytest.raises(PermissionError, match="first"):
        load(parents=[first])
    (second / ".tokens").chmod(0o555)
    only_read()
    load(parents=[first, second])  # it reads what it cannot write


def test_full_disk_is_an_error_and_leaves_nothing(load, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        load(parents=[tmp_path, tmp_path])
    assert [path.name for path in (tmp_path / ".tokens").iterdir()] == ["lock"]


def test_a_disk_that_is_too_small_is_known_before_the_start(load, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(100, 90, 10))
    monkeypatch.setattr(Sources, "pieces", None)  # it is not read
    with pytest.raises(OutputError, match=r"too small for the tokens .*, 0 MB are free\)"):
        load()
    assert [path.name for path in Path(".tokens").iterdir()] == ["lock"]


# others at work


def test_of_two_that_need_a_cache_one_builds_it_and_the_other_says_that_it_waits(load, monkeypatch):
    built, loaded, said = [], [], []
    is_waiting = Event()
    build = token_build.build
    second = Thread(
        target=lambda: loaded.append(load_tokens(open_sources("data.txt"), cache_parents=[Path()]))
    )

    def build_while_another_needs_it(folder, *arguments):
        built.append(folder)
        second.start()
        assert is_waiting.wait(timeout=60)
        build(folder, *arguments)

    def hear(line):
        said.append(line)
        is_waiting.set()

    monkeypatch.setattr(token_cache, "build", build_while_another_needs_it)
    monkeypatch.setattr(token_cache, "note", hear)
    first = load()
    second.join()
    assert len(built) == 1
    assert said == ["another process makes tokens (.tokens): waiting for it"]
    assert np.array_equal(loaded[0].ids, first.ids)


def test_a_disk_without_locks_gives_each_process_a_folder_of_its_own(load, monkeypatch):
    monkeypatch.setattr(token_cache, "exclusive", lambda *place, **how: nullcontext(False))
    places = []
    build = token_build.build
    monkeypatch.setattr(
        token_cache, "build", lambda folder, *rest: (places.append(folder), build(folder, *rest))
    )
    load()
    assert str(os.getpid()) in places[0].name
    assert len(cache_folders()) == 1


def test_text_that_changes_while_it_is_read_is_an_error_and_leaves_no_cache(load, monkeypatch):
    def read_and_change(sources, pieces=Sources.pieces, **options):
        yield from pieces(sources, **options)
        sources.paths[0].write_text("another text")

    monkeypatch.setattr(Sources, "pieces", read_and_change)
    with pytest.raises(DataError, match=r"changed while it was read \(data\.txt\)"):
        load()
    assert cache_folders() == []
