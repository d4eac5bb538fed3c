"""Low-rank adapters: beside a frozen linear layer a small one learns (LoRA, Hu et al. 2021).

Shapes: B batch, T time, I in_features, O out_features, r rank.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters.names import names_matching
from adapters.products import FrozenProduct, type_of_products
from model import Dropout, Seeds, Transformer
from system.errors import ConfigError

TABLE = "input_embedding.embedding"


class LoraLinear(nn.Module):
    """base(x) + scale * B A dropout(x), of which A (r, I) and B (O, r) learn, in float32.

    The base is any module with `in_features`, `out_features`, and `weight` and `bias` for whoever
    wants them as a linear layer has them. It learns no more. B starts at 0, so the sum at the base.
    """

    seeds: Seeds = None  # of the rows that come next, for the dropout

    def __init__(self, base: nn.Module, *, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.in_features, self.out_features = base.in_features, base.out_features
        self.shape = torch.Size((self.out_features, self.in_features))
        self.scale = scale
        self.dropout = Dropout(dropout)
        self.product = FrozenProduct()
        device = next((t.device for t in (*base.parameters(), *base.buffers())), None)
        self.lora_A = nn.Parameter(torch.empty(rank, self.in_features, device=device))
        self.lora_B = nn.Parameter(torch.zeros(self.out_features, rank, device=device))

    def forward(self, x: Tensor) -> Tensor:
        seeds = None if self.seeds is None else self.seeds[: len(x)]
        x = x.to(type_of_products(x))
        low = F.linear(self.dropout(x, seeds), self.lora_A).flatten(0, -2) * self.scale  # (N, r)
        up = self.lora_B.T.contiguous().to(x.dtype)  # (r, O): gradients by it are faster
        rows = torch.addmm(self.of_base(x.flatten(0, -2)), low, up)
        return rows.view(*x.shape[:-1], self.out_features)

    def of_base(self, x: Tensor) -> Tensor:
        is_plain = type(self.base) is nn.Linear
        return self.product(x, self.base.weight, self.base.bias) if is_plain else self.base(x)

    def merged(self, x: Tensor) -> Tensor:
        """The same by the one matrix."""
        return F.linear(x, self.weight, self.bias)

    @property
    def weight(self) -> Tensor:
        """The one matrix (O, I) that does the same: the base's and what was learned."""
        base, learned = self.base.weight, self.scale * (self.lora_B @ self.lora_A)
        if hasattr(learned, "full_tensor") and not hasattr(base, "full_tensor"):
            learned = learned.full_tensor()  # spread, as what is in few bits never is
        return base + learned

    @property
    def bias(self) -> Tensor | None:
        return self.base.bias


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """What multiplies by a matrix, by name; of layers within layers the outermost."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        is_inner = name.rpartition(".")[0] in found
        if hasattr(module, "in_features") and not is_inner:
            found[name] = module
    return found


def add_adapters(
    model: Transformer, patterns: str, *, rank: int, alpha: float, dropout: float, seed: int
) -> None:
    """Puts an adapter around each linear layer that the patterns name; all else is frozen."""
    layers = linear_layers(model)
    named = names_matching("lora_layers", patterns, {*layers, TABLE})
    if TABLE in named:
        raise ConfigError(
            f"config: lora_layers={patterns!r} names the table of tokens ({TABLE}), which is input "
            "and head at once, so that an adapter on one side would untie them: name layers of the "
            "blocks, as blocks"
        )
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    place = sum(isinstance(module, Dropout) for module in model.modules())
    for name in (name for name in layers if name in named):
        layer = LoraLinear(layers[name], rank=rank, scale=alpha / rank, dropout=dropout)
        bound = layer.in_features**-0.5  # as a linear layer of torch starts
        start = torch.empty(layer.lora_A.shape, device="cpu").uniform_(
            -bound, bound, generator=generator
        )
        layer.lora_A.data.copy_(start)
        layer.dropout.place, place = place, place + 1
        model.set_submodule(name, layer)
    for block in model.blocks:
        own = [layer for layer in block.modules() if isinstance(layer, LoraLinear)]
        block.register_forward_pre_hook(partial(give_seeds, own), with_kwargs=True)


def give_seeds(
    layers: list[LoraLinear], block: nn.Module, inputs: tuple, named: dict[str, Any]
) -> None:
    """Tells a block's adapters the seeds of its rows, of which the block knows."""
    for layer in layers:
        layer.seeds = named.get("seeds")


def freeze(model: nn.Module, patterns: str) -> None:
    """Weights that the patterns name learn no more; ConfigError where nothing would learn."""
    parameters = dict(model.named_parameters())
    for name in names_matching("freeze", patterns, parameters):
        parameters[name].requires_grad_(False)
    if not any(parameter.requires_grad for parameter in parameters.values()):
        raise ConfigError(f"config: freeze={patterns!r} leaves nothing that learns: name less")


def adapt(model: Transformer, config: dict[str, Any]) -> Transformer:
    """The model, of which only that learns which the config wants to."""
    if config["adapter"]:
        names = ("rank", "alpha", "dropout")
        sizes = {name: config[f"lora_{name}"] for name in names}
        add_adapters(model, config["lora_layers"], seed=config["seed"], **sizes)
    if config["freeze"]:
        freeze(model, config["freeze"])
    return model


def its_weight(layer: nn.Module) -> Tensor:
    return layer.weight.detach()


def plain_weights(
    model: nn.Module, weight_of: Callable[[nn.Module], Any] = its_weight
) -> dict[str, Any]:
    """The state_dict of the plain model that computes the same, under its names.

    Layers that stand for a linear layer or a table, as adapters do, know the weight of that one:
    `weight_of` asks them.
    """
    weights, done = dict(model.state_dict()), ""
    for name, layer in model.named_modules():
        is_inner = done and name.startswith(done)
        if is_inner or not isinstance(getattr(type(layer), "weight", None), property):
            continue
        done = f"{name}."
        weights = {key: w for key, w in weights.items() if not key.startswith(done)}
        weights[f"{name}.weight"] = weight_of(layer)
        if getattr(layer, "bias", None) is not None:
            weights[f"{name}.bias"] = layer.bias.detach()
    return weights


@torch.no_grad()
def base_id(model: nn.Module) -> str:
    """A hash of what few bits and adapters leave as it is of weights: positions, norms, biases.

    Models that were trained apart have different ones.
    """
    digest = hashlib.sha256()
    for name, weight in model.named_parameters():
        if ".lora_" not in name and (weight.dim() == 1 or name.endswith(".pe")):
            digest.update(name.replace(".base.", ".").encode())
            digest.update(weight.float().cpu().numpy().tobytes())
    return digest.hexdigest()


def adapter_weights(model: nn.Module) -> dict[str, Tensor]:
    """What the adapters have learned, by name."""
    return {name: weight for name, weight in model.state_dict().items() if ".lora_" in name}
