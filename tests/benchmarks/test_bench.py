"""The benchmark: contestants take turns in their own processes; tables say what was measured."""

import importlib.util
import os
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

import bench
from benchmarks import generate_peers, train_peers
from benchmarks.train_peers import Task
from benchmarks.turns import Contestant, Result, take_turns
from corpus.vocabulary import Vocabulary
from system.errors import ConfigError
from system.machine import Machine
from training import loss

ROOT = Path(bench.__file__).parent
TASK = Task(
    batch_size=2,
    seq_len=7,
    embedding_dim=8,
    num_layers=2,
    num_heads=2,
    ffn_hidden_dim=32,
    vocab_size=131,
    num_used=11,
)
SHAPE = [
    f"--{name.replace('_', '-')}={value}" for name, value in vars(TASK).items() if name != "seed"
]
TINY = [*SHAPE, "--steps=2", "--device=cpu", "--precision=float32"]
NANOGPT = """
import torch
from dataclasses import dataclass

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        print("number of parameters: few")
        self.table = torch.nn.Embedding(config.vocab_size, config.n_embd)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, betas=betas)

    def forward(self, idx, targets):
        logits = self.table(idx) @ self.table.weight.T
        loss = torch.nn.functional.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1))
        return logits, loss
"""


def rows_of(text: str) -> list[list[str]]:
    """The cells of the one Markdown table in the text, its header first; all rows are as long."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    header, rule, *rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    assert {len(row) for row in (rule, *rows)} == {len(header)}
    assert len({len(line) for line in lines}) == 1
    assert set("".join(rule)) == {"-", ":"}
    return [header, *rows]


def has(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def number(cell: str) -> float:
    return float(cell.removesuffix("GB").removesuffix("%").replace(",", ""))


# ---------------------------------------------------------------- the commands


def test_train_compares_ours_with_every_peer_and_the_floor(tmp_path, run_python):
    (tmp_path / "model.py").write_text(NANOGPT)
    result = run_python(ROOT / "bench.py", "train", *TINY, "--nanogpt", tmp_path, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    _, *rows = rows_of(result.stdout)
    names = [row[0] for row in rows]
    has_transformers = has("transformers")
    assert names == [
        *bench.OURS,
        "plain loop, our model, float32",
        *["transformers, float32"] * has_transformers,
        "nanoGPT, float32",
        "matrix products alone, 131 rows",
        "matrix products alone, 12 rows",
    ]
    assert "few" not in result.stdout
    for row in rows:
        speed, _, ratios, memory, _, share = row[1:]
        assert number(speed) > 0
        assert all(float(ratio) > 0 for ratio in ratios.split(", "))
        assert 0.05 < number(memory) < 100
        assert number(share) > 0
    assert [row[-1] for row in rows if row[0].startswith(bench.FLOOR)] == ["100%", "100%"]
    assert rows[0][3].startswith("1.00, ")
    assert rows[1][3].endswith(", 1.00")
    assert f"torch {torch.__version__}" in result.stdout


def test_loss_compares_what_this_torch_has(tmp_path, run_python):
    result = run_python(ROOT / "bench.py", "loss", *TINY, folder=tmp_path)
    assert result.returncode == 0, result.stderr
    _, *rows = rows_of(result.stdout)
    assert [row[0] for row in rows[:2]] == ["ours", "F.cross_entropy"]
    assert all(number(row[1]) > 0 for row in rows)
    has_own = hasattr(torch.nn.functional, "linear_cross_entropy")
    assert ("F.linear_cross_entropy" in [row[0] for row in rows]) == has_own
    assert ("this torch has no F.linear_cross_entropy" in result.stdout) != has_own


def test_scaling_has_a_row_for_every_change(monkeypatch, capsys):
    monkeypatch.setattr(bench, "SCALES", [{}, {"seq_len": 3, "batch_size": 1}])
    bench.main(["scaling", *TINY])
    _, *rows = rows_of(capsys.readouterr().out)
    assert [row[0] for row in rows] == ["as it is", "seq_len 3, batch_size 1"]
    assert all(number(row[1]) > 0 for row in rows)


def test_generate_has_a_row_for_every_installed_engine(monkeypatch, capsys):
    case = generate_peers.Case(batch_size=2, prompt_tokens=3, new_tokens=4)
    monkeypatch.setattr(bench, "CASES", (case,))
    bench.main(["generate", *TINY, "--vocab-size=50257"])
    header, *rows = rows_of(capsys.readouterr().out)
    assert header == ["tokens/s", "batch 2, prompt 3"]
    packages = {name: package for name, (package, _) in generate_peers.ENGINES.items()}
    assert [row[0] for row in rows] == [
        name for name, package in packages.items() if package == "torch" or has(package)
    ]
    assert all(number(row[1]) > 0 for row in rows)


@pytest.mark.parametrize("name", ["transformers float32", "CTranslate2 float32", "llama.cpp f32"])
def test_engines_write_the_same_text(name):
    package, start = generate_peers.ENGINES[name]
    if not has(package):
        pytest.skip(f"{package} is not installed")
    torch.manual_seed(0)
    model = train_peers.our_model(replace(TASK, seq_len=64, embedding_dim=32), 50257).eval()
    prompts = generate_peers.Case(batch_size=3, prompt_tokens=5).prompts(50257)
    expected = generate_peers.ours(model, precision="float32")(prompts, 12)
    assert start(model)(prompts, 12) == expected


def test_a_peer_that_is_not_installed_is_a_row_less(monkeypatch, capsys):
    monkeypatch.setattr(bench.importlib.util, "find_spec", lambda name: None)
    options = bench.parse(["train", "--compiled"])
    peers = bench.peers(bench.Wanted(TASK, Machine.choose("cpu", "float32"), options))
    assert [peer.name for peer in peers] == [
        "plain loop, our model, float32",
        "plain loop, our model, float32, compiled",
    ]
    assert capsys.readouterr().out == "left out: transformers is not installed\n"


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["train", "--steps", "0"], "steps=0 is not a whole number >= 1"),
        (["train", "--num-heads", "3"], "not a multiple of num_heads=3"),
        (["train", "--dropout", "1"], r"dropout=1.0 is not a number in \[0, 1\)"),
        (["train", "--num-used", "60000"], "num_used=60000 is more than vocab_size=50257"),
        (["train", "--nanogpt", "nowhere"], "nanogpt=nowhere has no model.py"),
        (["loss", "--device", "tpu", "--precision", "int4"], "device='tpu'.*; precision='int4'"),
        (["sleep"], "invalid choice: 'sleep'"),
        (["train", "--batch-size", "many"], "invalid int value: 'many'"),
    ],
)
def test_what_cannot_be_measured_is_refused(arguments, complaint):
    with pytest.raises(ConfigError, match=complaint):
        bench.main(arguments)


def test_help_names_every_part(capsys):
    with pytest.raises(SystemExit) as exit_:
        bench.parse(["--help"])
    text = capsys.readouterr().out
    assert exit_.value.code == 0
    assert all(f"{name}: {part.measure.__doc__}" in text for name, part in bench.PARTS.items())


def test_a_table_reads_well_as_it_is():
    lines = ["| a   | bc |", "| --- | -: |", "| def |  g |"]
    assert bench.table(["a", "bc"], [["def", "g"]]) == "\n".join(lines)


# ---------------------------------------------------------------- taking turns


def writer(machine: Machine, *, path: Path, name: str):
    """A contestant that writes down when it had its turns, and takes 20 milliseconds."""

    def step(number: int) -> None:
        time.sleep(0.02)
        with path.open("a") as file:
            file.write(f"{name}{number} ")

    return step


def broken(machine: Machine):
    raise ValueError("no such\nthing")


def dying(machine: Machine):
    os._exit(1)


def contestant(build, name: str = "") -> Contestant:
    return Contestant(name, build, num_tokens=10, flops=1e9, device="cpu", precision="float32")


def test_contestants_take_turns_and_the_broken_ones_are_left_out(tmp_path):
    path = tmp_path / "turns"
    players = [contestant(partial(writer, path=path, name=name), name) for name in "ab"]
    players[1:1] = [contestant(broken), contestant(dying)]
    first, second, third, fourth = take_turns(players, num_steps=3, num_warm_ups=2)
    turns = range(2 + 3)
    assert path.read_text().split() == [f"{name}{turn}" for turn in turns for name in "ab"]
    assert (second.failure, third.failure) == ("no such thing", "its process was killed")
    for result in (first, fourth):
        assert (len(result.seconds), result.failure) == (3, "")
        assert min(result.seconds) >= 0.02
        assert result.memory_bytes > 50e6


def test_rates_are_those_of_the_median_step():
    result = Result(contestant(broken), seconds=[1.0, 2.0, 2.0, 4.0, 100.0])
    assert (result.tokens_per_second, result.flops_per_second) == (5, 5e8)
    assert result.middle_half() == (2.0, 4.0)


# ---------------------------------------------------------------- what they do


def test_flops_are_what_the_products_take():
    calls = []

    class Counter(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if "mm" in function.__name__:
                rows, columns = args[0].shape[-2:]
                batch = args[0].shape[0] if args[0].dim() == 3 else 1
                calls.append(2 * batch * rows * columns * args[1].shape[-1])
            return function(*args, **(kwargs or {}))

    step = train_peers.floor(TASK, Machine.choose("cpu", "float32"), num_rows=131)
    with Counter():
        step(0)
    assert sum(calls) == TASK.flops(131)


def test_batches_are_the_same_for_all_and_hold_only_tokens_in_use():
    inputs, targets = TASK.batch(3)
    again = TASK.batch(3)
    assert torch.equal(inputs, again[0])
    assert torch.equal(targets, again[1])
    assert torch.equal(inputs[:, 1:], targets[:, :-1])
    assert inputs.shape == (TASK.batch_size, TASK.seq_len)
    assert inputs.max() < TASK.num_used
    assert not torch.equal(inputs, TASK.batch(4)[0])


def test_tokens_in_use_are_their_own_rows():
    tokens = torch.arange(TASK.num_used)
    assert torch.equal(TASK.vocabulary(is_shared=True).compact(tokens), tokens)
    assert TASK.vocabulary(is_shared=True).size == TASK.num_used + 1
    assert TASK.vocabulary(is_shared=False).num_shared == Vocabulary.full(131).num_shared == 1


@pytest.mark.parametrize("name", ["our_loss", "plain_loss", "torch_loss"])
def test_the_losses_that_are_compared_are_the_same_number(name):
    if name == "torch_loss" and not hasattr(nn.functional, "linear_cross_entropy"):
        pytest.skip("this torch has no F.linear_cross_entropy")
    torch.manual_seed(0)
    head = train_peers.Head(TASK, TASK.vocab_size)
    inputs, targets = TASK.batch(0)
    expected = loss.NextTokenLoss(head)(inputs, targets).item()
    value = getattr(train_peers, name)(head, inputs, targets).item()
    assert value == pytest.approx(expected, rel=1e-5)  # float32, sums of 131 terms
