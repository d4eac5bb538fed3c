"""Whose files a folder holds: which to keep, which to go on from, which to set aside.

A run has an id, drawn at its start and kept in each of its files. `.run_id` names the run that a
folder holds, so that nothing ever continues, counts or deletes the files of another one.
"""

import math
import os
import re
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any

from storage.checkpoint import BEST_NAME, FINAL_NAME, STEP_NAME, save, step_path
from storage.sharded import glance, load
from system.errors import CheckpointError
from system.files import as_path, remove, sync_folder, write_durably

RUN_ID_NAME = ".run_id"
RUN_ID = re.compile(r"[0-9a-f]{32}")
PLOT_NAME = "training_losses.png"
COMPARISON_NAME = "sampling_comparison.png"
REPORT_NAME = "report.html"
HISTORY_NAME = "history.jsonl"
ADAPTER_NAME = "adapter"  # a folder, in the form of the peft library
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
HISTORY_OWNER = re.compile(rb'\{"run_id": "([0-9a-f]{32})"')  # how its first line begins
EARLIER_NAME = "earlier_runs"


def claim(folder: str | Path, run_id: str) -> None:
    """Notes that the folder holds this run from now on."""
    write_durably(as_path(folder) / RUN_ID_NAME, lambda file: file.write(run_id.encode()))


def claimed_by(folder: str | Path) -> str | None:
    """The run that the folder holds, None where nobody has noted it."""
    path = as_path(folder) / RUN_ID_NAME
    run_id = path.read_bytes().decode("latin-1") if path.is_file() else ""
    return run_id if RUN_ID.fullmatch(run_id) else None


def owner_of(path: Path) -> str | None:
    """The run that wrote a model file, None where the file does not tell."""
    try:
        run_id, _ = glance(path)
    except (CheckpointError, OSError):
        return None
    return run_id if RUN_ID.fullmatch(run_id) else None


def owner_of_history(path: Path) -> str | None:
    """The run that wrote a history; None for another file of that name, or none."""
    with suppress(OSError), path.open("rb") as file:
        if match := HISTORY_OWNER.match(file.read(64)):
            return match[1].decode()
    return None


def adapter_metadata(folder: Path) -> dict[str, str]:
    """What a run noted in its adapter's file, {} where there is no such file or note."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / ADAPTER_WEIGHTS, framework="pt") as opened:
            return opened.metadata() or {}
    except (OSError, SafetensorError):
        return {}


def owners_in(folder: str | Path) -> dict[Path, str | None]:
    """The run that each of the files in the folder belongs to which runs write, None if unknown."""
    folder = as_path(folder)
    present = sorted((path.name for path in folder.iterdir()), key=lambda name: (len(name), name))
    models = {
        name: owner_of(folder / name)
        for name in present  # the best, the final one, and the steps in their order
        if name in (BEST_NAME, FINAL_NAME) or STEP_NAME.fullmatch(name)
    }
    run_id = claimed_by(folder) or models.get(FINAL_NAME)
    owners = {PLOT_NAME: run_id, COMPARISON_NAME: run_id, **models}
    if history_owner := owner_of_history(folder / HISTORY_NAME):  # else a file of the user's
        owners[HISTORY_NAME] = history_owner
    if adapter_owner := adapter_metadata(folder / ADAPTER_NAME).get("run_id"):  # else the user's
        owners[ADAPTER_NAME] = adapter_owner
    owners |= {REPORT_NAME: run_id, RUN_ID_NAME: run_id} if run_id else {}
    return {folder / name: owner for name, owner in owners.items() if name in present}


def checkpoints_in(folder: str | Path) -> tuple[dict[Path, tuple[str, int]], list[str]]:
    """Run id and step in each step checkpoint, in the order of steps; what is wrong with others."""
    readable, damages = {}, []
    paths = [path for path in as_path(folder).iterdir() if STEP_NAME.fullmatch(path.name)]
    for path in sorted(paths):
        try:
            readable[path] = glance(path)
        except (CheckpointError, OSError) as error:
            if os.path.lexists(path):  # else somebody has just deleted it
                damages.append(str(error))
    return dict(sorted(readable.items(), key=lambda item: item[1][1])), damages


def models_in(folder: str | Path) -> list[Path]:
    """The model files of the run that the folder holds, the newest first, by the steps inside.

    The final model, whose step is that of the best evaluation, is newer than all, unless a resumed
    run has written since.
    """
    run_id, found = claimed_by(folder), {}
    for path in as_path(folder).iterdir():
        is_model = path.name in (BEST_NAME, FINAL_NAME) or STEP_NAME.fullmatch(path.name)
        with suppress(CheckpointError, OSError):  # damaged, or gone by now
            owner, step = glance(path) if is_model and path.is_file() else (None, 0)
            if owner and run_id in (owner, None):
                found[path] = (step, path.stat().st_mtime_ns)
    latest = max((written for _, written in found.values()), default=0)

    def age(path: Path) -> tuple[bool, int, str]:
        step, written = found[path]
        return path.name == FINAL_NAME and written == latest, step, path.name

    return sorted(found, key=age, reverse=True)


def of_run(folder: str | Path, run_id: str | None, *, up_to: float = math.inf) -> list[Path]:
    """The readable checkpoints of the run up to a step, in the order of the step inside them."""
    readable, _ = checkpoints_in(folder)
    return [path for path, (owner, step) in readable.items() if owner == run_id and step <= up_to]


def set_aside(folder: str | Path, run_id: str) -> Path | None:
    """Moves what other runs left in the folder, and returns where to; None for nothing.

    Each run gets `earlier_runs/<start of its id>`, files that name no run `earlier_runs/unknown`.
    Where there are several, it is the place of the run that the folder held. Each move is a rename
    to a name that is free. The note of the run's id goes last: after a crash the next start finds
    what is left, and where the rest has gone.
    """
    folder, held = as_path(folder), claimed_by(folder)
    owners = owners_in(folder)
    places = {
        owner: _move_aside(folder, owner, [path for path in owners if owners[path] == owner])
        for owner in dict.fromkeys(owners.values())
        if owner != run_id
    }
    return places.get(held, next(iter(places.values()), None))


def _move_aside(folder: Path, owner: str | None, paths: list[Path]) -> Path:
    """Puts the run's files into one folder: the first that holds no other files of their names."""
    name = owner[:8] if owner else "unknown"
    for number in count(1):
        place = folder / EARLIER_NAME / (name if number == 1 else f"{name}-{number}")
        taken = [place / RUN_ID_NAME, *(place / path.name for path in paths)]
        if not any(map(os.path.lexists, taken)):
            break
    place.mkdir(parents=True, exist_ok=True)
    for path in paths:
        with suppress(FileNotFoundError):  # somebody has just deleted it
            path.rename(place / path.name)
    sync_folder(place)
    sync_folder(folder)
    return place


