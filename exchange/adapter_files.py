"""Adapters as files in the form of the peft library: a folder, written, read, merged into a model.

adapter_config.json has the rank and the scale, adapter_model.safetensors the matrices A (r, I) and
B (O, r) of each layer under transformers' names; queries, keys and values are one layer there too.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapters.lora import base_id
from exchange.huggingface import StoredTensor, read_object, tensors_in
from model import Transformer
from storage.run_folder import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_metadata
from system.errors import WeightsError
from system.files import as_path, make_folder, write_durably
from weights import listed, name_rows

NAME = re.compile(r"base_model\.model\.(?:transformer\.)?(.+)\.lora_([AB])\.weight")
NAME_OF = "base_model.model.transformer.{}.lora_{}.weight"
CANNOT = (  # what must be unset in a config, for only two matrices and a scale are read
    *("use_dora", "modules_to_save", "alpha_pattern", "lora_bias", "layer_replication"),
    *("target_parameters", "trainable_token_indices", "use_qalora", "alora_invocation_tokens"),
    *("arrow_config", "kasa_config", "use_bdlora", "monteclora_config", "velora_config"),
)
STARTS = (True, False, "gaussian", "orthogonal", "eva", None)  # others change the weights beneath
NUMBER = re.compile(r"[-+]?(\d{1,9}(\.\d*)?|\.\d+)")
HUB_NAMES = {"gpt2-small": "gpt2"}  # of the official models, where they have others than here


@dataclass(frozen=True)
class Adapter:
    """A and B of each layer, by our names, and the scale of their product."""

    path: Path
    factors: dict[str, tuple[Tensor, Tensor]]
    scale_of: Callable[[int], float]  # rank
    metadata: dict[str, str]


def peft_names(num_layers: int) -> dict[str, str]:
    """transformers' names of the linear layers by ours."""
    rows = [row for row in name_rows(num_layers) if row.is_transposed]
    return {
        row.ours.removesuffix(".weight"): row.huggingface.removesuffix(".weight") for row in rows
    }


def save(folder: Path, adapters: dict[str, Tensor], config: dict[str, Any], **about: str) -> None:
    """Writes what a run's adapters have learned; `about` it goes into the file of the weights."""
    from safetensors.torch import save as as_bytes

    theirs = peft_names(config["num_layers"])
    names = {name: name.rpartition(".lora_") for name in adapters}
    tensors = {
        NAME_OF.format(theirs[layer], kind): adapters[name].contiguous()
        for name, (layer, _, kind) in names.items()
    }
    content = as_bytes(tensors, metadata={"format": "pt", **about})
    targets = sorted({theirs[layer] for layer, *_ in names.values()})
    text = json.dumps(peft_config(config, targets), indent=2)
    make_folder(folder)
    write_durably(folder / ADAPTER_WEIGHTS, lambda file: file.write(content))
    write_durably(folder / ADAPTER_CONFIG, lambda file: file.write(text.encode()))


def peft_config(config: dict[str, Any], targets: list[str]) -> dict[str, Any]:
    """What adapter_config.json holds; layers that all blocks have are named once."""
    kinds = {target.split(".", 2)[2] for target in targets}
    if len(targets) == config["num_layers"] * len(kinds):
        targets = sorted(kinds)
    short = config["model_name"].split()[0]
    official = HUB_NAMES.get(short, short) if config["use_pretrained"] else None
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": config["weights_path"] or official,
        "r": config["lora_rank"],
        "lora_alpha": config["lora_alpha"],
        "lora_dropout": config["lora_dropout"],
        "target_modules": targets,
        "fan_in_fan_out": True,  # GPT-2's matrices are (in, out) in transformers
        "bias": "none",
        "use_rslora": False,
        "inference_mode": True,
    }


