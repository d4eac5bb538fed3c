"""Kills and signals at any moment lose little or nothing, and change no bit of the result."""

import json
from pathlib import Path

import pytest

import train

CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 143}


@pytest.fixture
def report_of(tmp_path, run_python):
    """What a script of tests/ prints as JSON; it forks, so it needs a process of its own."""

    def run(script, *options):
        tests = Path(train.__file__).parent / "tests"
        done = run_python(tests / script, *options, folder=tmp_path, TMPDIR=str(tmp_path))
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)

    return run


def check_ends(ends):
    """Of every life: its code, no traceback, no empty file, no update lost or repeated."""
    for name, end in ends.items():
        if not name.startswith("random"):
            assert end["code"] == CODES[name.split()[0]], (name, end)
        assert end["same"], (name, end)
        assert not end["traceback"] | end["empty"], (name, end)
        assert "twice" in name or not end["repeated"], (name, end)


def test_30_kills_and_one_before_each_operation_of_a_save_leave_the_same_bits(report_of):
    report = report_of("kill_loop.py", "--kills", "30")
    assert report["kills"] >= 30
    assert report["old"] > 20  # the operations of a save before it takes effect
    assert report["new"] > 0


def test_a_killed_tuning_of_adapters_leaves_the_same_bits(report_of):
    lora = {"adapter": "lora", "lora_rank": 2, "lora_dropout": 0.2, "average_weights": "ema"}
    report = report_of("kill_loop.py", "--kills", "5", "--changes", json.dumps(lora))
    assert report["kills"] >= 5


def test_a_signal_in_any_place_ends_with_its_code_and_loses_nothing(report_of):
    ends = report_of("signal_lives.py")
    assert len(ends) == 8
    check_ends(ends)
    line = ends["SIGTERM in evaluation"]["last_line"]
    assert line == "stopped: by SIGTERM before the first step, nothing to save"
    line = ends["SIGHUP in first step"]["last_line"]
    assert line.startswith("stopped: by SIGHUP after step 1, saved model_checkpoint_step_1.pt")
    assert "saved model_checkpoint_step_3.pt" in ends["SIGINT in saving"]["last_line"]
    assert "python train.py --resume goes on" in ends["SIGINT in saving"]["last_line"]


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_10_000_kills_at_random_times_leave_the_same_bits(report_of):
    assert report_of("kill_loop.py", "--kills", "10000", "--seed", "2")["kills"] >= 10_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_signal_in_every_place_and_at_random_times(report_of):
    ends = report_of("signal_lives.py", "--all")
    check_ends(ends)
    random = [end["code"] for name, end in ends.items() if name.startswith("random")]
    # below 0: the signal came while the process had not yet begun to train
    assert set(random) <= {0, 130, 143, -15, -1, -2}
