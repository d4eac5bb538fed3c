"""Whether a run fits: the memory and the disk space that it needs, told before its first step."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from system.errors import OutOfRoomError, OutputError

MEMINFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")


def num_parameters(config: dict[str, Any], num_rows: int) -> int:
    """Parameters of the config's model whose embedding has so many rows, by arithmetic alone."""
    C, F = config["embedding_dim"], config["ffn_hidden_dim"]
    attention = 4 * C * C + 4 * C
    feed_forward = 2 * C * F + C + F
    norms = 4 * C
    block = attention + feed_forward + norms
    return (num_rows + config["seq_len"]) * C + config["num_layers"] * block + 2 * C


def training_bytes(
    config: dict[str, Any], *, num_rows: int, num_windows: int, bytes_per_activation: int
) -> int:
    """The least that a training step holds: weights, gradients, AdamW's moments, activations.

    A lower bound on purpose, so that no run which could work is refused.
    """
    tokens = min(config["batch_size"], num_windows) * config["seq_len"]
    per_token = config["num_layers"] * (6 * config["embedding_dim"] + config["ffn_hidden_dim"])
    return 16 * num_parameters(config, num_rows) + tokens * per_token * bytes_per_activation


def check_memory(
    config: dict[str, Any],
    *,
    num_rows: int,
    num_windows: int,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """OutOfRoomError if the training cannot fit into what the device has free."""
    needed = training_bytes(
        config, num_rows=num_rows, num_windows=num_windows, bytes_per_activation=dtype.itemsize
    )
    available = available_memory(device)
    if needed > available:
        raise OutOfRoomError(
            f"this model does not fit ({num_parameters(config, num_rows):,} parameters, "
            f"batch_size={config['batch_size']}: at least {needed / 1e9:,.1f} GB to train, "
            f"{available / 1e9:,.1f} GB free on {device}): "
            "lower embedding_dim, num_layers, ffn_hidden_dim, seq_len or batch_size"
        )


def available_memory(device: torch.device) -> int:
    """Bytes that a process can still take on the device."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [host_memory()]
    limit, current = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and current.is_file() and limit.read_text().strip().isdigit():
        cached = field(CGROUP / "memory.stat", "inactive_file", unit=1)
        free.append(int(limit.read_text()) - int(current.read_text()) + cached)
    return max(0, min(free))


def host_memory() -> int:
    """Free memory and swap where the kernel tells, else all the memory there is."""
    if MEMINFO.is_file():
        return field(MEMINFO, "MemAvailable:", unit=1024) + field(MEMINFO, "SwapFree:", unit=1024)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def field(path: Path, name: str, *, unit: int) -> int:
    """The number after the name in a table of the kernel's, 0 where it is not listed."""
    for line in path.read_text().splitlines():
        words = line.split()
        if words[0] == name:
            return int(words[1]) * unit
    return 0


def check_disk(
    folder: Path, config: dict[str, Any], *, num_rows: int, vocab_size: int, num_steps: int
) -> None:
    """OutputError if the folder's disk is too small for the run's files.

    A checkpoint holds the full model and two moments of the trained one. One more than are kept
    has to fit, for the new one is there before the oldest goes; then the best and the final model.
    """
    model = 4 * num_parameters(config, vocab_size)
    moments = 8 * num_parameters(config, num_rows)
    num_kept = min(config["keep_checkpoints"], -(-num_steps // config["save_freq"]))
    needed = (model + moments) * (num_kept + 1) + 2 * model
    ours = [*folder.glob("model_checkpoint_step_*.pt"), *folder.glob("*_model.pt")]
    available = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in ours)
    if needed > available:
        raise OutputError(
            f"the disk is too small ({folder.resolve()}: {(model + moments) / 1e6:,.0f} MB x "
            f"({num_kept} + 1) checkpoints and 2 models are {needed / 1e6:,.0f} MB, "
            f"{available / 1e6:,.0f} MB are there): free some, lower keep_checkpoints, "
            "or choose another output_dir"
        )
