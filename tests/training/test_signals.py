"""A signal at any time ends the step, saves, and loses nothing; a second one ends at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent
CODES = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 143}


def lives(*options):
    """How the lives ended that tests/signal_lives.py has led."""
    done = subprocess.run(
        [sys.executable, str(TESTS / "signal_lives.py"), *options],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout)


def check_ends(ends):
    """Of every life: its code, no traceback, no empty file, no update lost or repeated."""
    for name, end in ends.items():
        if not name.startswith("random"):
            assert end["code"] == CODES[name.split()[0]], (name, end)
        assert not end["traceback"], (name, end)
        assert not end["empty"], (name, end)
        assert end["same"], (name, end)
        assert "twice" in name or not end["repeated"], (name, end)


def test_a_signal_in_any_place_ends_with_its_code_and_loses_nothing():
    ends = lives()
    assert len(ends) == 8
    check_ends(ends)
    line = ends["SIGTERM in evaluation"]["last_line"]
    assert line == "stopped: by SIGTERM before the first step, nothing to save"
    line = ends["SIGHUP in first step"]["last_line"]
    assert line.startswith("stopped: by SIGHUP after step 1, saved model_checkpoint_step_1.pt")
    assert "saved model_checkpoint_step_3.pt" in ends["SIGINT in saving"]["last_line"]
    assert "python train.py --resume goes on" in ends["SIGINT in saving"]["last_line"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_signal_in_every_place_and_at_random_times():
    ends = lives("--all")
    check_ends(ends)
    random = [end["code"] for name, end in ends.items() if name.startswith("random")]
    # below 0: the signal came while the process had not yet begun to train
    assert set(random) <= {0, 130, 143, -15, -1, -2}