def save_step(folder: str | Path, state: dict[str, Any]) -> Path:
    """Saves a step checkpoint; another run's file of that name is set aside."""
    path = step_path(folder, state["step"])
    free(path, state["run_id"])
    save(path, state)
    return path


def free(path: Path, run_id: str) -> None:
    """Sets the step checkpoint of that name aside if it is another run's."""
    owner = owner_of(path)
    if owner not in (None, run_id):
        _move_aside(path.parent, owner, [path])


def remove_old(folder: str | Path, *, run_id: str, step: int, keep: int) -> None:
    """Deletes the run's step checkpoints, all but the newest `keep` up to `step`, a verified one.

    A later one is a damaged file that a resume has skipped: it counts for nothing.
    """
    for path in of_run(folder, run_id, up_to=step)[:-keep]:
        remove(path)


def unfinished(folder: str | Path) -> Path | None:
    """The newest checkpoint of the run that the folder holds, None where that run has ended."""
    run_id = claimed_by(folder)
    is_over = owner_of(as_path(folder) / FINAL_NAME) == run_id
    return None if is_over else next(reversed(of_run(folder, run_id)), None)


def newest_intact(folder: str | Path) -> tuple[Path, dict[str, Any], list[str]]:
    """The folder's run: its newest intact checkpoint and state, and what is wrong with newer ones.

    CheckpointError if there is none; a run is never started from scratch in its place.
    """
    folder = as_path(folder)
    readable, damages = checkpoints_in(folder)
    if not readable and not damages:
        raise CheckpointError(f"nothing to resume ({folder.resolve()}): start without --resume")
    run_ids = {run_id for run_id, _ in readable.values()}
    run_id = claimed_by(folder) or (min(run_ids) if len(run_ids) == 1 else None)
    if run_ids and run_id not in run_ids:
        names = ", ".join(path.name for path in readable)
        raise CheckpointError(
            f"only checkpoints of other runs ({folder.resolve()}: {names}): "
            "name the one to go on from with --resume PATH, or start without --resume"
        )
    for path in reversed(readable):
        if readable[path][0] == run_id:
            try:
                return path, load(path), damages
            except (CheckpointError, OSError) as error:
                damages.append(str(error))
    reasons = "; ".join(damages)
    raise CheckpointError(f"no intact checkpoint left ({reasons}): start afresh without --resume")


def is_overtaken(folder: str | Path, state: dict[str, Any]) -> bool:
    """Whether the folder has a later checkpoint of the state's run than the state."""
    run_id = state["run_id"]
    return of_run(folder, run_id) != of_run(folder, run_id, up_to=state["step"])
