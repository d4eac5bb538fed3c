"""What processes that train together can do, in the case of a single one (team.py: several)."""

from contextlib import AbstractContextManager
from typing import Any


class Processes:
    """Those of one training; here a single one, which has all the rows and agrees with itself."""

    rank, size, is_first, is_launched = 0, 1, True, False
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
        """Of rows of the global batch those of this process: as even as the number allows."""
        return rows[len(rows) * self.rank // self.size : len(rows) * (self.rank + 1) // self.size]

    def sum(self, value: Any) -> Any:
        """The sum of a tensor over all processes, in each of them."""
        return value

    def highest(self, number: int) -> int:
        """The highest number that a process gave, in each of them: how they agree."""
        return number

    def gather(self, value: Any) -> list[Any]:
        """The plain values that all processes gave, in the order of their ranks."""
        return [value]


ALONE = Processes()
