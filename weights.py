"""The one table of weight names: OpenAI's GPT-2, Hugging Face's, ours."""

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from system.errors import WeightsError


class Row(NamedTuple):
    """One weight's path in the params, its name in a Hugging Face file, and in our state_dict."""

    gpt2: str
    huggingface: str
    ours: str
    is_transposed: bool = False  # GPT-2's linear layers are (in, out), torch's (out, in)

    def turned(self, weight: Tensor) -> Tensor:
        """The weight as the other side lays it."""
        return weight.T if self.is_transposed else weight


MODEL_ROWS = (
    Row("wte", "wte.weight", "input_embedding.embedding.weight"),
    Row("wpe", "wpe.weight", "positional_encoding.pe"),
    Row("g", "ln_f.weight", "final_norm.weight"),
    Row("b", "ln_f.bias", "final_norm.bias"),
)
BLOCK_ROWS = (
    Row("ln_1.g", "ln_1.weight", "attention_norm.weight"),
    Row("ln_1.b", "ln_1.bias", "attention_norm.bias"),
    Row("attn.c_attn.w", "attn.c_attn.weight", "attention.qkv.weight", True),
    Row("attn.c_attn.b", "attn.c_attn.bias", "attention.qkv.bias"),
    Row("attn.c_proj.w", "attn.c_proj.weight", "attention.projection.weight", True),
    Row("attn.c_proj.b", "attn.c_proj.bias", "attention.projection.bias"),
    Row("ln_2.g", "ln_2.weight", "feed_forward_norm.weight"),
    Row("ln_2.b", "ln_2.bias", "feed_forward_norm.bias"),
    Row("mlp.c_fc.w", "mlp.c_fc.weight", "feed_forward.expand.weight", True),
    Row("mlp.c_fc.b", "mlp.c_fc.bias", "feed_forward.expand.bias"),
    Row("mlp.c_proj.w", "mlp.c_proj.weight", "feed_forward.contract.weight", True),
    Row("mlp.c_proj.b", "mlp.c_proj.bias", "feed_forward.contract.bias"),
)
SETTINGS = {  # GPT-2's names of the sizes in our config
    "seq_len": "n_ctx",
    "embedding_dim": "n_embd",
    "num_layers": "n_layer",
    "num_heads": "n_head",
    "ffn_hidden_dim": "n_inner",
}
CHUNK_NUMBERS = 1 << 22  # copied at a time: 16 MB of float32
MAX_SHOWN = 3  # names in a message


def name_rows(num_layers: int) -> list[Row]:
    """The table for a model of that many layers."""
    return [*MODEL_ROWS] + [
        Row(f"blocks.{i}.{gpt2}", f"h.{i}.{huggingface}", f"blocks.{i}.{ours}", is_transposed)
        for i in range(num_layers)
        for gpt2, huggingface, ours, is_transposed in BLOCK_ROWS
    ]


def architecture_from(settings: dict[str, int]) -> dict[str, int]:
    """GPT-2's settings under the names of our config; `n_inner` is 4 n_embd where it is unset."""
    settings = {"n_inner": 4 * settings["n_embd"], **settings}
    return {ours: settings[gpt2] for ours, gpt2 in SETTINGS.items()}


def gpt2_weights(model: nn.Module) -> dict[Row, Tensor]:
    """Views of the model's weights as GPT-2 lays them; WeightsError names what is not GPT-2's."""
    rows, ours = name_rows(len(model.blocks)), model.state_dict()
    check_names((row.ours for row in rows), ours, "the model")
    return {row: row.turned(ours[row.ours]) for row in rows}


def huggingface_weights(model: nn.Module) -> dict[str, Tensor]:
    """The model's weights as transformers' GPT2Model names and lays them."""
    return {row.huggingface: weight.contiguous() for row, weight in gpt2_weights(model).items()}


def load_weights_into_gpt(model: nn.Module, params: dict[str, Any]) -> None:
    """Copies the params into the model unless a WeightsError lists names or shapes that misfit."""
    copies, weights = copies_into(model, params), model.state_dict()
    for name, copy in copies.items():
        copy(weights[name])


def copies_into(model: nn.Module, params: dict[str, Any]) -> dict[str, Callable[[Tensor], None]]:
    """For each weight of the model, by name, what copies it out of the params into a tensor.

    WeightsError lists names or shapes that misfit; the model may be one of shapes alone.
    """
    targets = {row.gpt2: (row, weight) for row, weight in gpt2_weights(model).items()}
    theirs = dict(_flat(params))
    check_names(targets, theirs, "the params")
    num_positions = len(targets["wpe"][1])
    theirs["wpe"] = theirs["wpe"][:num_positions]  # a shorter model keeps the first ones
    misfits = [
        f"{name} is {tuple(theirs[name].shape)}, not {tuple(target.shape)}"
        for name, (_, target) in targets.items()
        if tuple(theirs[name].shape) != tuple(target.shape)
    ]
    if misfits:
        raise WeightsError(f"weights do not fit the model ({listed(misfits)}): check its sizes")
    return {row.ours: partial(_copy, row, theirs[name]) for name, (row, _) in targets.items()}


@torch.no_grad()
def _copy(row: Row, source: Any, weight: Tensor) -> None:
    """Fills the weight some rows at a time: the source need not be in memory as a whole."""
    target = row.turned(weight)
    step = max(1, CHUNK_NUMBERS * len(target) // target.numel())
    for start in range(0, len(target), step):
        rows = slice(start, start + step)
        target[rows].copy_(torch.tensor(source[rows]))


def check_names(expected: Iterable[str], given: Iterable[str], where: str) -> None:
    """WeightsError with what is missing and what is unknown."""
    expected, given = set(expected), set(given)
    differing = {"missing": sorted(expected - given), "unknown": sorted(given - expected)}
    shown = "; ".join(f"{kind} {listed(names)}" for kind, names in differing.items() if names)
    if shown:
        reason = f"not the weights of a GPT-2 ({where}: {shown})"
        raise WeightsError(f"{reason}: no other architecture is read or exported")


def listed(names: list[str]) -> str:
    """The first names, and how many more there are."""
    more = [f"and {len(names) - MAX_SHOWN:,} more"] if len(names) > MAX_SHOWN else []
    return ", ".join([*names[:MAX_SHOWN], *more])


def _flat(tree: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of the params by path: {"blocks": [{"ln_1": {"g": x}}]} -> blocks.0.ln_1.g, x."""
    if not isinstance(tree, (dict, list)):
        yield prefix, tree
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """The inverse of _flat, for the names of a model's rows in their order."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *folders, name = path.split(".")
        node = tree
        for folder in folders:
            node = node.setdefault(folder, {})
        node[name] = leaf
    return {**tree, "blocks": list(tree["blocks"].values())}
