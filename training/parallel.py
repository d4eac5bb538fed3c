"""Training in several processes: not yet, so a launcher of several is told."""

import os

from system.errors import ProcessesError


def check_alone() -> None:
    """ProcessesError if a launcher such as torchrun has started this process as one of several."""
    num_processes = os.environ.get("WORLD_SIZE", "1")
    if num_processes != "1":
        raise ProcessesError(
            f"several processes cannot train together yet (WORLD_SIZE={num_processes}): "
            "start one with python train.py"
        )
