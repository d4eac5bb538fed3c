"""The start of a training: by one process alone, or by those that a launcher has started.

It brings no torch, which `--help` need not wait for.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from system.errors import ProcessesError
from training.processes import ALONE, Processes

GIVEN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # to each process by its launcher


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes of this training, all of them ready to talk to each other.

    Whatever ends one of them inside ends all, with one line and one exit code.
    """
    if not is_launched():
        yield ALONE
        return
    if missing := [name for name in GIVEN if not os.environ.get(name)]:
        raise ProcessesError(
            f"half a launch (no {', '.join(missing)} in the environment): start several processes "
            "with torchrun --nproc_per_node=N train.py, or one with python train.py"
        )
    from training.team import Team

    with Team.met() as team:
        yield team


def is_launched() -> bool:
    """Whether a launcher started this process, perhaps as the only one."""
    return "RANK" in os.environ or os.environ.get("WORLD_SIZE", "1") != "1"
