"""The processes that train together: one alone, or those that a launcher such as torchrun started.

What knows a rank is here and in team.py. This half brings no torch, which `--help` need not wait
for.
"""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any

from system.errors import ProcessesError

if TYPE_CHECKING:
    from training.team import Team

GIVEN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # to each process by its launcher


class Alone:
    """A single process: it has all the rows, writes the files, and agrees with itself."""

    size, is_first, is_launched = 1, True, False
    is_started_again = may_start_again = False
    agree = None  # on a signal: it is raised where it comes

    def __str__(self) -> str:
        return ""

    def by_first(self, context: AbstractContextManager) -> AbstractContextManager:
        """A context that the first process alone enters."""
        return context

    def start(self, device: str) -> str:
        """Opens the channels; returns the name of this process's device."""
        return device

    def part(self) -> None:
        """Closes the channels: what follows, the first process does by itself."""

    def share(self, rows: Any) -> Any:
        """Of rows of the global batch those of this process."""
        return rows

    def sum(self, value: Any) -> Any:
        """The sum of a tensor over all processes, in each of them."""
        return value

    def highest(self, number: int) -> int:
        """The highest number that a process gave, in each of them: how they agree."""
        return number

    def gather(self, value: Any) -> list[Any]:
        """The plain values that all processes gave, in the order of their ranks."""
        return [value]


ALONE = Alone()


@contextmanager
def joined() -> Iterator["Alone | Team"]:
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
