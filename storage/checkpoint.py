"""The file format of a trained model: save, verify, load."""

import math
import os
import platform
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from adapters.lora import adapt, adapter_weights
from model import Transformer, build_transformer
from storage import archive, streamed
from system.errors import CheckpointError, NonFiniteError, OutputError
from system.files import as_path, named, stamp_of, write_durably
from system.process import note

FINAL_NAME = "final_trained_model.pt"
BEST_NAME = "best_model.pt"
STEP_NAME = re.compile(r"model_checkpoint_step_(0|[1-9][0-9]*)\.(pt|sharded)")
ARCHITECTURE = ("embedding_dim", "num_layers", "num_heads", "dropout", "ffn_hidden_dim")
BASE = "base_id"  # in a file of adapters: what they stand beside, as adapters.lora.base_id has it
MOST_LAYERS = 256  # of a model of which a file has adapters alone
EMBEDDING = "input_embedding.embedding.weight"
FLOATS = {torch.float32, torch.float64, torch.bfloat16, torch.float16}
WHOLE = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool}
PLAIN = {str, int, float, bool, type(None)}
VERSIONS = {"torch": str(torch.__version__), "python": platform.python_version()}
DRAWS = {Tensor.normal_, Tensor.uniform_, init.normal_, init.uniform_, init.kaiming_uniform_}


def step_path(folder: str | Path, step: int) -> Path:
    return as_path(folder) / f"model_checkpoint_step_{step}.pt"


def save(path: str | Path, state: dict[str, Any]) -> None:
    """Writes the state so that `torch.load(path)`'s safe default reads it: plain values only.

    TypeError names anything else. Nothing that is not finite is written, and the file is read back
    before it takes its name.
    """
    for name, leaf in leaves(state):
        if not isinstance(leaf, Tensor | streamed.Later) and type(leaf) not in PLAIN:
            raise TypeError(f"{name} is a {type(leaf)}: only tensors and plain values can be saved")

    def check(part: Any) -> None:
        if broken := not_finite(part):
            raise NonFiniteError(
                f"the model diverged ({broken} is not finite, nothing saved to {path}): "
                "lower learning_rate and resume from the last checkpoint"
            )

    check(state)
    state = {**state, "versions": VERSIONS}
    is_streamed = any(isinstance(leaf, streamed.Later) for _, leaf in leaves(state))
    write = partial(streamed.save, check=check) if is_streamed else torch.save
    write_durably(path, partial(write, state), verify=check_written)


def check_written(path: Path) -> None:
    """OutputError unless the file holds what was meant."""
    try:
        with refusing_damage(path), path.open("rb") as file:
            archive.check(file)
    except CheckpointError as error:
        raise OutputError(f"the disk garbled what was written: {error}") from error


def load(path: str | Path) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU; CheckpointError where a byte of it is wrong.

    A folder means the final model in it.
    """
    path = as_path(path)
    path = path / FINAL_NAME if path.is_dir() else path
    if not path.is_file():
        kind = "no checkpoint" if not os.path.lexists(path) else "no file, or a link to nothing"
        raise CheckpointError(f"{kind} ({path}): train one with python train.py")
    with refusing_damage(path), path.open("rb") as file:
        archive.check(file)
        file.seek(0)
        state = torch.load(file, map_location="cpu", weights_only=True)
        check_state(state, num_bytes=path.stat().st_size)
    written_by = state.get("versions", VERSIONS).get("torch")
    if written_by != VERSIONS["torch"]:
        note(f"notice: {path} was written by torch {written_by}, this is {VERSIONS['torch']}")
    return state


def glance(path: str | Path) -> tuple[str, int]:
    """Which run wrote the checkpoint and at which step, without reading its weights."""
    path = as_path(path)
    with refusing_damage(path):
        return _glanced(path, *stamp_of(path))


@lru_cache(maxsize=64)
def _glanced(path: Path, *stamp: int) -> tuple[str, int]:
    """The same, once for each file: a run looks at all its checkpoints whenever it saves."""
    with path.open("rb") as file:
        archive.check(file, only_pickle=True)
    state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    run_id, step = state["run_id"], state["step"]
    if not (isinstance(run_id, str) and isinstance(step, int)):
        raise ValueError("its run_id and step are no text and number")
    return run_id, step


@contextmanager
def refusing_damage(path: Path) -> Iterator[None]:
    """Inside, whatever the file's bytes do to their reader is a CheckpointError."""
    try:
        with named(path):
            yield
    except OSError:
        raise
    except Exception as error:
        reason = str(error) if isinstance(error, ValueError) else f"unreadable, {error!r}"
        raise CheckpointError(
            f"not an intact checkpoint ({path}: {' '.join(reason.split())[:300]}): "
            "choose another file, or train again"
        ) from error


def check_state(state: Any, *, num_bytes: int) -> None:
    """ValueError unless the state is a model as its config says, finite, of at most `num_bytes`."""
    if not isinstance(state, dict):
        raise ValueError(f"it holds {type(state).__name__}, not a dict")
    for key in ("config", "model_state_dict"):
        if not isinstance(state.get(key), dict):
            raise ValueError(f"no checkpoint of this project: it lacks {key}")
    storages = {}
    for name, leaf in leaves(state):
        if isinstance(leaf, Tensor):
            storages[leaf.untyped_storage().data_ptr()] = check_tensor(name, leaf)
        elif type(leaf) not in PLAIN:
            raise ValueError(f"{name} is a {type(leaf).__name__}")
    if sum(storages.values()) > num_bytes:
        raise ValueError(f"its tensors claim {sum(storages.values()):,} of {num_bytes:,} bytes")
    if not isinstance(state.get("versions", {}), dict):
        raise ValueError("its versions are no dict")
    check_weights(state["config"], state["model_state_dict"], is_adapter=BASE in state)
    if broken := not_finite(state):
        raise ValueError(f"{broken} is not finite")


