"""Whatever ends one of several processes ends all of them, with one line and one code."""

import socket
from pathlib import Path
from typing import Any

import pytest
from launching import End, launch

import train
from storage import checkpoint, sharded
from system.errors import ProcessesError


def ended(folder: Path, do: str, ranks: list[int], *, parallel: str = "ddp", **more: Any) -> End:
    """How two processes end if one of them meets the fault ahead of update 7."""
    fault = {"do": do, "ranks": ranks, "step": 7, "how": more.pop("how", {})}
    changes = {"output_dir": "run", "save_freq": 3, "parallel": parallel, "faults": [fault]}
    end = launch(2, changes, **more)
    assert end.code != 0
    assert len(end.lines) == 1, end.stderr[-3000:]
    steps = [sharded.glance(path)[1] for path in (folder / "run").glob("*_step_*")]
    assert max(steps) == (8 if "signal" in do else 6)
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


@pytest.mark.slow  # nine seconds of training
def test_all_processes_stop_when_the_time_of_the_first_is_up(place):
    falling = {"lr_schedule": "linear", "lr_min_ratio": 0.0, "warmup_steps": 0}
    end = launch(2, {"output_dir": "run", "max_minutes": 0.15, "num_epochs": 1, **falling})
    assert end.code == 0, end.stderr[-3000:]
    updates = {len(path.read_text().splitlines()) for path in Path("run").glob("rows-*.log")}
    assert len(updates) == 1
    history = checkpoint.load(Path("run") / checkpoint.FINAL_NAME)["history"]
    rates = history["learning_rates"].tolist()
    assert rates[-1] < 0.5 * rates[0]


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
def test_memory_that_runs_out_in_an_exchange_of_weights_ends_all(place):
    end = ended(place, "full", [1], parallel="fsdp", how={"when": "forward", "part": "blocks.0"})
    assert end.lines[0].startswith("error: out of memory with one window at a time")
    assert end.lines[0].endswith("then --resume (process 1 of 2)")
    assert "exitcode  : 8" in end.stderr


def test_processes_that_differ_are_named_before_the_first_step(place):
    end = launch(2, {"output_dir": "run", "of_rank": [{}, {"eval_freq": 5}]})
    assert end.lines == [
        "error: the processes differ (eval_freq is 5 in process 1, 8 in process 0): start all of "
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
