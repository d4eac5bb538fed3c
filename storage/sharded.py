"""A checkpoint in parts: a folder into which every process writes what it has of each tensor.

torch.distributed.checkpoint writes the parts. It would notice neither a flipped bit nor a file of
another step, and unpickles its own list of what lies where. So the hashes of all parts and that
list, as plain values, stand in one more file, written last and sealed as every model file is; and
the folder takes its name when it is whole.
"""

import io
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from storage import archive, checkpoint
from system.errors import NonFiniteError, OutputError
from system.files import as_path, file_sha256, part_path_of, remove, sync_folder
from system.process import describe

SUFFIX = ".sharded"
STATE_NAME = "state.pt"
MODEL, OPTIMIZER = "model_state_dict", "optimizer_state_dict"  # keys of a state in one file
ROWS, PARTS, PLACES = "row_of_token", "parts", "places"  # what a state in parts has instead
DTYPES = {str(dtype): dtype for dtype in checkpoint.FLOATS | checkpoint.WHOLE}


def step_path(folder: str | Path, step: int) -> Path:
    return checkpoint.step_path(folder, step).with_suffix(SUFFIX)


def save(path: Path, tensors: dict[str, Tensor], state: dict[str, Any], team: Any) -> None:
    """Every process writes its parts of the tensors, the first one what else there is.

    What goes wrong in one process is an OutputError in all of them, and nothing is left.
    """
    own = {name: getattr(t, "_local_tensor", t) for name, t in tensors.items()}
    if any(team.gather(checkpoint.not_finite(own))):
        raise NonFiniteError(f"the model diverged (nothing saved to {path}): lower learning_rate")
    part_path = as_path(team.gather(str(part_path_of(path)))[0])
    try:
        with agreed(team, path):
            places = write_parts(part_path, tensors)
        with agreed(team, path):
            names = team.share(sorted(os.listdir(part_path)))
            hashes = {name: file_sha256(part_path / name) for name in names}
        parts = {name: digest for some in team.gather(hashes) for name, digest in some.items()}
        with agreed(team, path):
            if team.is_first:
                checkpoint.save(part_path / STATE_NAME, {**state, PARTS: parts, PLACES: places})
                remove(path)
                os.replace(part_path, path)
                sync_folder(path.parent)
    except OutputError:
        if team.is_first:
            remove(part_path)
        raise


@contextmanager
def agreed(team: Any, path: Path) -> Iterator[None]:
    """Inside, each process does something; all of them go on, or none."""
    from torch.distributed.checkpoint.api import CheckpointException  # no Exception, says torch

    failure = ""
    try:
        yield
    except CheckpointException as error:
        failure = describe(next(iter(error.failures.values()))[0])
    except Exception as error:
        failure = describe(error)
    if failures := [said for said in team.gather(failure) if said]:
        raise OutputError(f"{failures[0]} ({path}): check the disk that all processes write to")


def write_parts(part_path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Writes the parts; returns each one's offsets in its tensor, and which bytes of which file."""
    import torch.distributed.checkpoint as dcp

    metadata = dcp.save(tensors, storage_writer=dcp.FileSystemWriter(part_path))
    places = {
        name: {"dtype": str(tensor.properties.dtype), "shape": list(tensor.size), "chunks": []}
        for name, tensor in metadata.state_dict_metadata.items()
    }
    for index, at in metadata.storage_data.items():
        chunk = [list(index.offset), at.relative_path, at.offset, at.length]
        places[index.fqn]["chunks"].append(chunk)
    return places


def load(path: str | Path) -> dict[str, Any]:
    """The state in a checkpoint of either form, as `checkpoint.load` has it."""
    path = as_path(path)
    if path.suffix != SUFFIX or not path.is_dir():
        return checkpoint.load(path)
    with checkpoint.refusing_damage(path):
        state_path = path / STATE_NAME
        with state_path.open("rb") as file:
            archive.check(file)
            file.seek(0)
            state = torch.load(file, map_location="cpu", weights_only=True)
        places, rows = state.pop(PLACES), state.pop(ROWS)
        num_bytes = check_parts(path, state.pop(PARTS)) + state_path.stat().st_size
        tensors = read_parts(path, places, num_bytes=num_bytes)
        state[MODEL], state[OPTIMIZER] = {}, {}
        for (kind, *number, name), tensor in ((n.split("|"), t) for n, t in tensors.items()):
            holder = state[kind].setdefault(int(number[0]), {}) if number else state[kind]
            holder[name] = tensor
        checkpoint.check_state(state, num_bytes=num_bytes)
        if checkpoint.BASE not in state:
            state[MODEL][checkpoint.EMBEDDING] = state[MODEL][checkpoint.EMBEDDING][rows]
    return state


def glance(path: str | Path) -> tuple[str, int]:
    """Which run wrote the checkpoint and at which step, without reading its weights."""
    path = as_path(path)
    return checkpoint.glance(path / STATE_NAME if path.suffix == SUFFIX else path)


def check_parts(path: Path, parts: dict[str, str]) -> int:
    """The bytes of all parts; ValueError names one that is missing, strange or not as written."""
    present = set(os.listdir(path)) - {STATE_NAME}
    if differing := present ^ parts.keys():
        name = min(differing)
        raise ValueError(f"part {name} is " + ("not of this checkpoint", "missing")[name in parts])
    for name, digest in parts.items():
        if file_sha256(path / name) != digest:
            raise ValueError(f"part {name} is not what was written")
    return sum((path / name).stat().st_size for name in parts)


def read_parts(path: Path, places: dict[str, Any], *, num_bytes: int) -> dict[str, Tensor]:
    """The tensors, put together; `places` is checked to lie within so many bytes."""
    claimed = sum(math.prod(p["shape"]) * DTYPES[p["dtype"]].itemsize for p in places.values())
    if claimed > num_bytes:
        raise ValueError(f"its tensors claim {claimed:,} of {num_bytes:,} bytes")
    tensors = {}
    for name, place in places.items():
        tensors[name] = torch.empty(place["shape"], dtype=DTYPES[place["dtype"]])
        for offsets, *_, file_name, start, length in place["chunks"]:
            with (path / Path(file_name).name).open("rb") as file:
                file.seek(start)
                content = io.BytesIO(file.read(length))
            part = torch.load(content, map_location="cpu", weights_only=True)
            where = zip(offsets, part.shape, strict=True)
            tensors[name][tuple(slice(start, start + size) for start, size in where)] = part
    return tensors
