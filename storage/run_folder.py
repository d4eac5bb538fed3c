"""Whose checkpoints a folder holds: the run's own files, which to keep, which to go on from.

A run has an id, drawn at its start and kept in each of its files. `.run_id` names the run that a
folder holds, so that nothing ever continues, counts or deletes the files of another one.
"""

import math
import re
from pathlib import Path
from typing import Any

from storage.checkpoint import FINAL_NAME, STEP_NAME, glance, load, save, step_path
from system.errors import CheckpointError
from system.files import write_durably

RUN_ID_NAME = ".run_id"
RUN_ID = re.compile(r"[0-9a-f]{32}")


# ---------------------------------------------------------------- whose files


def claim(folder: Path, run_id: str) -> None:
    """Notes that the folder holds this run from now on."""
    write_durably(folder / RUN_ID_NAME, lambda file: file.write(run_id.encode()))


def claimed_by(folder: Path) -> str | None:
    """The run that the folder holds, None where nobody has noted it."""
    path = folder / RUN_ID_NAME
    run_id = path.read_bytes().decode("latin-1") if path.is_file() else ""
    return run_id if RUN_ID.fullmatch(run_id) else None


def checkpoints_in(folder: Path) -> tuple[dict[Path, tuple[str, int]], dict[Path, Exception]]:
    """The step checkpoints: run id and step of the readable ones, what is wrong with the others."""
    readable, damaged = {}, {}
    for path in sorted(folder.iterdir()):
        if STEP_NAME.fullmatch(path.name):
            try:
                readable[path] = glance(path)
            except (CheckpointError, OSError) as error:
                damaged[path] = error
    return readable, damaged


def of_run(folder: Path, run_id: str | None, *, up_to: float = math.inf) -> list[Path]:
    """The readable checkpoints of the run up to a step, in the order of the step inside them."""
    readable, _ = checkpoints_in(folder)
    ours = [path for path, (owner, step) in readable.items() if owner == run_id and step <= up_to]
    return sorted(ours, key=lambda path: readable[path][1])


def save_beside_others(folder: Path, state: dict[str, Any]) -> Path:
    """Saves a step checkpoint; another run's file of that name is kept under another name."""
    path = step_path(folder, state["step"])
    try:
        owner, _ = glance(path)
    except (CheckpointError, OSError):
        owner = state["run_id"]
    if owner != state["run_id"]:
        path.rename(path.with_name(f"{path.stem}_of_run_{owner[:8]}.pt"))
    save(path, state)
    return path


def remove_old(folder: Path, *, run_id: str, step: int, keep: int) -> None:
    """Deletes the run's step checkpoints, all but the newest `keep` up to `step`, a verified one.

    A later one is a damaged file that a resume has skipped: it counts for nothing.
    """
    for path in of_run(folder, run_id, up_to=step)[:-keep]:
        path.unlink()


def unfinished(folder: Path) -> Path | None:
    """The newest checkpoint of the run that the folder holds, None where that run has ended."""
    paths = of_run(folder, claimed_by(folder))
    try:
        ended, _ = glance(folder / FINAL_NAME)
    except (CheckpointError, OSError):
        ended = None
    return paths[-1] if paths and ended != claimed_by(folder) else None


# ---------------------------------------------------------------- which one goes on


def newest_intact(folder: Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The folder's run: its newest intact checkpoint and state, and what is wrong with newer ones.

    CheckpointError if there is none; a run is never started from scratch in its place.
    """
    readable, damaged = checkpoints_in(folder)
    if not readable and not damaged:
        raise CheckpointError(f"nothing to resume ({folder.resolve()}): start without --resume")
    ours = sorted(readable, key=lambda path: readable[path][1], reverse=True)
    run_id = the_run(folder, {owner for owner, _ in readable.values()}, ours)
    for path in ours:
        if readable[path][0] == run_id:
            try:
                return path, load(path), [" ".join(str(e).split()) for e in damaged.values()]
            except (CheckpointError, OSError) as error:
                damaged[path] = error
    reasons = "; ".join(f"{error}" for error in damaged.values())
    raise CheckpointError(f"no intact checkpoint left ({reasons}): start afresh without --resume")


def the_run(folder: Path, run_ids: set[str], paths: list[Path]) -> str | None:
    """The run to go on with; CheckpointError where only the user can tell."""
    claimed = claimed_by(folder)
    if claimed is None and len(run_ids) <= 1:
        return next(iter(run_ids), None)
    if claimed is None or (run_ids and claimed not in run_ids):
        names = ", ".join(path.name for path in paths)
        raise CheckpointError(
            f"only checkpoints of other runs ({folder.resolve()}: {names}): "
            "name the one to go on from with --resume PATH, or start without --resume"
        )
    return claimed


def is_overtaken(folder: Path, state: dict[str, Any]) -> bool:
    """Whether the folder has a later checkpoint of the state's run than the state."""
    readable, _ = checkpoints_in(folder)
    return any(
        owner == state["run_id"] and step > state["step"] for owner, step in readable.values()
    )
