"""A disk that fails, or a process that ends, at the n-th operation that changes a file."""

import io
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tiny_run import tiny_state

from storage import checkpoint, run_folder


@contextmanager
def counted_operations(before: Callable[[int], None]) -> Iterator[list[str]]:
    """Calls `before(n)` ahead of each write, fsync, rename and deletion; yields their names."""
    names: list[str] = []

    def watched(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*arguments: Any, **options: Any) -> Any:
            names.append(name)
            before(len(names) - 1)
            return operation(*arguments, **options)

        return wrapper

    with pytest.MonkeyPatch.context() as patch:
        for name in ("write", "fsync", "replace", "unlink"):
            patch.setattr(os, name, watched(name, getattr(os, name)))
        patch.setattr(io, "BufferedWriter", lambda raw: raw)  # each write is one operation
        yield names


def next_generation(place: Path, step: int) -> None:
    """What a run does when a save is due: writes a checkpoint, drops the one before."""
    state = tiny_state(step)
    run_folder.save_step(place, state)
    run_folder.remove_old(place, run_id=state["run_id"], step=step, keep=1)


def newest_step(place: Path) -> int:
    """The step that a resume would go on from; CheckpointError if there is none."""
    path, state, _ = run_folder.newest_intact(place)
    assert path == checkpoint.step_path(place, state["step"])
    return state["step"]
