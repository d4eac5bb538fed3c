"""A cache is made on all cores in bounded memory, and continued where a kill has left it."""

import json
import os
import random
import signal
import tracemalloc
from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest
import tiktoken
from build_life import CHANGES, TEXT_NAME, folder_of, write_text
from hypothesis import given
from hypothesis import strategies as st

from corpus import pieces, text, token_build
from corpus.known_files import KnownFiles
from corpus.pieces import Piece, document_pieces, in_batches
from corpus.sources import open_sources
from corpus.token_build import append_ids, build, read_progress, write_progress
from corpus.token_cache import load_tokens
from corpus.token_shards import joined, read_manifest
from corpus.token_workers import Worker, encode, encoded
from system.errors import ProcessesError
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID, GPT2Tokenizer

LIFE = Path(__file__).with_name("build_life.py")


@pytest.fixture
def small(monkeypatch):
    """Shards, batches and progress of a size that a small text has many of."""
    for change in CHANGES:
        monkeypatch.setattr(*change)


def files_in(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# batches


@given(
    st.lists(
        st.lists(st.sampled_from(["a", " b", "\n", "é😀", END_OF_TEXT, "<|endof", "text|>"])).map(
            "".join
        ),
    ),
    st.integers(1, 30),
)
def test_batches_have_the_ids_of_the_documents(documents, batch_chars):
    tokenizer = GPT2Tokenizer()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces, "BATCH_CHARS", batch_chars)
        batches = list(in_batches(document_pieces(documents)))
    expected = []
    for document in documents:
        expected += [*tokenizer.encode(document), END_OF_TEXT_ID]
    ids = [id_ for batch in batches for id_ in encode(tokenizer, batch).tolist()]
    assert ids == expected[:-1]


def test_a_million_empty_documents_are_few_batches():
    batches = list(in_batches(document_pieces("" for _ in range(1_000_000))))
    assert len(batches) < 60
    ids = encode(GPT2Tokenizer(), batches[0])
    assert set(ids) == {END_OF_TEXT_ID}


def test_the_ids_are_those_of_tiktoken_on_the_whole_text(small, tmp_path):
    content = write_text(tmp_path)
    tokens = load_tokens(open_sources(tmp_path / TEXT_NAME), cache_parents=[tmp_path])
    oracle: tiktoken.Encoding = GPT2Tokenizer().encoding
    assert tokens.ids[:].tolist() == oracle.encode(content, allowed_special={END_OF_TEXT})
    assert len(tokens.ids.rows) > 3


# shards


def test_tokens_in_shards_are_looked_up_as_those_in_one(tmp_path, monkeypatch):
    write_text(tmp_path)
    whole = load_tokens(open_sources(tmp_path / TEXT_NAME), cache_parents=[tmp_path / "one"])
    for change in CHANGES:
        monkeypatch.setattr(*change)
    parts = load_tokens(open_sources(tmp_path / TEXT_NAME), cache_parents=[tmp_path / "many"])
    assert parts.document_ends.tolist() == whole.document_ends.tolist()
    assert parts.first_seen.tolist() == whole.first_seen.tolist()
    assert parts.ids[:].tolist() == whole.ids.tolist()


ROW = np.arange(100, dtype=np.uint16)


@given(st.lists(st.integers(0, 100), min_size=1, max_size=6), st.data())
def test_shards_are_one_row_of_ids(cuts, data):
    bounds = [0, *sorted(cuts), 100]
    shards = [ROW[a:b] for a, b in pairwise(bounds) if a < b]
    ids = joined(shards)
    assert (len(ids), ids.ndim, ids.dtype) == (100, 1, np.uint16)
    start, stop = data.draw(st.tuples(st.integers(-120, 120), st.integers(-120, 120)))
    for part in (slice(start, stop), slice(start, None, 3), slice(None, stop)):
        assert ids[part].tolist() == ROW[part].tolist()


def test_a_slice_within_a_shard_copies_nothing():
    ids = joined([ROW[:60], ROW[60:]])
    assert np.shares_memory(ids[10:60], ROW)
    assert np.shares_memory(ids[60:], ROW)
    assert joined([ROW]) is ROW


# workers


def test_workers_give_the_ids_in_order(small, tmp_path):
    write_text(tmp_path)
    batches = list(in_batches(open_sources(tmp_path / TEXT_NAME).pieces()))
    batches += [Piece(END_OF_TEXT, has_separators=False), Piece("a\ud83d"), Piece("")]
    pairs = zip(encoded(batches, 0), encoded(batches, 2), strict=True)
    for (batch, here), (same, there) in pairs:
        assert batch == same
        assert here.tolist() == there.tolist()


def endless():
    while True:
        yield Piece("Once upon a time. " * 100)


def test_batches_are_read_no_further_than_the_workers_need():
    num_read = 0

    def counted():
        nonlocal num_read
        for batch in endless():
            num_read += 1
            yield batch

    stream = encoded(counted(), 1)
    for number in range(1, 30):
        next(stream)
        assert num_read <= number + 5
    stream.close()


def test_a_worker_that_is_killed_is_one_line_and_none_is_left():
    others = set(psutil.Process().children())
    stream = encoded(endless(), 2)
    next(stream)
    workers = set(psutil.Process().children()) - others
    assert len(workers) == 2
    next(iter(workers)).kill()
    with pytest.raises(ProcessesError, match=r"is gone \(exit code -9\): start again") as caught:
        list(stream)
    assert caught.value.exit_code == 9
    assert not any(worker.is_running() for worker in workers)