def load(path: str | Path) -> Adapter:
    """The adapter in a folder; WeightsError says what is wrong with it, or not supported here."""
    path = as_path(path)
    config_path, weights_path = path / ADAPTER_CONFIG, path / ADAPTER_WEIGHTS
    if not config_path.exists():
        raise WeightsError(f"no adapter there ({config_path} is missing): name its folder")
    config = read_object(config_path, "an adapter's config")
    others = {key: config.get(key) for key in CANNOT if config.get(key)}
    for key, usual in (("peft_type", ("LORA",)), ("bias", ("none", None))):
        others |= {key: config.get(key)} if config.get(key) not in usual else {}
    start = config.get("init_lora_weights")
    others |= {} if any(start is known or start == known for known in STARTS) else {"init": start}
    if others:
        shown = ", ".join(f"{key}={str(value)[:40]}" for key, value in others.items())
        raise WeightsError(f"a kind of adapter that is not read ({config_path}: {shown})")
    alpha, root = config.get("lora_alpha", 8), 0.5 if config.get("use_rslora") else 1.0
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not abs(alpha) < 1e9:
        raise WeightsError(f"no number ({config_path}: lora_alpha={alpha!r}): copy it again")
    factors = factors_of(weights_path, list(tensors_in(weights_path)))
    metadata = adapter_metadata(path)
    return Adapter(path, factors, lambda rank: alpha / rank**root, metadata)


def factors_of(path: Path, stored: list[StoredTensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """A and B by our names of the layers; WeightsError lists what fits no pair of matrices."""
    found = {match: tensor for tensor in stored if (match := NAME.fullmatch(tensor.name))}
    numbers = [re.match(r"h\.(\d{1,4})\.", match[1]) for match in found]
    ours = {v: k for k, v in peft_names(1 + max([int(n[1]) for n in numbers if n] or [0])).items()}
    pairs: dict[str, dict[str, Tensor]] = {}
    known = [match for match in found if match[1] in ours and len(found[match].shape) == 2]
    for match in known:
        tensor = torch.from_numpy(found[match][:])
        pairs.setdefault(ours[match[1]], {})[match[2]] = tensor
    strange = sorted({tensor.name for tensor in stored} - {match[0] for match in known})
    strange += [
        f"{name} {sorted(pair)}"
        for name, pair in pairs.items()
        if len(pair) < 2 or pair["A"].size(0) != pair["B"].size(1) or not pair["A"].size(0)
    ]
    if strange or not pairs:
        table = ": the table is input and head at once" if "wte" in " ".join(strange) else ""
        what = listed(strange) or "nothing in it"
        raise WeightsError(f"not the matrices of a GPT-2's adapter ({path}: {what}){table}")
    return {name: (pair["A"], pair["B"]) for name, pair in pairs.items()}


@torch.no_grad()
def merge(model: Transformer, adapter: Adapter, weight: float = 1.0) -> None:
    """Adds `weight` times what the adapter has learned to the plain model's matrices, in place.

    WeightsError unless the model is the one that it was trained beside, as far as can be told.
    """
    layers = dict(model.named_modules())
    base = adapter.metadata.get("base_id", "")
    fits = [
        isinstance(layers.get(name), nn.Linear)
        and layers[name].weight.shape == (up.size(0), down.size(1))
        for name, (down, up) in adapter.factors.items()
    ]
    if not all(fits) or base not in ("", base_id(model)):
        why = "another model's weights" if all(fits) else "other sizes"
        raise WeightsError(
            f"the adapter stands beside another model ({adapter.path}: {why}): give --model or "
            "--checkpoint the one that it was trained with"
        )
    for name, (down, up) in adapter.factors.items():
        layers[name].weight.add_(weight * adapter.scale_of(len(down)) * (up @ down))


def merge_all(model: Transformer, given: list[str], *, run_id: str) -> None:
    """Merges what `--adapter DIR` or `--adapter DIR=WEIGHT` name into the model, in their order.

    The model may be of the run `run_id`, whose own adapter is in it already: a WeightsError.
    """
    for text in given:
        path, _, number = text.rpartition("=")
        is_path = as_path(text).exists() or not NUMBER.fullmatch(number)
        adapter = load(text if is_path else path)
        if run_id and adapter.metadata.get("run_id") == run_id:
            raise WeightsError(
                f"the adapter is in the model already ({adapter.path}): leave --adapter out, or "
                "name what it was trained with"
            )
        merge(model, adapter, 1.0 if is_path else float(number))
