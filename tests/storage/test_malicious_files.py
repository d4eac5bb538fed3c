"""No file can make Python run, open or fetch anything, or take memory beyond its size."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from malicious_files import good, write_all

TESTS = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def loading(tmp_path_factory):
    """What the loading of all the files did, in a process of its own."""
    place = tmp_path_factory.mktemp("malicious")
    good_path = tmp_path_factory.mktemp("good") / "good.pt"
    good_path.write_bytes(good())
    counts = write_all(place)
    work = tmp_path_factory.mktemp("work")
    done = subprocess.run(
        [sys.executable, str(TESTS / "load_malicious.py"), str(place), str(good_path)],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        cwd=work,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return {**json.loads(done.stdout), "counts": counts, "left": os.listdir(work)}


def test_every_malicious_file_is_refused_and_nothing_was_run_opened_or_fetched(loading):
    assert len(loading["verdicts"]) == sum(loading["counts"].values())
    taken = [name for name, verdict in loading["verdicts"].items() if verdict == "loaded"]
    assert taken == []
    assert loading["events"] == []
    assert loading["left"] == []


def test_memory_stays_below_the_largest_file_and_a_model(loading):
    assert loading["megabytes"] < 100  # the bombs would need 200 MB, the shapes 40 GB


def test_the_function_that_a_pickle_asks_for_is_named(loading):
    assert "os system" in loading["verdicts"]["pickle os system.pt"]
    assert "nothing was run" in loading["verdicts"]["pickle in a dict.pt"]
