"""The token cache is right or rebuilt, never stale; windows are those of the book."""

import errno
import hashlib
import inspect
import os
import subprocess
import sys
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import data
from corpus.token_cache import load_tokens
from data import GPTDatasetV1, create_dataloader_v1
from system.errors import DataError
from system.files import part_path_of
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID

STORIES = f"Tom saw a dog. \U0001f600\n{END_OF_TEXT}\nLily ran home.\n" * 7
BUILD_WHEN_TOLD = """
import sys, time
from pathlib import Path
from data import load_tokens
from text import TextReader
from tokenizer import GPT2Tokenizer
read = TextReader.pieces
TextReader.pieces = lambda reader: print("tokenizes", flush=True) or read(reader)
tokenizer = GPT2Tokenizer()
print("ready", flush=True)
sys.stdin.readline()
print(len(load_tokens(Path("data.txt"), tokenizer, cache_parents=[Path()]).ids))
"""


@pytest.fixture
def load(tmp_path, monkeypatch, tokenizer):
    """Loads a text's tokens from data.txt in the working folder with the cache beside it."""
    monkeypatch.chdir(tmp_path)

    def load_content(content=STORIES, *, parents=(Path(),), tokenizer=tokenizer, **options):
        path = Path("data.txt")
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return load_tokens(path, tokenizer, cache_parents=parents, **options)

    return load_content


@pytest.fixture
def as_nobody(tmp_path, load):
    """Runs the test without the rights of root, whom no permission stops."""
    if os.geteuid() != 0:
        yield
        return
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents[:2]:  # a lock goes by the whole path
        parent.chmod(0o711)
    os.setresuid(65534, 65534, 0)
    yield
    os.setresuid(0, 0, 0)


def cache_files(folder):
    return sorted((folder / ".tokens").glob("*.bin"))


# the token cache


def test_tokens_are_the_ids_of_the_text_and_cannot_be_written(load, tokenizer):
    tokens = load()
    assert tokens.ids.dtype == np.uint16
    assert tokens.ids.tolist() == tokenizer.encode(STORIES, allowed_special={END_OF_TEXT})
    assert tokens.text_sha256 == hashlib.sha256(STORIES.encode()).hexdigest()
    with pytest.raises(ValueError, match="read-only"):
        tokens.ids[0] = 0


@pytest.mark.parametrize(
    "content",
    ["a" * 1_000_000, "\U0001f600" * 300_000, " " * 1_100_000 + "a", "\n" * 1_100_000 + "a", "a\0"],
    ids=["one line", "only emoji", "spaces", "line ends", "NUL"],
)
def test_strange_text_is_tokenized_without_loss(load, tokenizer, content):
    content = "Once.\n" * 200_000 + content  # far from the start, where a file's kind shows
    assert tokenizer.decode(load(content).ids) == content


def test_cache_is_built_once_and_then_read_without_tokenizing(load, tmp_path):
    first = load()
    (path,) = cache_files(tmp_path)
    before = path.stat()
    second = load(tokenizer=None)
    assert np.array_equal(first.ids, second.ids)
    assert first.text_sha256 == second.text_sha256
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


def test_cache_belongs_to_the_content_and_not_to_the_name_or_the_time(load, tmp_path):
    load()
    renamed = (tmp_path / "data.txt").rename(tmp_path / "example.txt")
    os.utime(renamed, (1, 1))
    assert len(load_tokens(renamed, None, cache_parents=[tmp_path]).ids) > 0
    changed = STORIES.replace("dog", "cat")  # of the same length
    assert load(changed).text_sha256 == hashlib.sha256(changed.encode()).hexdigest()
    assert len(cache_files(tmp_path)) == 2


@pytest.mark.parametrize(("name", "value"), [("TABLE_SHA256", "0" * 64), ("CACHE_VERSION", 0)])
def test_cache_of_another_tokenizer_or_format_is_not_read(load, tmp_path, monkeypatch, name, value):
    with monkeypatch.context() as patch:
        patch.setattr(data, name, value)
        load()
    load()
    assert len(cache_files(tmp_path)) == 2


