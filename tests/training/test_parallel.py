"""Several processes train as one does: real torchrun starts, each for a group of claims."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest
import torch
from tiny_run import canonical, prepare, train_quickly

import train
from storage import checkpoint, run_folder, sharded
from system.errors import CheckpointError, ProcessesError

TESTS = Path(train.__file__).parent / "tests"
CHANGES = {"num_epochs": 9, "patience": 0}  # with dropout
FULL = [
    {"do": f"full in {place}", "ranks": [rank], "step": step}
    for place, rank, step in (
        ("forward", 1, 3),
        ("backward", 0, 5),
        ("backward", 1, 9),
        ("evaluation", 0, 11),
        ("backward", 1, 30),
    )
]
FILE = "alone/model_checkpoint_step_51.pt"
PARTS = "fsdp 2/model_checkpoint_step_51.sharded"
STEPS = [Path(f"model_checkpoint_step_{step}.sharded") for step in (54, 51)]
SECONDS = 120  # that any start may take on a busy machine


class End(NamedTuple):
    """How a start ended."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def lines(self) -> list[str]:
        """What our processes, not the launcher, said of their end."""
        return [
            line for line in self.stderr.splitlines() if line.startswith(("error:", "stopped:"))
        ]


def launch(num_processes: int, *trainings: dict, options: tuple = (), **environment: str) -> End:
    """A torchrun, or python alone for 0 processes; nothing of it outlives the call."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={num_processes}"]
    torchrun += options
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, *torchrun * (num_processes > 0), TESTS / "parallel_life.py"]
        + [json.dumps({**CHANGES, **training}) for training in trainings],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        out, err = process.communicate(timeout=SECONDS)
    finally:
        with suppress(psutil.NoSuchProcess):
            for child in psutil.Process(process.pid).children(recursive=True):
                child.kill()
        process.kill()
    return End(process.returncode, out, err, time.monotonic() - start)


def rows_of(folder: Path) -> list[list]:
    """The rows of every update, put together from what each process has noted."""
    logs = [path.read_text().splitlines() for path in sorted(folder.glob("rows-*.log"))]
    return [
        [row for line in lines for row in json.loads(line)] for lines in zip(*logs, strict=True)
    ]


def state_of(folder: Path) -> dict:
    return checkpoint.load(folder / checkpoint.FINAL_NAME)


def check_same_curve(folder: Path, expected: Path, *, atol: float = 1e-5) -> None:
    """Losses, evaluations and weights agree to float32 sums in another order."""
    found, wanted = state_of(folder), state_of(expected)
    losses = [state["history"]["train_losses"] for state in (found, wanted)]
    torch.testing.assert_close(*losses, rtol=1e-5, atol=0)
    for ours, theirs in zip(
        found["history"]["evaluations"], wanted["history"]["evaluations"], strict=True
    ):
        assert ours == pytest.approx(theirs, rel=1e-5)
    for name, weight in wanted["model_state_dict"].items():
        torch.testing.assert_close(found["model_state_dict"][name], weight, rtol=0, atol=atol)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs by 1, 2 and 4 processes, one killed among them."""
    here, home = Path.cwd(), tmp_path_factory.mktemp("a team, äöü")
    prepare(home)
    killed = {"output_dir": "killed", "faults": [{"do": "kill", "ranks": [0, 1], "step": 20}]}
    muon = {"optimizer": "muon", "num_epochs": 2}
    alone = {"output_dir": "alone"}, {"output_dir": "muon alone", **muon}
    assert launch(0, *alone).code == 0
    assert launch(2, killed).code != 0
    for name in ("killed 2", "killed 4"):
        shutil.copytree("killed", name)
    twos = [
        {"output_dir": "ddp 2"},
        {"output_dir": "fsdp 2", "parallel": "fsdp"},
        {"output_dir": "killed 2", "resume": True},
        {"output_dir": "full 2", "faults": FULL},
        {"output_dir": "muon ddp 2", **muon},
        {"output_dir": "muon fsdp 2", **muon, "parallel": "fsdp"},
    ]
    fours = [
        {"output_dir": "ddp 4"},
        {"output_dir": "killed 4", "resume": True},
        {"output_dir": "from parts 4", "resume": PARTS, "parallel": "fsdp"},
        {"output_dir": "from a file 4", "resume": FILE, "parallel": "fsdp"},
    ]
    for num_processes, trainings in ((2, twos), (4, fours)):
        end = launch(num_processes, *trainings)
        assert end.code == 0, end.stderr[-5000:]
    os.chdir(here)
    return home


@pytest.mark.parametrize("name", ["ddp 2", "fsdp 2", "ddp 4"])
def test_any_number_of_processes_takes_the_same_rows_to_the_same_curve(home, name):
    assert len(rows_of(home / "alone")) == 54
    assert rows_of(home / name) == rows_of(home / "alone")
    check_same_curve(home / name, home / "alone")


@pytest.mark.parametrize("name", ["muon ddp 2", "muon fsdp 2"])
def test_muon_updates_whole_matrices_wherever_their_parts_lie(home, name):
    check_same_curve(home / name, home / "muon alone")


def test_killed_and_resumed_by_as_many_it_ends_in_the_same_bits(home):
    ends = [state_of(home / name) for name in ("killed 2", "ddp 2")]
    for key in ("model_state_dict", "history", "step"):
        assert len({canonical(end[key]) for end in ends}) == 1, key


@pytest.mark.parametrize("name", ["killed 4", "from parts 4", "from a file 4"])
def test_what_few_or_one_have_saved_goes_on_with_more(home, name):
    check_same_curve(home / name, home / "alone")


def test_what_several_have_saved_in_parts_goes_on_alone(home, place, monkeypatch):
    monkeypatch.chdir(home)
    train_quickly(**CHANGES, output_dir="from parts 1", resume=PARTS)
    check_same_curve(home / "from parts 1", home / "alone")


