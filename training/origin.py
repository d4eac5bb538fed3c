"""Which weights a run begins with: random ones, published ones, those of a checkpoint."""

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from adapters.lora import adapter_weights, base_id
from adapters.quantized import packed_parts, quantize
from corpus.vocabulary import Vocabulary
from model import Transformer
from storage import checkpoint
from system.errors import CheckpointError
from system.machine import Machine
from system.process import log
from training import capacity
from training.settings import AUTO

if TYPE_CHECKING:
    from exchange.pretrained import Pretrained

Build = Callable[[dict[str, Any], Vocabulary, Machine], Transformer]


def is_published(config: dict[str, Any]) -> bool:
    """Whether it begins with weights that were trained elsewhere."""
    return bool(config["weights_path"] or config["use_pretrained"])


def published(config: dict[str, Any]) -> "Pretrained":
    """The weights that the config names."""
    from exchange.pretrained import from_safetensors, official  # bring requests

    path = config["weights_path"]
    return from_safetensors(path) if path else official(config["model_name"])


def published_model(
    pretrained: "Pretrained", config: dict[str, Any], vocabulary: Vocabulary, machine: Machine
) -> Transformer:
    sizes = {"dropout": config["dropout"], "device": machine.device}
    if config["base_precision"] != "float32":
        outline = capacity.outline(config, vocabulary.size)
        given = {"precision": config["base_precision"], "parts": packed_parts(outline)}
        sizes["shrink"] = partial(quantize, **given)
    return pretrained.build_model(config["seq_len"], **sizes)


def tuned(config: dict[str, Any], chosen: Collection[str]) -> tuple[dict[str, Any], Build]:
    """The config as the weights that it names decide it, what suits fine-tuning, and the model."""
    pretrained = published(config)
    log(f"weights   {pretrained.name}")
    config = {**config, **gentle(config, config.keys(), chosen)}
    config |= pretrained.architecture(config, chosen)
    return config, partial(published_model, pretrained)


def gentle(
    config: dict[str, Any], keys: Collection[str], chosen: Collection[str]
) -> dict[str, Any]:
    """What suits fine-tuning, of those of the keys that nobody chose; each change is said."""
    from exchange.pretrained import FINE_TUNING  # brings requests

    suitable = {**FINE_TUNING}
    if "optimizer" in chosen and config["optimizer"] == "muon":
        suitable["learning_rate"] = AUTO
    if config["adapter"]:  # with dropout, attention keeps T x T weights
        suitable |= {"learning_rate": AUTO, "dropout": 0.0}
    found = {
        key: value
        for key, value in suitable.items()
        if key in keys and value != config[key] and (key not in chosen or config[key] == AUTO)
    }
    for key, value in found.items():
        if value != AUTO:
            log(f"          {key} {value}, as suits fine-tuning: --{key} sets another")
    return found


def random_model(config: dict[str, Any], vocabulary: Vocabulary, machine: Machine) -> Transformer:
    """Random weights, a function of the seed alone."""
    torch.manual_seed(config["seed"])
    model = checkpoint.build_model(config, vocabulary.size).to(machine.device)
    if vocabulary.num_shared > 1:  # a shared row starts as the mean of those it replaces
        nn.init.zeros_(model.input_embedding.embedding.weight[-1])
    return model


def beneath(config: dict[str, Any]) -> Build:
    """What a run's adapters stand beside: no checkpoint of theirs has it."""
    return partial(published_model, published(config)) if is_published(config) else random_model


def restored_model(
    state: dict[str, Any], config: dict[str, Any], vocabulary: Vocabulary, machine: Machine
) -> Transformer:
    """The model of a checkpoint, its table as compact as the vocabulary."""
    weights = state["model_state_dict"]
    rows = vocabulary.compact_rows(weights[checkpoint.EMBEDDING])
    weights = {**weights, checkpoint.EMBEDDING: rows}
    model = checkpoint.model_from({"config": config, "model_state_dict": weights})
    return model.train().to(machine.device)


def restore_adapters(model: Transformer, path: Path, state: dict[str, Any]) -> None:
    """Puts a checkpoint's adapters beside the weights that they were trained with."""
    if state.get(checkpoint.BASE) != base_id(model):
        name = state["config"]["weights_path"] or state["config"]["model_name"]
        raise CheckpointError(
            f"its adapters stand beside other weights ({path}: {name} has changed since): "
            "put the old ones back"
        )
    for name, weight in adapter_weights(model).items():
        weight.copy_(state["model_state_dict"][name])


def with_own_rows(config: dict[str, Any]) -> dict[str, Any]:
    """The config, without a shared row where the table is frozen: it comes out as it went in."""
    if not (config["adapter"] or config["freeze"] or config["base_precision"] != "float32"):
        return config
    table = capacity.outline(config, 1).input_embedding.embedding.weight
    return config if table.requires_grad else {**config, "share_unused_tokens": False}
