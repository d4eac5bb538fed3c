"""By which way a run is computed: all give the same, and the choice outlives the process."""

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from machines import plain_machine
from tiny_run import REPOSITORY, fingerprint, prepare

from system import choice
from system.choice import Choice, Choices, Piece
from system.machine import products
from training import begin, store, ways
from training.settings import DEFAULTS
from training.wanted import wanted

# Large enough to be measured, and done in a second.
SIZES = {
    "seq_len": 64,
    "embedding_dim": 64,
    "num_layers": 1,
    "num_heads": 2,
    "ffn_hidden_dim": 128,
    "batch_size": 8,
    "stride": 64,
    "device": "cpu",
}
CONFIG = {**DEFAULTS, **SIZES}
NUM_ROWS = 500


@pytest.fixture
def memory(tmp_path, monkeypatch) -> Path:
    """The folder where choices are remembered."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / choice.FOLDER


@pytest.fixture
def measured(monkeypatch) -> list[tuple[str, ...]]:
    """The ways of each measurement, which is done."""
    asked = []

    def fastest(table, **given) -> Choice:
        asked.append(tuple(table))
        return real(table, **given)

    real = choice.fastest
    monkeypatch.setattr(choice, "fastest", fastest)
    return asked


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_all_ways_give_the_same(precision):
    machine = plain_machine(precision=precision)
    config = {**CONFIG, "batch_size": 40}  # tokens for more than one size of chunks
    for question, table in ways.tables(config, NUM_ROWS, machine).items():
        results = [make(0.5)[0].run() for make in table.values()]
        assert len(results) > 1, question
        for result in results[1:]:
            error = (result - results[0]).norm() / results[0].norm()
            assert error <= ways.NEAR[precision], question


def test_every_count_of_threads_gives_the_same(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(ways.psutil, "getloadavg", lambda: (0.1, 2.0, 3.0))
    monkeypatch.setattr(ways.os, "cpu_count", lambda: 4)
    table = ways.thread_ways(torch.device("cpu"), [(16, 8, 4, 1)])
    assert list(table) == ["4", "2"]
    try:
        for four, two in zip(*(make(1.0) for make in table.values()), strict=True):
            torch.testing.assert_close(four.run(), two.run())
    finally:
        torch.set_num_threads(1)


@pytest.mark.parametrize(
    ("device", "count", "threads", "load"),
    [
        ("cuda", 8, "", 0),
        ("mps", 8, "", 0),
        ("cpu", 8, "3", 0),
        ("cpu", 2, "", 0),
        ("cpu", 8, "", 5),
    ],
)
def test_all_cores_are_taken_without_asking(monkeypatch, device, count, threads, load):
    """Beside a GPU, if a user has set the number, if there are few, if others are at work."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: count)
    monkeypatch.setattr(ways.os, "cpu_count", lambda: count)
    monkeypatch.setattr(ways.psutil, "getloadavg", lambda: (load, 0, 0))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if threads:
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert list(ways.thread_ways(torch.device(device), [])) == [str(count)]


def test_the_next_start_remembers_and_says_the_same(memory, measured):
    first = ways.machine_for(CONFIG, NUM_ROWS)
    assert ("float32", "bfloat16", "float16") in measured
    assert "GFLOP/s here" in str(first)
    measured.clear()
    second = ways.machine_for(CONFIG, NUM_ROWS)
    assert measured == []
    assert (str(second), second.ways, second.dtype) == (str(first), first.ways, first.dtype)
    assert len(list(memory.iterdir())) == 1


@pytest.mark.parametrize(
    "changed",
    [{"seq_len": 65}, {"dropout": 0.0}, {"precision": "bfloat16"}, {"num_layers": 2}],
    ids=str,
)
def test_other_work_is_measured_anew(memory, changed):
    paths = set()
    for config in (CONFIG, {**CONFIG, **changed}):
        ways.machine_for(config, NUM_ROWS)
        paths |= set(memory.iterdir())
    assert len(paths) == 2


@pytest.mark.parametrize("name", ["ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS", "ONEDNN_MAX_CPU_ISA"])
def test_what_changes_the_rates_has_its_own_memory(monkeypatch, name):
    before = choice.memory_path(["work"])
    assert choice.memory_path(["work"]) == before
    monkeypatch.setenv(name, "other")
    assert choice.memory_path(["work"]) != before


def test_so_has_another_machine_and_another_torch(monkeypatch):
    paths = [choice.memory_path(["work"])]
    for module, name, value in [
        (choice.platform, "node", lambda: "elsewhere"),
        (choice.os, "cpu_count", lambda: 77),
        (choice.torch, "get_num_threads", lambda: 78),
        (choice.torch, "__version__", "2.99.0"),
    ]:
        monkeypatch.setattr(module, name, value)
        paths.append(choice.memory_path(["work"]))
    assert len(set(paths)) == len(paths)


