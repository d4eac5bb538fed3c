"""The benchmark: contestants take turns in their own processes; tables say what was measured."""

import json
import os
import time
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import pytest
import torch
from machines import plain_machine

import bench
from benchmarks import generate_peers, gpu, record, train_peers
from benchmarks.turns import Contestant, Task, take_turns
from corpus.vocabulary import Vocabulary
from system.errors import ConfigError, DataError
from system.machine import Machine, num_cores

MODEL = {"embedding_dim": 8, "num_layers": 2, "num_heads": 2, "ffn_hidden_dim": 32}
TEXT = {"batch_size": 2, "seq_len": 7, "vocab_size": 131, "num_used": 11}
SIZES = {**MODEL, **TEXT, "steps": 2, "device": "cpu", "precision": "float32"}
TINY = [f"--{name.replace('_', '-')}={value}" for name, value in SIZES.items()]
TASK = Task(**SIZES)
CPU = plain_machine()
NANOGPT = """
import torch

def GPTConfig(block_size, vocab_size, n_layer, n_head, n_embd, dropout, bias):
    print("number of parameters: few")
    return torch.nn.Embedding(vocab_size, n_embd)

class GPT(torch.nn.Sequential):
    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, betas=betas)

    def forward(self, idx, targets):
        logits = self[0](idx) @ self[0].weight.T
        return logits, torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.view(-1))
"""


