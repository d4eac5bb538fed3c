"""How adapters end: in a folder of their own, and added to what they stand beside."""

import os
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adapters.lora import LoraLinear, its_weight, plain_weights
from exchange import adapter_files
from generation.decoding import evaluation_mode
from storage.checkpoint import BASE
from storage.run_folder import ADAPTER_NAME, adapter_metadata
from storage.streamed import Later
from system.errors import OutputError
from system.process import log, only_warn
from training.averages import local
from training.engines import spread
from training.memory import free_caches
from training.run import Run

NUM_COMPARED = 64  # tokens whose logits show whether a merged model is the same
WEIGHTS = "model_state_dict"


def merged(run: Run, state: dict[str, Any]) -> dict[str, Any]:
    """The state of the plain model that a state of adapters makes of what they stand beside.

    The adapters get a folder of their own. The first process has the state, all have to ask.
    """
    adapters = state.get(WEIGHTS, {})
    with torch.no_grad():
        for name, parameter in run.learner.model.named_parameters():
            if ".lora_" in name:  # only the first process has it: the sum is what it has
                has_it = run.team.is_first
                own = adapters[name] if has_it else torch.zeros(parameter.shape)
                common = run.team.sum(own.to(parameter.device))
                local(parameter).copy_(local(spread(common, parameter)))
    run.learner.engine.forget()
    free_caches()
    is_sharded = run.learner.engine.is_sharded
    weights = run.full_weights() if is_sharded else plain_weights(run.learner.model, later)
    if run.team.is_first:
        save_adapters(run, adapters)
    if run.team.is_first and not is_sharded:
        log(f"merged    largest logit difference {difference_of_merged(run):.1e}")
    return {**{key: value for key, value in state.items() if key != BASE}, WEIGHTS: weights}


def later(layer: nn.Module) -> Later:
    """The weight of the plain layer, made when it is written: all of them may not fit at once."""
    return Later(layer.shape, partial(its_weight, layer))


@torch.no_grad()
def difference_of_merged(run: Run) -> float:
    """The largest difference of a logit between the merged model and the one with adapters."""
    ids, model = run.val_rows[None, : run.config["seq_len"]][:, :NUM_COMPARED], run.learner.model
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLinear)]
    with evaluation_mode(model):
        apart = model(ids)
        for layer in layers:
            layer.forward = layer.merged
        difference = (model(ids) - apart).abs().max().item()
    for layer in layers:
        del layer.forward
    free_caches()
    return difference


def save_adapters(run: Run, adapters: dict[str, Tensor]) -> None:
    """Writes what was learned alone, for programs that have the rest."""
    folder = run.folder / ADAPTER_NAME
    with only_warn(f"no {folder}"):
        if folder.exists() and adapter_metadata(folder).get("run_id") != run.id:
            raise OutputError(f"there is another folder of that name ({folder}): remove it")
        adapter_files.save(folder, adapters, run.config, base_id=run.base, run_id=run.id)
        log(f"saved     {folder}{os.sep}, what was learned alone")
