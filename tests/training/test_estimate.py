"""What training takes is said before it starts, and is near what it then takes."""

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from machines import plain_machine

import train
from system.errors import OutOfRoomError
from training import capacity, estimate
from training.estimate import Block, peak_bytes
from training.settings import DEFAULTS

MEASURE = """
import json, sys, torch
from model import build_transformer
from system.machine import Machine, tune_process
from training import estimate
from training.learner import Learner
from training.settings import DEFAULTS

tune_process()
torch.set_num_threads(1)
(C, H, L, B, T, V), precision, twice = json.loads(sys.argv[1])
sizes = {"seq_len": T, "embedding_dim": C, "num_layers": L, "num_heads": H, "batch_size": B}
config = {**DEFAULTS, **sizes, "ffn_hidden_dim": 4 * C, "checkpoint_activations": twice}
machine = Machine(torch.device("cpu"), getattr(torch, precision), "")
expected = estimate.peak_of(config, V, machine, 1)
model = build_transformer(V, T, C, L, H, 0.1, 4 * C)
learner, ids = Learner(model, machine, config), torch.randint(V, (B, T + 1))
for _ in range(3):
    batch = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    learner.update(*batch, learning_rate=1e-4, seeds=torch.arange(B))
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(expected / 1024 / int(status["VmHWM"].split()[0]))  # getrusage tells the parent's, if higher
"""
GPT2_WIDTHS = [(768, 12, 4, 4), (1024, 16, 6, 4), (1280, 20, 3, 4), (1600, 25, 2, 2)]
CASES = [
    ((256, 8, 4, 8, 128, 5179), "float32", False),
    *(
        pytest.param((*sizes, 256, 50257), precision, twice, marks=pytest.mark.slow)
        for sizes in GPT2_WIDTHS
        for precision, twice in (("float32", False), ("bfloat16", False), ("float32", True))
    ),
]


TUNE = MEASURE.replace(
    "model = build_transformer(V, T, C, L, H, 0.1, 4 * C)",
    """from training import capacity
model = capacity.outline(config, V).to_empty(device="cpu")
with torch.no_grad():
    for tensor in model.state_dict().values():
        tensor.fill_(0.01) if tensor.is_floating_point() else tensor.random_(100)
""",
).replace(
    '"checkpoint_activations": twice}',
    '"checkpoint_activations": twice, "adapter": "lora", "dropout": 0.0, "optimizer": "adamw"}\n'
    'config["base_precision"] = base',
)
TUNED = [
    ((768, 12, 2, 2, 128, 50257), "bfloat16", False, "int8"),
    *(
        pytest.param((*sizes, 256, 50257), "bfloat16", twice, base, marks=pytest.mark.slow)
        for sizes in ((768, 12, 12, 1), (1024, 16, 24, 1), (1280, 20, 12, 2))
        for twice, base in ((False, "int8"), (True, "nf4"), (False, "float32"))
    ),
]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("sizes", "precision", "twice"), CASES)
def test_the_estimate_is_near_what_training_takes(tmp_path, run_python, sizes, precision, twice):
    case = json.dumps([sizes, precision, twice])
    done = run_python("-c", MEASURE, case, folder=tmp_path, OMP_NUM_THREADS="1")
    assert 0.85 < float(done.stdout) < 1.15, done.stderr


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("sizes", "precision", "twice", "base"), TUNED)
def test_so_it_is_beside_a_base_in_few_bits(tmp_path, run_python, sizes, precision, twice, base):
    case = json.dumps([sizes, precision, twice])
    program = f"base = {base!r}\n{TUNE}"
    done = run_python("-c", program, case, folder=tmp_path, OMP_NUM_THREADS="1")
    assert 0.85 < float(done.stdout) < 1.15, done.stderr


def test_more_devices_and_fewer_activations_take_less():
    machine = plain_machine()
    config = {**DEFAULTS, "embedding_dim": 768, "num_layers": 12, "num_heads": 12}
    block = Block(weights=28_000_000, kept_per_window=20_000_000, kept=3_000_000)

    def peak(num_devices: int = 1, **changes: object) -> int:
        return peak_bytes({**config, **changes}, 50257, machine, block, num_devices)

    alone = peak()
    assert peak(checkpoint_activations=True) < alone
    assert peak(batch_size=4) < alone < peak(batch_size=16)
    assert peak(8, parallel="fsdp") < peak(2, parallel="fsdp") < peak(2)
    assert peak(8) < peak(2)


@pytest.mark.parametrize(("parallel", "num_devices"), [("ddp", 8), ("fsdp", 2), ("fsdp", 8)])
def test_a_model_is_refused_only_where_its_parts_are_too_large(monkeypatch, parallel, num_devices):
    config = {**DEFAULTS, "embedding_dim": 4096, "num_layers": 32, "parallel": parallel}
    batches, vocabulary = SimpleNamespace(dataset=range(8)), SimpleNamespace(size=50257)
    corpus = SimpleNamespace(batches=batches, vocabulary=vocabulary)
    states = 16 * capacity.num_parameters(config, 50257)  # weight, gradient, two moments
    monkeypatch.setattr(capacity, "available_memory", lambda device: states // 4)
    fits = (parallel, num_devices) == ("fsdp", 8)
    with nullcontext() if fits else pytest.raises(OutOfRoomError, match="does not fit"):
        capacity.check_memory(config, corpus, torch.device("cpu"), num_devices)


def test_a_block_keeps_as_much_for_every_window():
    machine = plain_machine()
    config = {**DEFAULTS, "seq_len": 16, "embedding_dim": 12, "num_heads": 3}
    block = Block.measured({**config, "ffn_hidden_dim": 20}, machine)
    assert block.weights == 4 * (4 * 12 * 12 + 4 * 12 + 2 * 12 * 20 + 12 + 20 + 4 * 12)
    assert block.kept_per_window > 4 * 16 * (2 * 12 + 20)  # at least inputs of the products


def test_the_option_prints_a_table_and_trains_nothing(text_folder, tiny_options, run_python):
    done = run_python(train.__file__, *tiny_options, "--estimate", folder=text_folder)
    assert done.returncode == 0, done.stderr
    header, *rows = done.stdout.splitlines()[-5:]
    assert header.split("  ")[0] == "devices"
    assert [int(row.split()[0]) for row in rows] == list(estimate.NUM_DEVICES)
    assert not list(text_folder.glob("*.pt"))