DAMAGES = [
    b"",
    b"\0" * 300,
    b"{",
    b"[1, 2]",
    b'"text"',
    b"null",
    b'{"precision": 3}',
    b'{"precision": {}}',
    b'{"precision": {"name": ["float32"], "rates": {}}}',
    b'{"precision": {"name": "float64", "rates": {}}}',
    b'{"precision": {"name": "float32", "rates": {"float32": "fast"}}}',
    b'{"precision": {"name": "float32", "rates": {"bfloat16": 1.0}}}',
    b'{"precision": {"name": "float32", "rates": [1]}}',
    b'{"precision": {"name": "float32", "more": 1}}',
    b"[" * 100_000,
    '{"precision": {"name": "\ud800"}}'.encode("utf-8", "surrogatepass"),
]


@pytest.mark.parametrize("content", DAMAGES, ids=range(len(DAMAGES)))
def test_a_damaged_memory_is_made_again(memory, measured, content):
    table = {name: partial(some_products, name) for name in ("float32", "bfloat16")}
    choices = Choices("work")
    choices.path.parent.mkdir(parents=True)
    choices.path.write_bytes(content)
    choices = Choices("work")
    found = choices.of("precision", table, tolerance=1)
    assert found.name in table
    assert str(found)
    choices.remember()
    assert json.loads(choices.path.read_bytes())["precision"]["name"] == found.name
    assert measured == [("float32", "bfloat16")]


def some_products(name: str, share: float) -> list[Piece]:
    shapes, dtype = [(64, 64, 64, 1000)], getattr(torch, name)
    return products(share, shapes=shapes, device=torch.device("cpu"), dtype=dtype)


def test_a_memory_that_cannot_be_written_stops_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("no folder")
    assert "GFLOP/s here" in str(ways.machine_for(CONFIG, NUM_ROWS))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert choice.memory_path(["work"]) is None
    assert "GFLOP/s here" in str(ways.machine_for(CONFIG, NUM_ROWS))


def test_without_a_home_nothing_is_remembered(monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)  # as for a user without entry
    assert choice.memory_path(["work"]) is None


@pytest.mark.parametrize("kept", [None, "text", [], {"device": ["cpu"]}, {"precision": ["x"]}])
def test_what_a_file_says_of_ways_that_are_none_is_not_kept(memory, kept):
    assert "GFLOP/s here" in str(ways.machine_for(CONFIG, NUM_ROWS, kept=kept))


def test_a_config_wins_over_what_a_run_has_kept_and_that_over_measuring(memory, measured):
    kept = {"device": "cpu", "precision": "float16", "attention": "torch", "chunk_size": "1024"}
    machine = ways.machine_for(CONFIG, NUM_ROWS, kept=kept)
    assert str(machine).endswith("float16 (as the run began)")
    assert machine.ways == {**kept, "threads": "1"}
    named = ways.machine_for({**CONFIG, "precision": "float32"}, NUM_ROWS, kept=kept)
    assert str(named).endswith("float32 (as configured)")
    assert measured == [("1",)] * 2
    moved = ways.machine_for(CONFIG, NUM_ROWS, kept={**kept, "device": "A Fine Card"})
    assert "GFLOP/s here" in str(moved)


def test_a_resumed_run_keeps_its_type_and_says_so(tmp_path, memory, capsys, monkeypatch):
    """A run that began in float16, which no machine chooses here."""
    prepare(tmp_path / "run")
    kept = {"device": "cpu", "precision": "float16", "attention": "torch", "threads": "1"}
    options = {**SIZES, "data": "data.txt", "num_epochs": 1, "sample_tokens": 0}
    run = begin.begin(wanted(options, {}))
    run.learner.machine.ways.update(kept)
    run.record(9.0)
    run.update()
    store.save(run)
    resumed = begin.begin(wanted(options, {"resume": True}))
    assert resumed.learner.machine.dtype == torch.float16
    assert "float16 (as the run began)" in capsys.readouterr().out
    again = begin.begin(wanted(options, {"resume": True, "precision": "float32"}))
    assert again.learner.machine.dtype == torch.float32


@pytest.mark.slow
def test_starts_with_and_without_the_memory_end_with_the_same_bits(tmp_path, run_python):
    """Real processes, one of which cannot even write it."""
    options = {**SIZES, "data": "data.txt", "num_epochs": 1, "sample_tokens": 0, "patience": 0}
    prints = {}
    for name, cache in [("first", "cache"), ("second", "cache"), ("third", "no/cache")]:
        folder = tmp_path / name
        folder.mkdir()
        story = (REPOSITORY / "example.txt").read_text(encoding="utf-8")[:20_000]
        (folder / "data.txt").write_text(story, encoding="utf-8")
        (tmp_path / "no").write_text("")
        result = run_python(
            REPOSITORY / "train.py",
            *(f"--{key}={value}" for key, value in options.items()),
            folder=folder,
            XDG_CACHE_HOME=str(tmp_path / cache),
        )
        assert result.returncode == 0, result.stderr
        path = max(folder.glob("model_checkpoint_step_*.pt"))
        line = next(line for line in result.stdout.splitlines() if line.startswith("device"))
        prints[name] = fingerprint(path)
        assert "GFLOP/s here" in line
    assert len(set(prints.values())) == 1