def test_replaced_text_has_a_cache_of_its_own_and_a_count(load):
    content = b"caf\xe9 and \xff\xfe twice"
    assert load(content, replace_invalid=True).num_replaced == 3
    with pytest.raises(DataError, match="byte 3, line 1"):
        load(content)


DAMAGES = {
    "empty": lambda stored: b"",
    "only a digest": lambda stored: stored[-32:],
    "a byte short": lambda stored: stored[:-1],
    "an id short": lambda stored: stored[:-2],
    "bit flipped in an id": lambda stored: bytes([stored[0] ^ 1]) + stored[1:],
    "bit flipped in the digest": lambda stored: stored[:-1] + bytes([stored[-1] ^ 128]),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_cache_is_built_again(load, tmp_path, damage):
    expected = load().ids.tolist()
    (path,) = cache_files(tmp_path)
    good = path.read_bytes()
    path.unlink()  # the mapping above keeps the old file
    path.write_bytes(damage(good))
    assert load().ids.tolist() == expected
    assert path.read_bytes() == good


def test_part_left_by_a_killed_process_is_swept_when_the_cache_is_built(load, tmp_path):
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / ".tokens").mkdir()
    ours = part_path_of(tmp_path / ".tokens" / "old.bin")
    part = ours.with_name(ours.name.replace(f".{os.getpid()}.", f".{ended.pid}."))
    part.touch()
    load()
    assert not part.exists()


@pytest.mark.usefixtures("as_nobody")
def test_read_only_folder_is_passed_over_for_the_next_or_named(load):
    first, second = Path("first"), Path("second")
    first.mkdir(mode=0o555)
    second.mkdir()
    load(parents=[first, second])
    assert len(cache_files(second)) == 1
    (second / ".tokens").chmod(0o555)
    load(parents=[first, second], tokenizer=None)  # it reads what it cannot write
    with pytest.raises(PermissionError, match="first"):
        load(parents=[first])


