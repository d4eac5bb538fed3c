"""What the kernel refuses, or the last thing it does: the old or the new checkpoint loads."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from faulty_disk import newest_step

from system import files

TESTS = Path(__file__).parent.parent
NUM_GENERATIONS = 4
SAVES = (
    "from pathlib import Path; from faulty_disk import next_generation\n"
    f"for step in range(1, {NUM_GENERATIONS + 1}): next_generation(Path(), step)"
)
CALLS = {  # call -> how often a save makes it
    "fsync": 2,  # of the file, of the folder
    "rename,renameat,renameat2": 1,
    "unlink,unlinkat": 1,
}


def saved_under(place: Path, calls: str, injection: str) -> subprocess.CompletedProcess:
    """A process that saves some generations and meets the fault."""
    tracing = ["strace", "-f", "-qq", "-o", os.devnull, "-e", f"trace={calls}"]
    return subprocess.run(
        [*tracing, "-e", f"inject={calls}:{injection}", sys.executable, "-c", SAVES],
        cwd=place,
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]),
            "PYTHONDONTWRITEBYTECODE": "1",  # its renames are not those of a save
        },
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
@pytest.mark.parametrize("calls", CALLS)
@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO", "error=ENOSPC"])
def test_a_fault_in_the_kernel_leaves_the_old_or_the_new_checkpoint(tmp_path, calls, fault):
    if saved_under(tmp_path, calls, "error=EIO:when=10000").returncode != 0:
        pytest.skip("no permission to trace processes here")
    for number in range(1, CALLS[calls] * (NUM_GENERATIONS - 1) + 1):
        place = tmp_path / str(number)
        place.mkdir()
        done = saved_under(place, calls, f"{fault}:when={number}")
        # the first save is call 1 and 2 of fsync, 1 of rename; the first deletion is in the second
        completed = (number - 1) // CALLS[calls] + (calls == "unlink,unlinkat")
        assert done.returncode != 0, done.stderr
        files.sweep_parts(place)
        assert not list(place.glob(".*part"))
        if completed:
            assert newest_step(place) in (completed, completed + 1)