def test_a_worker_imports_no_torch_and_ends_with_its_caller():
    worker = Worker()
    process = psutil.Process(worker.process.pid)
    assert len(worker.encode(Piece("Once upon a time"))) == 4
    assert not any("torch" in mapping.path for mapping in process.memory_maps())
    worker.process.stdin.close()  # as the system does for a caller that was killed
    assert process.wait(timeout=60) == 0
    worker.end()


def test_a_script_without_a_main_guard_is_not_run_again(tmp_path, run_python):
    write_text(tmp_path)
    (tmp_path / "tokenizer.py").write_text("raise SystemExit('a file of the user is imported')")
    script = tmp_path / "script.py"
    script.write_text(
        "import sys; sys.path.append(sys.path.pop(0))\n"
        "from pathlib import Path\n"
        "from corpus import token_build, token_cache, sources\n"
        "print('here')\n"
        "token_build.FEW_BATCHES, token_build.num_cores = 0, lambda: 2\n"
        f"text = sources.open_sources('{TEXT_NAME}')\n"
        "print(len(token_cache.load_tokens(text, cache_parents=[Path()]).ids) > 1000)\n"
    )
    done = run_python(script, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "here\nTrue\n", "")


# killed


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, run_python):
    """The files of a cache whose building nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_text(folder)
    done = run_python(LIFE, "calm", folder=folder)
    assert done.returncode == 0, done.stderr
    return files_in(folder_of(folder))


def test_killed_at_many_places_the_finished_cache_is_the_same(undisturbed, tmp_path, run_python):
    write_text(tmp_path)
    done = run_python(LIFE, "kills", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["kills"] > 5
    assert report["encoded"] < 3 * report["batches"]  # it went on, not from the start each time
    assert files_in(folder_of(tmp_path)) == undisturbed


def test_stopped_with_workers_it_ends_at_once_in_one_line_and_goes_on(
    undisturbed, tmp_path, run_python
):
    write_text(tmp_path)
    done = run_python(LIFE, "workers", str(int(signal.SIGINT)), folder=tmp_path)
    assert (done.returncode, done.stderr) == (130, "stopped: by Ctrl-C\n")
    done = run_python(LIFE, "workers", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert files_in(folder_of(tmp_path)) == undisturbed


@pytest.mark.slow
def test_killed_at_twenty_random_times_with_workers_the_finished_cache_is_the_same(
    undisturbed, tmp_path, run_python
):
    write_text(tmp_path)
    chance, kills = random.Random(0), 0
    while kills < 20:
        done = run_python(LIFE, "timed", str(chance.uniform(0.01, 0.3)), folder=tmp_path)
        assert done.returncode in (0, -signal.SIGKILL), done.stderr
        kills += done.returncode != 0
        if done.returncode == 0:
            assert files_in(folder_of(tmp_path)) == undisturbed
            folder_of(tmp_path).rename(tmp_path / f"done {kills}")


# bounds


def test_memory_does_not_grow_with_the_text(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr("system.files.BLOCK_BYTES", 1 << 14)
    monkeypatch.setattr(token_build, "BLOCK_IDS", 1 << 10)
    monkeypatch.setattr(token_build, "FEW_BATCHES", 2)
    monkeypatch.setattr(token_build, "num_cores", lambda: 0)
    monkeypatch.setattr(pieces, "BATCH_CHARS", 1 << 13)
    monkeypatch.setattr(pieces, "MAX_PIECE_CHARS", 1 << 13)

    def peak(content):
        (tmp_path / TEXT_NAME).write_text(content)
        sources = open_sources(tmp_path / TEXT_NAME)
        tracemalloc.start()
        known = KnownFiles([])
        build(tmp_path / str(len(content)), sources, known.sha256_of(sources.paths), known)
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak_bytes

    stories, line = f"Tom saw a dog.\n{END_OF_TEXT}\nLily ran home.\n", "Tom saw a dog. "
    peak(stories)  # what is allocated once
    for content in (stories, line, END_OF_TEXT, "a"):
        few = 100_000 // len(content)
        assert peak(content * few * 10) < peak(content * few) + 300_000  # of 900,000 more


def test_ids_behind_those_that_are_sure_are_cut_off(small, tmp_path):
    limit = token_build.MAX_SHARD_TOKENS
    ids = np.arange(3 * limit + 5, dtype="<u2")
    assert append_ids(tmp_path, ids[:-3], num_tokens=0) == len(ids) - 3
    assert append_ids(tmp_path, ids[-3:], num_tokens=len(ids) - 3) == len(ids)
    for num_sure in (len(ids), 3 * limit, 2 * limit + 1, limit, 1, 0):
        write_progress(tmp_path, 7, num_sure)
        assert read_progress(tmp_path) == (7, num_sure)
        shards = [np.fromfile(path, "<u2") for path in sorted(tmp_path.glob("*.ids"))]
        assert np.concatenate([[], *shards]).tolist() == list(range(num_sure))


def test_the_manifest_says_what_the_cache_is_of(undisturbed, tmp_path):
    (tmp_path / "manifest.json").write_bytes(undisturbed["manifest.json"])
    manifest = read_manifest(tmp_path)
    assert manifest["version"] == 4
    assert set(manifest["files"]) == set(undisturbed) - {"manifest.json", "batches.json"}
    sizes = [len(content) for name, content in undisturbed.items() if name.endswith(".ids")]
    assert sum(sizes) == 2 * manifest["num_tokens"]
    assert os.sep not in "".join(manifest["files"])
