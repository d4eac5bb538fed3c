"""Whether a run fits: the memory and the disk space that it needs, told before its first step."""

import shutil
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
from torch import nn

from adapters.lora import adapt
from adapters.quantized import packed_parts, quantize
from corpus.corpus import Corpus
from model import Transformer
from storage import checkpoint, run_folder
from system.errors import ConfigError, OutOfRoomError, OutputError
from tokenizer import END_OF_TEXT_ID
from training.optim import OPTIMIZERS
from training.progress import last_step
from training.settings import AUTO

MOST_LAYERS, MOST_PARAMETERS = 10**5, 10**13  # that shapes alone are made of
CGROUP = Path("/sys/fs/cgroup")


def check_memory(
    config: dict[str, Any], corpus: Corpus, device: torch.device, num_devices: int = 1
) -> None:
    """OutOfRoomError if the device surely has too little memory; nothing large was made by then."""
    num_weights = num_parameters(config, corpus.vocabulary.size)
    num_tokens = min(config["batch_size"], len(corpus.batches.dataset)) * config["seq_len"]
    per_token = config["num_layers"] * (6 * config["embedding_dim"] + config["ffn_hidden_dim"])
    itemsize = 4 if config["precision"] == "float32" else 2
    # A lower bound on purpose, so that no run which could work is refused: weights, gradients and
    # moments, in parts where they are spread; and the largest activations.
    num_parts = num_devices if config["parallel"] == "fsdp" else 1
    needed, available = num_weights // 2 // num_parts, available_memory(device)  # in 4 bits
    if needed <= available:
        learns = Learning.of(config, corpus.vocabulary.size)
        states = learns.model_bytes + 4 * learns.num_weights + learns.moment_bytes
        needed = states // num_parts + num_tokens * per_token * itemsize
    if needed > available:
        raise OutOfRoomError(
            f"this model does not fit ({num_weights:,} parameters, "
            f"batch_size={config['batch_size']}: at least {needed / 1e9:,.1f} GB to train, "
            f"{available / 1e9:,.1f} GB free on {device}): lower embedding_dim, num_layers, "
            "ffn_hidden_dim, seq_len or batch_size, or spread it over more devices "
            "(--parallel fsdp)"
        )


class Learning(NamedTuple):
    """How many weights learn, and the bytes that the optimizer and averages keep of them."""

    num_weights: int
    moment_bytes: int
    model_bytes: int  # of all weights
    packed_bytes: int  # of those in few bits
    has_table: bool  # whether the table learns
    has_packed_table: bool  # or is in few bits

    @classmethod
    def of(cls, config: dict[str, Any], num_rows: int) -> "Learning":
        """Of the config's model whose embedding has so many rows, which takes no memory here."""
        kind, model = OPTIMIZERS[config["optimizer"]], outline(config, num_rows)
        num_kept = kind.num_moments + bool(config["average_weights"])
        num_weights = num_moments = 0
        for group in kind.groups(model, weight_decay=0.0):
            own = sum(parameter.numel() for parameter in group["params"])
            num_weights += own
            num_moments += own * (num_kept - kind.num_fewer_in_blocks * ("num_parts" in group))
        own = (*model.parameters(), *model.buffers())
        table = list(model.input_embedding.parameters())
        return cls(
            num_weights,
            4 * num_moments,
            model_bytes=sum(tensor.nbytes for tensor in own),
            packed_bytes=sum(tensor.nbytes for tensor in model.buffers()),
            has_table=any(weight.requires_grad for weight in table),
            has_packed_table=not table,
        )


def outline(config: dict[str, Any], num_rows: int, *, dropout: float = 0.0) -> Transformer:
    """The config's model in shapes alone: its adapters, what of it learns, what is in few bits."""
    if config["num_layers"] > MOST_LAYERS or num_parameters(config, num_rows) > MOST_PARAMETERS:
        raise OutOfRoomError("no machine has room for this model: lower num_layers, embedding_dim")
    with torch.device("meta"), checkpoint.undrawn():
        model = adapt(checkpoint.build_model({**config, "dropout": dropout}, num_rows), config)
        shrink(model, config)
        return model


def shrink(model: nn.Module, config: dict[str, Any]) -> None:
    """Puts what is frozen into few bits, where the config says so."""
    precision = config["base_precision"]
    if precision == "float32":
        return
    quantize(model, precision)
    if not packed_parts(model):
        raise ConfigError(
            f"config: base_precision={precision} needs matrices that do not learn, and all do: "
            "set adapter or freeze, or leave it at float32"
        )


def num_parameters(config: dict[str, Any], num_rows: int) -> int:
    """Parameters of the config's model whose embedding has so many rows, by arithmetic alone."""
    C, F = config["embedding_dim"], config["ffn_hidden_dim"]
    block = (4 * C * C + 4 * C) + (2 * C * F + C + F) + 4 * C  # attention, feed-forward, norms
    return (num_rows + config["seq_len"]) * C + config["num_layers"] * block + 2 * C


def available_memory(device: torch.device) -> int:
    """Bytes that a process can still take on the device, swap and a container's limit included."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [psutil.virtual_memory().available + psutil.swap_memory().free]
    limit, current = CGROUP / "memory.max", CGROUP / "memory.current"
    if limit.is_file() and current.is_file() and limit.read_text().strip().isdigit():
        table = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
        cached = int(table.get("inactive_file", 0))
        free.append(int(limit.read_text()) - int(current.read_text()) + cached)
    return max(0, min(free))


def check_disk(config: dict[str, Any], corpus: Corpus, *, run_id: str | None) -> None:
    """OutputError if the output folder's disk is too small; `run_id` is that of a resumed run.

    A checkpoint holds the full model, or adapters alone, and the moments of what learns. One more
    than are kept has to fit, for the new one is there before the oldest goes; then the best and the
    final model. Room is what is free, and what the run's own checkpoints, which it replaces, take.
    """
    folder = Path(config["output_dir"])
    model = 4 * num_parameters(config, END_OF_TEXT_ID + 1)
    learns = Learning.of(config, corpus.vocabulary.size)
    saved = (4 * learns.num_weights if config["adapter"] else model) + learns.moment_bytes
    saved += learns.model_bytes * (config["generations"] not in (1, AUTO))  # the teacher
    num_saved = -(-last_step(config, corpus.batches) // config["save_freq"])
    num_kept = min(config["keep_checkpoints"], num_saved)
    needed = saved * (num_kept + 1) + 2 * model
    own = run_folder.of_run(folder, run_id) if run_id else []
    available = shutil.disk_usage(folder).free + sum(path.stat().st_size for path in own)
    if needed > available:
        raise OutputError(
            f"the disk is too small ({folder.resolve()}: {saved / 1e6:,.0f} MB x "
            f"({num_kept} + 1) checkpoints and 2 models are {needed / 1e6:,.0f} MB, "
            f"{available / 1e6:,.0f} MB are there): free some, lower keep_checkpoints, "
            "or choose another output_dir"
        )
