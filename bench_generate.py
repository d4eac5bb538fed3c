"""How fast text is generated: ours beside transformers and, where installed, CTranslate2.

All engines get the same random weights of one shape, the same prompts and no end of text, and
continue them greedily. A row of the table is the median of a few rounds; engines take turns, so
that a busy machine slows them all.
"""

import gc
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch

from checkpoint import build_model
from decoding import continue_rows
from duel import table
from inference import prepared
from model import Transformer
from sampling import Sampling

GPT2_SMALL = {
    "seq_len": 1024,
    "embedding_dim": 768,
    "num_layers": 12,
    "num_heads": 12,
    "dropout": 0.0,
    "ffn_hidden_dim": 3072,
}
VOCAB_SIZE = 50257
LINEAR_NAMES = {  # ours -> transformers'; norms are named alike below
    "attention.qkv": "attn.c_attn",
    "attention.projection": "attn.c_proj",
    "feed_forward.expand": "mlp.c_fc",
    "feed_forward.contract": "mlp.c_proj",
}
NORM_NAMES = {"attention_norm": "ln_1", "feed_forward_norm": "ln_2"}
Continue = Callable[[list[list[int]], int], list[list[int]]]  # prompts, new tokens -> their ids


class Case(NamedTuple):
    """A batch of prompts to continue."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int = 128


CASES = (Case(1, 16), Case(8, 16), Case(1, 512), Case(8, 512))


def random_prompts(case: Case) -> list[list[int]]:
    source = torch.Generator().manual_seed(0)
    shape = (case.batch_size, case.prompt_tokens)
    return torch.randint(VOCAB_SIZE - 1, shape, generator=source).tolist()


def ours(model: Transformer) -> Continue:
    """Greedy text of our model."""

    def run(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        steps = continue_rows(
            model,
            prompts,
            num_tokens,
            sampling=Sampling(temperature=0),
            seeds=[0] * len(prompts),
            is_over=lambda row: False,
        )
        tokens = [list(step.values()) for step in steps]
        return [list(row) for row in zip(*tokens, strict=True)]

    return run


@torch.no_grad()
def as_transformers(model: Transformer) -> Any:
    """transformers' GPT-2 with our weights."""
    from transformers import GPT2Config, GPT2LMHeadModel

    V, C = model.input_embedding.embedding.weight.shape
    config = GPT2Config(
        vocab_size=V,
        n_positions=model.seq_len,
        n_embd=C,
        n_layer=len(model.blocks),
        n_head=model.blocks[0].attention.num_heads,
        n_inner=model.blocks[0].feed_forward.expand.weight.size(0),
    )
    theirs = GPT2LMHeadModel(config).eval()
    body = theirs.transformer
    body.wte.weight.copy_(model.input_embedding.embedding.weight)
    body.wpe.weight.copy_(model.positional_encoding.pe)
    body.ln_f.load_state_dict(model.final_norm.state_dict())
    for block, target in zip(model.blocks, body.h, strict=True):
        for name, their_name in NORM_NAMES.items():
            target.get_submodule(their_name).load_state_dict(block.get_submodule(name).state_dict())
        for name, their_name in LINEAR_NAMES.items():
            layer, their_layer = block.get_submodule(name), target.get_submodule(their_name)
            their_layer.weight.copy_(layer.weight.T)
            their_layer.bias.copy_(layer.bias)
    return theirs


def transformers_engine(model: Any) -> Continue:
    """Greedy text by transformers' own `generate`."""

    @torch.no_grad()
    def run(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts)
        settings = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False}
        mask = torch.ones_like(ids)
        result = model.generate(ids, attention_mask=mask, pad_token_id=0, **settings)
        return result[:, ids.size(1) :].tolist()

    return run


def ctranslate2_engine(theirs: Any, compute_type: str, folder: Path) -> Continue:
    """Greedy text by CTranslate2 from transformers' model, converted into the folder."""
    import ctranslate2
    from ctranslate2.converters.transformers import GPT2Loader

    if not (folder / "model.bin").exists():
        spec = GPT2Loader().get_model_spec(theirs)
        spec.register_vocabulary([str(i) for i in range(theirs.config.vocab_size)])
        spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "50256"
        spec.validate()
        spec.optimize(quantization=None)
        spec.save(str(folder))
    engine = ctranslate2.Generator(
        str(folder), compute_type=compute_type, intra_threads=torch.get_num_threads()
    )

    def run(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        results = engine.generate_batch(
            [[str(token) for token in prompt] for prompt in prompts],
            min_length=num_tokens,
            max_length=num_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return [[int(token) for token in result.sequences[0]] for result in results]

    return run


def engines(model: Transformer, folder: Path) -> Iterator[tuple[str, Continue]]:
    """Every engine that is installed, by name and type."""
    for precision in ("float32", "bfloat16", "int8"):
        yield f"ours {precision}", ours(prepared(model, precision))
    if find_spec("transformers"):
        theirs = as_transformers(model)
        yield "transformers float32", transformers_engine(theirs)
        if find_spec("ctranslate2"):
            yield "CTranslate2 float32", ctranslate2_engine(theirs, "float32", folder)
            yield "CTranslate2 int8", ctranslate2_engine(theirs, "int8", folder)
        narrow = as_transformers(model).to(torch.bfloat16)
        yield "transformers bfloat16", transformers_engine(narrow)


def generation_speeds(
    model: Transformer, cases: tuple[Case, ...] = CASES, *, rounds: int = 3
) -> dict[str, list[float]]:
    """Tokens a second of each engine in each case, prompt included in the time."""
    with tempfile.TemporaryDirectory() as folder:
        found = dict(engines(model, Path(folder)))
    speeds: dict[str, list[float]] = {name: [] for name in found}
    for case in cases:
        prompts = random_prompts(case)
        seconds: dict[str, list[float]] = {name: [] for name in found}
        for _ in range(rounds):
            for name, run in found.items():
                gc.collect()
                start = time.perf_counter()
                run(prompts, case.new_tokens)
                seconds[name].append(time.perf_counter() - start)
        num_tokens = case.batch_size * case.new_tokens
        for name in found:
            speeds[name].append(num_tokens / median(seconds[name]))
    return speeds


def speeds_table(*, rounds: int) -> str:
    """A Markdown table of tokens a second for a model of GPT-2 small's shape."""
    torch.manual_seed(0)
    model = build_model(GPT2_SMALL, VOCAB_SIZE).eval()
    columns = [f"batch {case.batch_size}, prompt {case.prompt_tokens}" for case in CASES]
    speeds = generation_speeds(model, rounds=rounds)
    rows = [[name, *(f"{speed:,.1f}" for speed in row)] for name, row in speeds.items()]
    return table(["tokens/s", *columns], rows)