def leaves(state: Any) -> Iterator[tuple[str, Any]]:
    """All that is not a container, each once, with its place: ("config.seq_len", 128)."""
    pending, seen = [("", state)], set()
    while pending:
        name, value = pending.pop()
        if not isinstance(value, (dict, list, tuple)):
            yield name, value
        elif id(value) not in seen:  # a container may hold itself, or another one 2^30 times
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            pending += [(f"{name}.{key}"[-200:].lstrip("."), child) for key, child in items]


def check_tensor(name: str, tensor: Tensor) -> int:
    """The bytes of the tensor's storage; ValueError unless it is plain and lies within them."""
    if tensor.layout != torch.strided or tensor.dtype not in FLOATS | WHOLE:
        raise ValueError(f"{name} is a strange tensor ({tensor.dtype}, {tensor.layout})")
    num_bytes = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.itemsize > num_bytes:
        raise ValueError(f"{name} claims the shape {tuple(tensor.shape)} of {num_bytes} bytes")
    return num_bytes


def check_weights(
    config: dict[str, Any], weights: dict[str, Any], *, is_adapter: bool = False
) -> None:
    """ValueError unless the weights have the names and shapes of the config's architecture.

    They are all of its model, or what its adapters learn.
    """
    missing = [key for key in ("seq_len", *ARCHITECTURE) if key not in config]
    if missing:
        raise ValueError(f"its config lacks {', '.join(missing)}")
    strange = [name for name, leaf in weights.items() if not isinstance(leaf, Tensor)]
    has_table = EMBEDDING in weights and weights[EMBEDDING].dim() == 2
    if strange or not (has_table or is_adapter):
        raise ValueError(f"no weights: {(strange or [EMBEDDING])[0]!r}")
    most_layers = MOST_LAYERS if is_adapter else len(weights)
    if not (isinstance(config["num_layers"], int) and config["num_layers"] <= most_layers):
        raise ValueError(f"its config has num_layers={config['num_layers']!r}, not so its weights")
    with torch.device("meta"), undrawn():  # shapes alone: nothing is allocated
        model = build_model(config, 1 if is_adapter else weights[EMBEDDING].size(0))
        expected = adapter_weights(adapt(model, config)) if is_adapter else model.state_dict()
    held, wanted = shapes_in(weights), shapes_in(expected)
    differing = [
        f"{name} {held.get(name)}, its config wants {wanted.get(name)}"
        for name in wanted | held
        if held.get(name) != wanted.get(name)
    ]
    if differing:
        raise ValueError("another architecture: " + "; ".join(differing[:3]))


def shapes_in(weights: dict[str, Tensor]) -> dict[str, str]:
    kinds = {True: "", False: " of whole numbers"}
    return {name: f"{tuple(w.shape)}{kinds[w.is_floating_point()]}" for name, w in weights.items()}


def not_finite(state: Any) -> str | None:
    """The place of a NaN or an infinity in the state, None where all numbers are finite."""
    for name, leaf in leaves(state):
        if isinstance(leaf, float) and not math.isfinite(leaf):
            return name
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel():
            low, high = leaf.aminmax()  # a NaN comes through, and no copy is made
            if not math.isfinite(low.item()) or not math.isfinite(high.item()):
                return name
    return None


def build_model(config: dict[str, Any], vocab_size: int) -> Transformer:
    """A fresh model of the config's architecture."""
    return build_transformer(
        input_vocab_size=vocab_size,
        input_seq_len=config["seq_len"],
        **{key: config[key] for key in ARCHITECTURE},
    )


class _WithoutDraws(TorchFunctionMode):
    """Tensors stay as they are where random numbers should fill them."""

    def __torch_function__(
        self, function: Any, types: Any, arguments: tuple = (), options: dict | None = None
    ) -> Any:
        if function in DRAWS:
            return (*arguments, *(options or {}).values())[0]
        return function(*arguments, **(options or {}))


@contextmanager
def undrawn() -> Iterator[None]:
    """Inside, models are built whose weights come from elsewhere: no time is spent on random ones.

    Whatever else a part computes when it is built, as tables that no file holds, it has.
    """
    with torch.random.fork_rng(devices=()), _WithoutDraws():
        yield


def model_from(state: dict[str, Any], path: str | Path = "this state") -> Transformer:
    """The model that a checkpoint's state describes, in evaluation mode.

    CheckpointError, which names the `path` of the state, where it has adapters alone.
    """
    if BASE in state:
        raise CheckpointError(
            f"adapters alone, not the model that they stand beside ({path}): "
            "python train.py --resume goes on with them, and "
            f"{FINAL_NAME} is whole"
        )
    weights = state["model_state_dict"]
    with undrawn():
        model = build_model(state["config"], weights[EMBEDDING].size(0))
    model.load_state_dict(weights, assign=True)
    return model.eval()


def load_model(path: str | Path) -> Transformer:
    """The model in a checkpoint file or run folder, on the CPU and in evaluation mode."""
    return model_from(load(path), path)
