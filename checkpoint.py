"""The file format of a trained model: save, find, verify, load."""

import platform
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from files import write_durably
from model import Transformer, build_transformer

FINAL_NAME = "final_trained_model.pt"
BEST_NAME = "best_model.pt"
STEP_NAME = re.compile(r"model_checkpoint_step_(0|[1-9][0-9]*)\.pt")
ARCHITECTURE = ("embedding_dim", "num_layers", "num_heads", "dropout", "ffn_hidden_dim")
EMBEDDING = "input_embedding.embedding.weight"


class CheckpointError(ValueError):
    """A file that is no intact checkpoint of this project."""

    exit_code = 4


def step_path(folder: Path, step: int) -> Path:
    return folder / f"model_checkpoint_step_{step}.pt"


def save(path: Path, state: dict[str, Any]) -> None:
    """Writes the state so that `torch.load(path)`'s safe default reads it: plain values only."""
    state = {**state, "versions": {"torch": str(torch.__version__), "python": python_version()}}
    write_durably(path, lambda file: torch.save(state, file))


def python_version() -> str:
    return platform.python_version()


def load(path: Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU; CheckpointError where a byte of it is wrong."""
    remedy = "choose another file, or train again"
    if not path.is_file():
        raise CheckpointError(f"no checkpoint ({path}): train one with python train.py")
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # torch.load checks no CRC
        if damaged:
            raise CheckpointError(f"damaged checkpoint ({path}, in {damaged}): {remedy}")
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except CheckpointError:
        raise
    except Exception as error:
        reason = f"not a readable checkpoint ({path}, {type(error).__name__}): {remedy}"
        raise CheckpointError(reason) from error
    keys = state.keys() if isinstance(state, dict) else ()
    missing = [key for key in ("config", "model_state_dict") if key not in keys]
    if missing:
        raise CheckpointError(
            f"not a checkpoint of this project ({path} lacks {missing}): {remedy}"
        )
    return state


def steps_in(folder: Path) -> list[int]:
    """The steps of the checkpoints in the folder by their names, ascending."""
    matches = [STEP_NAME.fullmatch(path.name) for path in folder.iterdir()]
    return sorted(int(match[1]) for match in matches if match)


def remove_old(folder: Path, *, run_id: str, keep: int, last_step: int) -> None:
    """Deletes the run's step checkpoints up to `last_step`, all but the newest `keep`.

    Later ones are there when a run was resumed from an older file; they do not count.
    """
    paths = [step_path(folder, step) for step in steps_in(folder) if step <= last_step]
    ours = [path for path in paths if run_id_of(path) == run_id]
    for path in ours[:-keep]:
        path.unlink()


def run_id_of(path: Path) -> str | None:
    """Which run wrote the checkpoint; None for a file that cannot be read."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["run_id"]
    except Exception:
        return None


def to_resume(folder: Path, resume: bool | str) -> Path:
    """The named checkpoint, or the newest of the folder."""
    if isinstance(resume, str):
        return Path(resume)
    steps = steps_in(folder)
    if not steps:
        raise CheckpointError(f"nothing to resume ({folder.resolve()}): start without --resume")
    return step_path(folder, steps[-1])


def check_same_run(
    path: Path, state: dict[str, Any], config: dict[str, Any], text_sha256: str
) -> None:
    """CheckpointError unless the state is of this architecture and this text."""
    old, new = state["config"], config
    differing = [key for key in ("seq_len", *ARCHITECTURE) if old[key] != new[key]]
    if differing:
        changes = ", ".join(f"{key} {old[key]} -> {new[key]}" for key in differing)
        raise CheckpointError(f"another architecture ({path}: {changes}): set it back to resume")
    if state["text_sha256"] != text_sha256:
        raise CheckpointError(
            f"another text ({path} is of {state['text_sha256'][:12]}, this is {text_sha256[:12]}): "
            "put the old text back, or start without --resume"
        )


def build_model(config: dict[str, Any], vocab_size: int) -> Transformer:
    """A fresh model of the config's architecture."""
    return build_transformer(
        input_vocab_size=vocab_size,
        input_seq_len=config["seq_len"],
        **{key: config[key] for key in ARCHITECTURE},
    )


def model_from(state: dict[str, Any]) -> Transformer:
    """The model that a checkpoint's state describes, in evaluation mode."""
    weights = state["model_state_dict"]
    with torch.device("meta"):  # the weights are assigned next, so none are drawn here
        model = build_model(state["config"], weights[EMBEDDING].size(0))
    model.load_state_dict(weights, assign=True)
    return model.eval()


def load_model(path: Path) -> Transformer:
    """The model in a checkpoint file, on the CPU and in evaluation mode."""
    state = load(path)
    try:
        return model_from(state)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"weights that do not fit their config ({path}): {error}"
        raise CheckpointError(reason) from error
