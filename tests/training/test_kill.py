"""SIGKILL at any moment costs at most the save interval and changes no bit of the result."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parent.parent


def report_of(script: str, *options: str) -> dict[str, int]:
    """What a script beside this file prints as JSON; it forks, so it needs a process of its own."""
    command = [sys.executable, str(TESTS / script), *options]
    environment = {**os.environ, "PYTHONPATH": str(TESTS.parent)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


def test_30_kills_at_random_times_leave_the_same_bits():
    report = report_of("kill_loop.py", "--kills", "26")
    assert report["kills"] >= 26
    report = report_of("kill_loop.py", "--kills", "4", "--plots", "--seed", "1")
    assert report["kills"] >= 4


def test_the_end_before_any_operation_of_a_save_leaves_the_old_or_the_new_file():
    report = report_of("kill_operations.py")
    assert report["operations"] >= 30
    assert report["old"] + report["new"] == report["operations"]
    assert report["old"] > 0
    assert report["new"] > 0


@pytest.mark.slow
@pytest.mark.timeout(4 * 3600)
def test_10_000_kills_at_random_times_leave_the_same_bits():
    assert report_of("kill_loop.py", "--kills", "10000", "--seed", "2")["kills"] >= 10_000