@pytest.mark.parametrize("code", [errno.EROFS, errno.EPERM])
def test_read_only_disk_is_passed_over_too(load, tmp_path, monkeypatch, code):
    def answer(path, *args, mkdir=Path.mkdir, **kwargs):
        if path.parent.name == "first":
            raise OSError(code, os.strerror(code), str(path))
        mkdir(path, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", answer)
    load(parents=[tmp_path / "first", tmp_path])
    assert len(cache_files(tmp_path)) == 1


def test_full_disk_is_an_error_and_leaves_nothing(load, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        load(parents=[tmp_path, tmp_path])
    assert [path.suffix for path in (tmp_path / ".tokens").iterdir()] == [".lock"]


def test_of_two_processes_one_builds_and_both_read(tmp_path):
    (tmp_path / "data.txt").write_text(STORIES * 1000)
    command = [sys.executable, "-c", BUILD_WHEN_TOLD]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    environment = {**os.environ, "PYTHONPATH": str(Path(data.__file__).parent)}
    racers = [subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes) for _ in range(2)]
    assert [racer.stdout.readline() for racer in racers] == ["ready\n", "ready\n"]
    for racer in racers:
        print("go", file=racer.stdin, flush=True)
    lines = [racer.communicate(timeout=60)[0].split() for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    assert sorted(map(len, lines)) == [1, 2]
    assert lines[0][-1] == lines[1][-1]
    assert len(cache_files(tmp_path)) == 1


def test_memory_does_not_grow_with_the_text(load, monkeypatch):
    monkeypatch.setattr("text.BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr(data, "BLOCK_BYTES", 1 << 14)

    def peak(num_stories):
        content = (STORIES * num_stories).encode()
        tracemalloc.start()
        load(content)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    load()  # what is allocated once
    assert peak(8000) < peak(1000) + 100_000  # the texts differ by 2.5 MB


def test_text_that_changes_while_it_is_read_is_an_error_and_leaves_no_cache(load, tmp_path):
    def encode_and_write(piece, **options):
        Path("data.txt").write_text("another text")
        return np.arange(3)

    intruder = SimpleNamespace(encoding=SimpleNamespace(encode_to_numpy=encode_and_write))
    with pytest.raises(DataError, match=r"changed while it was read \(data\.txt\)"):
        load(tokenizer=intruder)
    assert cache_files(tmp_path) == []


@pytest.mark.parametrize("content", ["", " ", "\n\n \t\n", "\ufeff", "\ufeff\r\n", "\u3000" * 99])
def test_blank_text_is_an_error_and_leaves_no_cache(load, tmp_path, content):
    with pytest.raises(DataError, match=r"empty or blank \(data\.txt\)"):
        load(content)
    assert cache_files(tmp_path) == []


# windows


@pytest.mark.parametrize(
    ("size", "length", "stride"), [(11, 7, 3), (8, 7, 5), (23, 4, 9), (9, 1, 1)]
)
def test_windows_start_where_the_book_starts_them(size, length, stride):
    ids = np.arange(END_OF_TEXT_ID, END_OF_TEXT_ID - size, -1).astype(np.uint16)
    dataset = GPTDatasetV1(ids, None, length, stride)
    starts = range(0, size - length, stride)
    assert len(dataset) == len(starts)
    for (inputs, targets), start in zip(dataset, starts, strict=True):
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.tolist() == ids[start : start + length].tolist()
        assert targets.tolist() == ids[start + 1 : start + length + 1].tolist()


def test_windows_are_views_and_not_copies():
    ids = np.arange(99, dtype=np.uint16)
    assert np.shares_memory(GPTDatasetV1(ids, None, 7, 3).windows, ids)


def test_dataset_of_a_text_is_the_dataset_of_its_ids(tokenizer):
    of_text = GPTDatasetV1(STORIES, tokenizer, 8, 3)
    ids = tokenizer.encode(STORIES, allowed_special="all")
    assert END_OF_TEXT_ID in ids
    assert np.array_equal(of_text.windows, GPTDatasetV1(np.array(ids), None, 8, 3).windows)


def test_text_shorter_than_a_window_is_an_error_with_the_counts():
    assert len(GPTDatasetV1(np.arange(8), None, 7, 1)) == 1  # the shortest text
    with pytest.raises(DataError, match=r"\(7 tokens\): max_length=7 needs 8"):
        GPTDatasetV1(np.arange(7), None, 7, 1)


def test_signatures_are_those_of_the_book():
    names = list(inspect.signature(GPTDatasetV1).parameters)
    assert names == ["txt", "tokenizer", "max_length", "stride"]
    parameters = inspect.signature(create_dataloader_v1).parameters
    assert next(iter(parameters)) == "txt"
    assert {name: parameters[name].default for name in list(parameters)[1:]} == {
        "batch_size": 4, "max_length": 256, "stride": 128,
        "shuffle": True, "drop_last": True, "num_workers": 0,
    }  # fmt: skip


@pytest.mark.parametrize("drop_last", [True, False])
def test_dataloader_gives_all_windows_shuffled_or_in_order(tokenizer, drop_last):
    dataset = GPTDatasetV1(STORIES, tokenizer, 8, 5)
    options = {"batch_size": 4, "max_length": 8, "stride": 5, "drop_last": drop_last}
    expected = dataset.windows[: len(dataset) // 4 * 4 if drop_last else None, :-1].tolist()
    assert len(dataset) % 4
    in_order = create_dataloader_v1(STORIES, shuffle=False, **options)
    assert torch.cat([inputs for inputs, _ in in_order]).tolist() == expected
    shuffled = torch.cat(
        [inputs for inputs, _ in create_dataloader_v1(STORIES, **options)]
    ).tolist()
    assert shuffled != expected
    assert len(shuffled) == len(expected)
