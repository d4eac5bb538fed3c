"""What makes a process fast: threads, the compiler; the results stay the same."""

import shutil
from pathlib import Path

import pytest
import torch

import train
from system import machine
from training.begin import begin
from training.samples import measure
from training.wanted import wanted

COMPILE = """
import torch
from system.machine import Machine
module = Machine(torch.device("cpu"), torch.float32, "").compiled(torch.nn.Linear(2, 2), "on")
print(module(torch.zeros(1, 2)).shape)
"""


QUOTAS = {  # files of the control groups, the line of this process in them, and the cores left
    "none": ({}, "", 4),
    "version 2": ({"cpu.max": "200000 100000\n"}, "0::/\n", 2),
    "unlimited": ({"cpu.max": "max 100000\n"}, "0::/\n", 4),
    "part of one": ({"cpu.max": "50000 100000\n"}, "0::/\n", 1),
    "of the group": ({"a/b/cpu.max": "150000 100000\n"}, "0::/a/b\n", 1),
    "of its parent": ({"a/cpu.max": "300000 100000", "a/b/cpu.max": "max 1"}, "0::/a/b\n", 3),
    "version 1": (
        {"cpu,cpuacct/cpu.cfs_quota_us": "200000\n", "cpu,cpuacct/cpu.cfs_period_us": "100000\n"},
        "5:memory:/x\n4:cpu,cpuacct:/docker/1a\n",
        2,
    ),
    "version 1 unlimited": (
        {"cpu/g/cpu.cfs_quota_us": "-1\n", "cpu/g/cpu.cfs_period_us": "100000\n"},
        "4:cpu:/g\n",
        4,
    ),
}


@pytest.mark.parametrize(("files", "groups", "expected"), QUOTAS.values(), ids=QUOTAS)
def test_a_containers_quota_counts_as_cores(tmp_path, monkeypatch, files, groups, expected):
    monkeypatch.setattr(machine.psutil, "cpu_count", lambda logical: 8 if logical else 4)
    affinity = [1000, 1001, 1002, 1003, 1004]
    monkeypatch.setattr(machine.psutil.Process, "cpu_affinity", lambda _: affinity, raising=False)
    monkeypatch.setattr(machine, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(machine, "OWN_GROUPS", tmp_path / "own")
    assert machine.num_cores() == 4
    for name, content in {
        **{f"groups/{name}": text for name, text in files.items()},
        "own": groups,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    assert machine.num_cores() == expected
    affinity[:] = [7]
    assert machine.num_cores() == 1


def test_a_machine_without_a_compiler_says_so_and_goes_on(tmp_path, run_python):
    python_only = tmp_path / "bin"
    python_only.mkdir()
    result = run_python(
        "-c",
        COMPILE,
        folder=tmp_path,
        PATH=str(python_only),
        TORCHINDUCTOR_CACHE_DIR=str(tmp_path / "cache"),
    )
    assert result.returncode == 0, result.stderr
    (shape,) = result.stdout.splitlines()
    assert "warning: not compiled" in result.stderr
    assert shape == "torch.Size([1, 2])"


def validation_loss(num_steps: int, **changed: object) -> float:
    """The loss after so many updates of the default model on the text in the working folder."""
    run = begin(wanted({"lr_schedule": "constant", "device": "cpu", "data": "data.txt"}, changed))
    for _ in range(num_steps):
        run.update()
    return measure(run)[0]


@pytest.fixture
def stories(tmp_path, monkeypatch):
    """A working folder with example.txt."""
    shutil.copy(Path(train.__file__).parent / "example.txt", tmp_path / "data.txt")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_bfloat16_learns_what_float32_learns(stories):
    losses = [validation_loss(300, precision=name) for name in ("float32", "bfloat16")]
    assert losses[0] < 5.5
    assert losses[1] == pytest.approx(losses[0], abs=0.02)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler")
def test_compiled_learns_what_eager_learns(stories):
    losses = [validation_loss(300, compile=way) for way in ("off", "on")]  # of the same masks
    assert losses[0] < 5.5
    assert losses[1] == pytest.approx(losses[0], abs=0.02)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-5), ("bfloat16", 2e-3)])
def test_another_number_of_threads_changes_only_the_rounding(
    stories, monkeypatch, precision, tolerance
):
    losses = {}
    for num_threads in (1, 2):
        monkeypatch.setattr(machine, "num_cores", lambda: 2)
        torch.set_num_threads(num_threads)
        changed = {"data": "data.txt", "precision": precision}
        run = begin(wanted({"device": "cpu"}, changed))
        for _ in range(100):
            run.update()
        losses[num_threads] = run.history.train_losses
    torch.set_num_threads(1)  # as conftest.py has it
    assert losses[1] != losses[2]
    assert losses[1] == pytest.approx(losses[2], abs=tolerance)
