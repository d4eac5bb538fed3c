"""Ends a process before the n-th file operation of a save, for every n, and looks what is left."""

import json
import os
import tempfile
from pathlib import Path

import torch
from faulty_disk import counted_operations, newest_step, next_generation

from system import files


def die_at(last: int) -> bool:
    """Whether a child that saves generation 2 gets further than its operation `last`."""
    child = os.fork()
    if child:
        return os.waitpid(child, 0)[1] == 0
    with counted_operations(lambda n: os._exit(1) if n == last else None):
        next_generation(Path(), 2)
    os._exit(0)


def main() -> None:
    torch.set_num_threads(1)
    num_operations, left = 0, []
    is_finished = False
    while not is_finished:
        os.chdir(tempfile.mkdtemp())
        next_generation(Path(), 1)
        is_finished = die_at(num_operations)
        if not is_finished:
            num_operations += 1
            left.append(newest_step(Path()))
            files.sweep_parts(Path())
            assert not list(Path().glob(".*part"))
    print(json.dumps({"operations": num_operations, "old": left.count(1), "new": left.count(2)}))


if __name__ == "__main__":
    main()