def rows_of(text: str) -> list[dict[str, str]]:
    """The rows of the one Markdown table in the text, by column; all lines are as long."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, rule, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    assert len({len(line) for line in lines}) == 1
    assert set("".join(rule)) == {"-", ":"}
    return [dict(zip(header, row, strict=True)) for row in rows]


@pytest.fixture
def measured(monkeypatch, capsys):
    """The rows of a part whose contestants run in this process and need a second for each step."""

    def run(contestants, *, num_warm_ups=2, together=None):
        for contestant in contestants:
            steps = contestant.build(contestant.task, CPU)
            contestant.values = [*islice(steps, contestant.task.steps)]
            contestant.seconds = [1.0] * contestant.task.steps
            contestant.first_seconds = 1.0
        return contestants

    def rows(*arguments):
        bench.main([*arguments])
        return rows_of(capsys.readouterr().out)

    monkeypatch.setattr(bench, "take_turns", run)
    return rows


@pytest.mark.slow
def test_train_compares_ours_with_every_peer_and_the_floor(tmp_path, run_python):
    (tmp_path / "model.py").write_text(NANOGPT)
    result = run_python(bench.__file__, "train", *TINY, "--nanogpt", tmp_path, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    rows = rows_of(result.stdout)
    has_transformers = "transformers" in bench.versions()
    assert [row[""] for row in rows] == [
        *bench.OURS,
        "plain loop, our model, float32",
        *["transformers, float32"] * has_transformers,
        "nanoGPT, float32",
        "matrix products alone, 131 rows",
        "matrix products alone, 12 rows",
    ]
    assert ("left out: transformers, float32: No module" in result.stdout) != has_transformers
    assert "few" not in result.stdout
    assert all(0.05 < float(row["peak memory, GB"]) < 100 for row in rows)
    assert [row["of products alone"] for row in rows[-2:]] == ["100%", "100%"]
    assert rows[0]["ours is faster (full, shared)"].startswith("1.00, ")
    assert rows[1]["ours is faster (full, shared)"].endswith(", 1.00")
    for name in bench.versions():
        assert f"'{name}': '{version(name)}'" in result.stdout


def test_loss_compares_what_is_the_same_number(measured, monkeypatch):
    has_own = hasattr(torch.nn.functional, "linear_cross_entropy")
    for name in list(bench.LOSSES):
        if "compiled" in name or ("linear" in name and not has_own):
            monkeypatch.delitem(bench.LOSSES, name)  # needs a compiler, or a later torch
    assert [row[""] for row in measured("loss", *TINY)] == list(bench.LOSSES)
    steps_of = partial(train_peers.loss_alone, TASK, CPU)
    values = [next(steps_of(loss_of=loss_of)) for loss_of in bench.LOSSES.values()]
    assert values == pytest.approx([values[0]] * len(values), rel=1e-5)  # float32, 131 terms


def test_scaling_has_a_row_for_every_change(measured, monkeypatch):
    monkeypatch.setattr(bench, "SCALES", [{}, {"seq_len": 3, "batch_size": 1}])
    speeds = {row[""]: row["tokens/s"] for row in measured("scaling", *TINY)}
    assert speeds == {"as it is": "14", "seq_len 3, batch_size 1": "3"}


@pytest.mark.slow
def test_processes_take_turns_with_one_process(run_python, tmp_path):
    options = ("--steps=2", "--embedding-dim=8", "--num-heads=2", "--num-layers=1", "--device=cpu")
    done = run_python(bench.__file__, "scaling", "--processes", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" thread") == 1 + 2 * (num_cores() > 1)
    assert "communication" in done.stdout


def test_generate_has_a_row_for_every_installed_engine(measured, monkeypatch):
    monkeypatch.setattr(bench, "CASES", [(2, 3)])
    monkeypatch.setattr(bench, "WRITING", {"seq_len": 16, "new_tokens": 4})
    rows = measured("generate", *TINY, "--vocab-size=50257")
    assert [row["tokens/s"] for row in rows] == [
        f"{name} {kind}"
        for name, (package, _, kinds) in generate_peers.ENGINES.items()
        for kind in kinds * (package in bench.versions())
    ]
    assert {row["batch 2, prompt 3"] for row in rows} == {"8"}  # 2 x 4 tokens in a second


@pytest.mark.parametrize("name", ["transformers", "CTranslate2", "llama.cpp"])
def test_engines_write_the_same_text_again_and_again(name):
    package, engine, kinds = generate_peers.ENGINES[name]
    if package not in bench.versions():
        pytest.skip(f"{package} is not installed")
    task = replace(TASK, seq_len=64, embedding_dim=32, vocab_size=50257, new_tokens=12)
    prompts = torch.randint(50256, (3, 5)).tolist()
    expected = next(generate_peers.ours(task, CPU, "float32", prompts))
    assert list(islice(engine(task, CPU, kinds[0], prompts), 2)) == [expected, expected]


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train", "--steps", "0"], "steps=0 is not a whole number >= 1"),
        (["train", "--num-heads", "3"], "not a multiple of num_heads=3"),
        (["train", "--num-used", "60000"], r"num_used=60000 is not in \[1, vocab_size=50257\]"),
        (["train", "--nanogpt", "nowhere"], "nanogpt=nowhere has no model.py"),
        (["train", "--only", "("], r"only: \( is no regular expression"),
        (["train", "--max-seconds", "0"], "max_seconds=0.0 is not above 0"),
        (["compare", "old.json"], "only compare takes two"),
        (["train", "old.json"], "only compare takes two"),
        (["compare", "old.json", "new.json", "--steps", "3"], "compare takes no --steps"),
        (["compare", "old.json", "new.json", "--json", "a"], "compare takes no --json"),
        (["train", "--processes"], "train and --processes: only scaling takes it"),
        (["loss", "--device", "tpu", "--precision", "int4"], "device='tpu'.*; precision='int4'"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, complaint):
    with pytest.raises(ConfigError, match=complaint):
        bench.main(arguments)


def test_a_table_reads_well_as_it_is():
    lines = [
        "| a   | tokens/s | milliseconds | middle half |",
        "| --- | -------: | -----------: | ----------: |",
        "| fgh |    1,235 |            - |           - |",
        "| j   |        - |          2.2 |         1-2 |",
    ]
    rows = {"fgh": {"tokens/s": 1234.6}, "j": {"milliseconds": 2.25, "middle half": [1.0, 2.0]}}
    assert record.table(rows, corner="a") == "\n".join(lines)


def test_a_column_has_the_form_of_what_its_name_ends_with():
    rows = {"ours": {"a, loss": 3.27889, "b, bits a byte": 1.24188, "a, minutes": 2.46}}
    assert record.table(rows).splitlines()[-1] == "| ours |  3.2789 |          1.242 |        2.5 |"


def writer(task: Task, machine: Machine, *, path: Path, name: str):
    """A contestant that writes down when it had its turns, and takes 20 milliseconds."""
    with path.open("a", buffering=1) as file:
        while True:
            time.sleep(0.02)
            yield file.write(name + "\n")


def sleepy(task: Task, machine: Machine):
    while True:
        yield time.sleep(600)


def broken(task: Task, machine: Machine):
    raise ValueError("no such\nthing")


def dying(task: Task, machine: Machine):
    os._exit(1)


@pytest.mark.slow
def test_contestants_take_turns_and_the_broken_ones_are_left_out(tmp_path, capsys):
    path, task = tmp_path / "turns", replace(TASK, steps=3)
    first, second = (partial(writer, path=path, name=name) for name in "ab")
    builds = {"a": first, "c": broken, "d": dying, "b": second}
    results = take_turns([Contestant(name, task, build) for name, build in builds.items()])
    assert path.read_text().split() == ["a", "b"] * (2 + 3)
    assert [result.name for result in results] == ["a", "b"]
    out = capsys.readouterr().out
    assert out == "left out: c: no such thing\nleft out: d: its process was killed\n"
    for result in results:
        assert len(result.seconds) == 3
        assert min(result.seconds) >= 0.02
        assert result.memory_bytes > 50e6


def test_who_is_not_done_in_time_is_left_out(capsys):
    task = replace(TASK, max_seconds=0.5, only="^[ac]")
    contestants = [Contestant(name, task, sleepy) for name in "abc"]
    assert take_turns(contestants) == []
    late = "not done within 0.5 seconds"
    assert [one.failure for one in contestants] == [late, "", late]
    assert capsys.readouterr().out == f"left out: a: {late}\nleft out: c: {late}\n"


def test_rates_are_those_of_the_median_step():
    result = Contestant("", TASK, broken, seconds=[1.0, 2.0, 2.0, 4.0, 100.0])
    assert [*result.numbers().values()][:3] == [7, [3.5, 7], 2000]  # 14 tokens in 2 s, and in 4 s
    assert result.gflops == TASK.flops / 2e9


def test_flops_are_what_the_products_take():
    class Counter(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "mm" in function.__name__:
                calls.append(2 * args[0].numel() * args[1].shape[-1])
            return function(*args, **(kwargs or {}))

    calls, steps = [], train_peers.floor(TASK, CPU)
    next(steps)  # the first makes the tensors
    with Counter():
        next(steps)
    assert sum(calls) == TASK.flops


def test_head_has_a_row_for_every_chunk_size_and_for_aligned_rows(measured, monkeypatch):
    monkeypatch.setattr(bench, "CHUNK_SIZES", (3, 5, 99))
    monkeypatch.setattr(train_peers.torch, "compile", lambda module: module)
    sizes = [*(f"loss, {size} tokens at once" for size in (3, 5, 14)), "loss, compiled"]
    rows = measured("head", *TINY)
    assert [row[""] for row in rows] == [*sizes, "step, 131 rows", "step, 192 rows"]


def test_types_agree_and_their_losses_fall(measured):
    rows = measured("agreement", *TINY, "--vocab-size=50257", "--steps=30", "--dropout=0")
    assert [row[""] for row in rows] == ["float32, exact", "float32", "bfloat16", "float16"]
    assert [row["largest difference"] for row in rows[:2]] == ["0.0000"] * 2  # on a CPU
    assert {float(row["loss"]) < 10.82 for row in rows} == {True}  # ln 50257 = 10.825


@pytest.mark.slow
def test_records_are_compared_row_by_row(tmp_path, measured, capsys):
    paths = [tmp_path / f"{name}.json" for name in ("old", "new")]
    for path in paths:
        assert measured("scaling", *TINY, "--json", str(path))
    new = record.load(paths[1])
    assert new["part"] == "scaling"
    new["rows"]["as it is"]["tokens/s"] *= 3
    record.save(paths[1], {**new, "device": "another"})
    bench.main(["compare", *map(str, paths)])
    printed = capsys.readouterr().out
    assert "device: cpu (as configured), float32 (as configured) -> another\n" in printed
    factors = {row[""]: row["new / old"] for row in rows_of(printed)}
    assert factors.pop("as it is, tokens/s") == "3.00"
    assert set(factors.values()) == {"1.00"}


@pytest.mark.parametrize("text", ["", "[1]", '{"rows": [1]}', '{"rows": {"a": 1}}', "\0"])
def test_a_file_that_is_no_record_is_refused(tmp_path, text):
    path = tmp_path / "old.json"
    path.write_text(text)
    with pytest.raises(DataError, match="not a record of a benchmark"):
        record.load(path)


@pytest.mark.slow
def test_gpu_goes_on_after_parts_that_fail_or_take_too_long(tmp_path, monkeypatch, capsys):
    parts = {"Slow": ("loss --only ^ours$", 600), "Wrong": ("train --only (", 600)}
    monkeypatch.setattr(gpu, "TESTS", {"Tests": ("-m pytest --version", 600)})
    monkeypatch.setattr(gpu, "PARTS", parts)
    bench.main(["gpu", *TINY, "--json", str(tmp_path / "gpu.json")])
    results = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert [result["ending"] for result in results.values()] == ["exit 0", "exit 0", "exit 2"]
    assert results["Slow"]["rows"]["ours"]["tokens/s"] > 0
    text = (tmp_path / "gpu.md").read_text()
    assert "| ours " in text
    assert "is no regular expression" in text
    assert text in capsys.readouterr().out
    stopped = gpu.run_part(["-m", "timeit", "import time; time.sleep(600)"], 1.0)
    assert stopped["ending"] == "killed: it took too long"


@pytest.mark.slow
def test_gpu_measures_every_part_with_small_sizes(tmp_path, capsys):
    bench.main(["gpu", *TINY, "--vocab-size=50257", "--json", str(tmp_path / "gpu.json")])
    results = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    assert {result["ending"] for result in results.values()} == {"exit 0"}
    assert all(results[title]["rows"] for title in gpu.PARTS)


def test_gpu_fits_into_twelve_minutes_and_needs_a_gpu(monkeypatch):
    seconds = [seconds for _, seconds in [*gpu.TESTS.values(), *gpu.PARTS.values()]]
    assert sum(seconds) + gpu.GRACE_SECONDS * len(gpu.PARTS) <= 12 * 60
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no GPU here"):
        bench.main(["gpu"])


def test_batches_are_the_same_for_all_and_hold_only_tokens_in_use():
    inputs, targets = TASK.batch(3)
    assert all(map(torch.equal, TASK.batch(3), (inputs, targets)))
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert inputs.shape == (TASK.batch_size, TASK.seq_len)
    assert inputs.max() < TASK.num_used
    assert not torch.equal(inputs, TASK.batch(4)[0])


@pytest.mark.parametrize("num_used", [1, 11, 130, 131])
def test_tokens_in_use_are_their_own_rows(num_used):
    shared, tokens = replace(TASK, is_shared=True, num_used=num_used), torch.arange(num_used)
    vocabulary = Vocabulary.of(tokens.numpy(), TASK.vocab_size)
    assert torch.equal(vocabulary.compact(tokens), tokens)
    assert (shared.num_rows, TASK.num_rows) == (vocabulary.size, TASK.vocab_size)
