"""Texts that change, shrink, or are nothing like prose: bounded work, no wrong ids, no crash."""

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from corpus import token_cache
from corpus.token_cache import load_tokens
from system.errors import DataError
from tokenizer import GPT2Tokenizer


def tokens_of(folder: Path, content: str) -> np.ndarray:
    path = folder / "data.txt"
    path.write_text(content, encoding="utf-8")
    return load_tokens(path, GPT2Tokenizer(), cache_parents=[folder]).ids


@pytest.mark.timeout(60)
@pytest.mark.parametrize("letter", ["a", " ", "\n", "0", "é", "😀", "-"])
def test_half_a_million_equal_characters_become_tokens_and_back(tmp_path, letter):
    content = "x" + letter * (500_000 // len(letter))
    assert GPT2Tokenizer().decode(tokens_of(tmp_path, content).tolist()) == content


def test_a_text_with_nul_bytes_is_refused(tmp_path):
    with pytest.raises(DataError, match="NUL"):
        tokens_of(tmp_path, "a\0b" * 1000)


def test_a_text_that_shrinks_in_the_run_changes_nothing(tmp_path):
    ids = tokens_of(tmp_path, "The cat sat on the mat. " * 1000)
    before = ids.copy()
    (tmp_path / "data.txt").write_text("")
    assert np.array_equal(ids, before)


def test_a_text_that_changes_while_it_is_read_is_an_error_and_leaves_no_cache(
    tmp_path, monkeypatch
):
    write_ids = token_cache.write_ids

    def write_and_change(file, reader, tokenizer):
        write_ids(file, reader, tokenizer)
        reader.path.write_text("Another text.")

    monkeypatch.setattr(token_cache, "write_ids", write_and_change)
    with pytest.raises(DataError, match="changed while it was read"):
        tokens_of(tmp_path, "The cat sat on the mat. " * 100)
    assert not list((tmp_path / ".tokens").glob("*.bin"))


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_cache_is_rebuilt(tmp_path, damage):
    content = "The cat sat on the mat. " * 100
    expected = tokens_of(tmp_path, content).copy()
    (cache,) = (tmp_path / ".tokens").glob("*.bin")
    whole = cache.read_bytes()
    flipped = bytes([whole[0] ^ 1]) + whole[1:]
    cache.write_bytes({"cut": whole[:-3], "flipped": flipped, "empty": b""}[damage])
    assert np.array_equal(tokens_of(tmp_path, content), expected)


def build_and_count(folder: str, barrier, counts) -> None:
    write_ids = token_cache.write_ids

    def counted(*arguments):
        counts.put(1)
        write_ids(*arguments)

    token_cache.write_ids = counted
    barrier.wait()
    load_tokens(Path(folder) / "data.txt", GPT2Tokenizer(), cache_parents=[Path(folder)])


def test_of_two_processes_that_need_a_cache_one_builds_it(tmp_path):
    (tmp_path / "data.txt").write_text("The cat sat on the mat. " * 20_000)
    context = multiprocessing.get_context("spawn")
    barrier, counts = context.Barrier(2), context.SimpleQueue()
    processes = [
        context.Process(target=build_and_count, args=(str(tmp_path), barrier, counts))
        for _ in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    assert counts.get() == 1
    assert counts.empty()