def test_memory_that_runs_out_in_any_process_changes_no_weight(home):
    """Four of the steps meet torch's own error; the pieces get smaller, then recomputed."""
    check_same_curve(home / "full 2", home / "alone", atol=1e-6)
    memory = checkpoint.load(home / "full 2" / "model_checkpoint_step_54.pt")["memory"]
    assert memory == {"piece_size": 1, "evaluation_size": 1, "checkpoint_activations": True}


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda new, old: flip_a_bit(new / "__1_0.distcp"), "part __1_0.distcp is not what was"),
        (lambda new, old: flip_a_bit(new / ".metadata"), "part .metadata is not what was written"),
        (lambda new, old: flip_a_bit(new / "state.pt"), "not an intact checkpoint"),
        (lambda new, old: (new / "__0_0.distcp").unlink(), "part __0_0.distcp is missing"),
        (lambda new, old: shutil.copy(old / "__1_0.distcp", new), "part __1_0.distcp is not what"),
        (lambda new, old: shutil.copy(old / "state.pt", new), "part .* is not what was written"),
        (lambda new, old: shutil.copy(old / "__1_0.distcp", new / "more"), "part more is not of"),
    ],
)
def test_a_damaged_part_is_named_and_the_checkpoint_before_it_goes_on(home, tmp_path, damage, said):
    steps = [shutil.copytree(home / "fsdp 2" / path.name, tmp_path / path.name) for path in STEPS]
    damage(*steps)
    with pytest.raises(CheckpointError, match=said):
        sharded.load(steps[0])
    path, state, skipped = run_folder.newest_intact(tmp_path)
    assert (path, state["step"]) == (steps[1], 51)
    assert len(skipped) == 1


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def ended(folder: Path, do: str, ranks: list[int], **environment: str) -> End:
    """How two processes end if one of them meets the fault ahead of update 7."""
    fault = {"do": do, "ranks": ranks, "step": 7}
    end = launch(2, {"output_dir": "run", "faults": [fault]}, **environment)
    assert end.code != 0
    assert len(end.lines) == 1, end.stderr[-3000:]
    steps = [checkpoint.load(path)["step"] for path in (folder / "run").glob("*step*.pt")]
    assert sorted(steps)[-1] == (8 if "signal" in do else 6)
    return end


@pytest.mark.parametrize("do", ["signal", pytest.param("signal launcher", marks=pytest.mark.slow)])
def test_a_signal_to_one_process_stops_all_at_the_same_step_with_one_checkpoint(place, do):
    end = ended(place, do, [1])
    said = "stopped: by SIGTERM after step 8, saved run/model_checkpoint_step_8.pt: python train.py"
    assert end.lines[0].startswith(said)
    assert ("exitcode: 143" in end.stderr) == (do == "signal")


LOST = "error: another process has ended, or does not answer: python train.py --resume goes on"


@pytest.mark.parametrize("ranks", [[1], pytest.param([0], marks=pytest.mark.slow)])
def test_the_death_of_a_process_ends_all_with_one_line(place, ranks):
    end = ended(place, "kill", ranks)
    assert end.lines == [LOST]


@pytest.mark.slow  # torchrun gives a frozen process 30 seconds more
def test_a_frozen_process_ends_all_once_it_has_been_silent_for_too_long(place):
    end = ended(place, "freeze", [1], TEST_TIMEOUT="5")
    assert end.lines == [LOST]


def test_an_error_in_one_process_ends_all_with_its_line(place):
    end = ended(place, "raise", [1])
    assert end.lines == ["error: a bug of ours (process 1 of 2 LookupError)"]


@pytest.mark.slow
def test_a_nan_in_one_process_ends_all_alike(place):
    end = ended(place, "nan", [1])
    assert end.lines[0].startswith("error: training diverged (loss")
    assert end.stderr.count("exitcode  : 7") == 2


@pytest.mark.slow
def test_a_launcher_that_starts_again_goes_on_from_the_newest_checkpoint(home, place):
    fault = {"do": "kill", "ranks": [1], "step": 20, "only_first": True}
    training = {"output_dir": "run", "resume": True, "faults": [fault]}
    end = launch(2, training, options=("--max-restarts=2",))
    assert end.code == 0, end.stderr[-3000:]
    assert "no checkpoint is there yet: the run starts from its beginning" in end.stdout
    assert "resumed   run/model_checkpoint_step_18.pt at step 18 of 54" in end.stdout
    check_same_curve(place / "run", home / "alone")


def test_processes_that_differ_are_named_before_the_first_step(place):
    end = launch(2, {"output_dir": "run", "of_rank": [{}, {"eval_freq": 5}]})
    assert end.lines == [
        "error: the processes differ (eval_freq is 5 in process 1, 4 in process 0): start all of "
        "them with the same command, code and files"
    ]
    assert "exitcode  : 9" in end.stderr


@pytest.mark.parametrize(
    "environment",
    [{"WORLD_SIZE": "2"}, {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}],
)
def test_half_a_launch_is_a_line(monkeypatch, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ProcessesError, match=r"half a launch .no .*MASTER_PORT") as caught:
        train.train({})
    assert caught.value.exit_code == 9


def test_a_port_that_is_taken_is_a_line(place, run_python):
    with socket.create_server(("127.0.0.1", 0)) as server:
        launched = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        launched["MASTER_PORT"] = str(server.getsockname()[1])
        command = (Path(train.__file__), "--data", "data.txt")
        end = run_python(*command, folder=place, **launched)
    assert end.returncode == 9
    assert end.stderr.startswith("error: the processes cannot meet (127.0.0.1:")
    assert end.stderr.count("\n") == 1
