"""Starts of several processes, as torchrun makes them, for the tests."""

import json
import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psutil

TESTS = Path(__file__).parent
CHANGES = {"num_epochs": 17, "patience": 0, "eval_freq": 8, "save_freq": 9}  # with dropout
CHANGES["average_weights"] = "ema"
SECONDS = 280  # that any start may take on a busy machine


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
