"""What an export is worth: the written model read back and compared with ours."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from generation.decoding import Context, continue_rows, evaluation_mode
from generation.row import prompt_ids
from generation.settings import Sampling
from model import Transformer
from system.errors import ExportError
from tokenizer import GPT2Tokenizer
from weights import gpt2_weights

RECEIPT_TOKENS = 50
TOLERANCES = {"f32": 1e-5, "f16": 1e-2, "q8_0": 1e-1}  # shares of the largest logit
Logits = Callable[[Tensor], Tensor]  # ids (1, T) -> (1, T, V)
Reader = Callable[[], tuple[str, Logits]]  # its name, and the logits of what was written


def compare(model: Transformer, config: dict[str, Any], type_name: str, read: Reader) -> str:
    """The receipt for what `read` finds, on a greedy text of the model.

    ExportError if it is not our model, or if our model is not GPT-2: coarse numbers could hide it.
    The text is read once, and again up to the end of the context: where the likeliest next token is
    the same at all its positions, greedy decoding writes the same text.
    """
    prompt = config.get("sample_prompt", "Once upon a time")
    start = prompt_ids(GPT2Tokenizer(), prompt)[: max(1, model.seq_len // 2)]
    num_new = min(RECEIPT_TOKENS, model.seq_len - len(start))
    context = Context(model, [start], max_new_tokens=num_new)
    steps = continue_rows(context, Sampling(temperature=0), seeds=[0])
    text = start + [step[0] for step in steps]
    ids = torch.tensor([text * -(-model.seq_len // len(text))])[:, : model.seq_len]
    weights = {row.huggingface: weight for row, weight in gpt2_weights(model).items()}
    with evaluation_mode(model):
        ours = model(ids)
        try:
            written_out = gpt2_logits(weights, config["num_heads"], ids)
        except RuntimeError as error:  # the same names, other shapes
            raise ExportError(f"not GPT-2's formulas ({error}): not exported") from error
        reader, logits_of = read()
        theirs = logits_of(ids)
    limit = ours.abs().max().item()
    difference = (ours - written_out).abs().max().item()
    if not difference <= TOLERANCES["f32"] * limit:  # or a NaN
        raise ExportError(f"not GPT-2's formulas (logits differ by {difference:.1e}): not exported")
    difference = (ours - theirs).abs().max().item()
    agrees = theirs.argmax(-1)[0, len(start) - 1 : len(text) - 1] == ids[0, len(start) : len(text)]
    receipt = (
        f"read back by {reader}: largest logit difference {difference:.1e}, "
        f"greedy tokens that agree {agrees.sum()} of {num_new}"
    )
    if not difference <= TOLERANCES[type_name] * limit:
        raise ExportError(f"the files say something else than the model ({receipt}): not exported")
    return receipt


def gpt2_logits(weights: dict[str, Tensor], num_heads: int, ids: Tensor) -> Tensor:
    """GPT-2's formulas on weights under Hugging Face's names: (B, T) -> (B, T, V).

    They share nothing with model.py, so that a change there cannot agree with itself.
    """

    def linear(x: Tensor, name: str) -> Tensor:
        return x @ weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def norm(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], weights[f"{name}.weight"], weights[f"{name}.bias"])

    x = weights["wte.weight"][ids] + weights["wpe.weight"][: ids.size(1)]
    for layer in range(sum(name.endswith("ln_1.weight") for name in weights)):
        qkv = linear(norm(x, f"h.{layer}.ln_1"), f"h.{layer}.attn.c_attn")
        heads = qkv.unflatten(-1, (3, num_heads, -1)).permute(2, 0, 3, 1, 4)  # each (B, H, T, D)
        mixed = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).flatten(2)
        x = x + linear(mixed, f"h.{layer}.attn.c_proj")
        hidden = linear(norm(x, f"h.{layer}.ln_2"), f"h.{layer}.mlp.c_fc")
        x = x + linear(F.gelu(hidden, approximate="tanh"), f"h.{layer}.mlp.c_proj")
    return norm(x, "ln_f") @ weights["wte.weight"].T
