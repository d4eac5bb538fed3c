"""A signal at any time ends the step, saves, and loses nothing; a second one ends at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def ends():
    """How the lives ended that tests/signal_lives.py has led."""
    done = subprocess.run(
        [sys.executable, str(TESTS / "signal_lives.py")],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout)


def test_every_signal_ends_with_its_code_in_every_place(ends):
    codes = {"SIGINT": 130, "SIGTERM": 143, "SIGHUP": 143}
    for name, end in ends.items():
        if not name.startswith("random"):
            assert end["code"] == codes[name.split()[0]], (name, end)


def test_signals_at_random_times_end_in_order(ends):
    random = [end for name, end in ends.items() if name.startswith("random")]
    # -15 and -1: the signal came while the process had not yet begun to train
    assert {end["code"] for end in random} <= {0, 130, 143, -15, -1, -2}
    assert sum(end["code"] in (130, 143) for end in random) >= 2  # not all came too late


def test_no_signal_shows_a_traceback_or_leaves_an_empty_checkpoint(ends):
    assert [name for name, end in ends.items() if end["traceback"] or end["empty"]] == []


def test_the_resumed_run_is_the_run_that_met_no_signal(ends):
    assert [name for name, end in ends.items() if not end["same"]] == []


def test_one_signal_costs_no_update(ends):
    assert [name for name, end in ends.items() if end["repeated"] and "twice" not in name] == []


def test_the_message_says_what_was_saved_and_how_to_go_on(ends):
    line = ends["SIGTERM in evaluation"]["last_line"]
    assert line.startswith("stopped: by SIGTERM") or "saved" in line
