"""How fast text is written: ours beside transformers, CTranslate2 and llama.cpp where installed.

All engines get the same random weights of one shape and the same prompts, and continue them
greedily with no end of text. One that takes a single prompt at a time gets them one by one.
"""

from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch

from benchmarks.train_peers import Task, our_model
from benchmarks.turns import Contestant, Step
from exchange.gguf_file import FILE_TYPES, SIZES, export_gguf
from generation.decoding import Context, continue_rows
from generation.fast_weights import prepared
from generation.settings import Sampling
from model import Transformer
from system.machine import Machine, tune_process
from weights import huggingface_weights

CONTEXT = 1024
Continue = Callable[[list[list[int]], int], list[list[int]]]  # prompts, new tokens -> their ids
Start = Callable[[Transformer], Continue]  # from the float32 weights, on their device


class Case(NamedTuple):
    """A batch of prompts to continue."""

    batch_size: int
    prompt_tokens: int
    new_tokens: int = 128

    def __str__(self) -> str:
        return f"batch {self.batch_size}, prompt {self.prompt_tokens}"

    def prompts(self, vocab_size: int) -> list[list[int]]:
        """Random tokens, the same for all; the last of the vocabulary is left out."""
        source = torch.Generator().manual_seed(0)
        shape = (self.batch_size, self.prompt_tokens)
        return torch.randint(vocab_size - 1, shape, generator=source).tolist()


CASES = (Case(1, 16), Case(8, 16), Case(1, 512), Case(8, 512))


def writers(task: Task, case: Case, device: str) -> Iterator[Contestant]:
    """A contestant for every engine that is installed; a step writes the text of the case once."""
    for name, (package, start) in ENGINES.items():
        if find_spec(package):
            num_tokens = case.batch_size * case.new_tokens
            build = partial(writing_step, task, case, start)
            yield Contestant(name, build, num_tokens=num_tokens, device=device)


def writing_step(task: Task, case: Case, start: Start, machine: Machine) -> Step:
    torch.manual_seed(task.seed)
    model = our_model(task, task.vocab_size).to(machine.device).eval()
    write = start(model)
    prompts = case.prompts(task.vocab_size)

    def step(number: int) -> None:
        texts = write(prompts, case.new_tokens)
        lengths = [len(text) for text in texts]
        if lengths != [case.new_tokens] * case.batch_size:
            raise RuntimeError(f"wrote {lengths} tokens in place of {case.new_tokens} each")

    return step


# ---------------------------------------------------------------- who writes


def ours(model: Transformer, *, precision: str) -> Continue:
    """What generate.py runs."""
    tune_process()
    model = prepared(model, precision)

    def write(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        context = Context(model, prompts, max_new_tokens=num_tokens)
        steps = continue_rows(context, Sampling(temperature=0), seeds=[0] * len(prompts))
        tokens = [list(step.values()) for step in steps]
        return [list(row) for row in zip(*tokens, strict=True)]

    return write


def transformers(model: Transformer, *, precision: str) -> Continue:
    """transformers' own `generate`."""
    theirs = as_transformers(model).to(model.device, getattr(torch, precision))

    @torch.no_grad()
    def write(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        ids = torch.tensor(prompts, device=model.device)
        settings = {"max_new_tokens": num_tokens, "min_new_tokens": num_tokens, "do_sample": False}
        mask = torch.ones_like(ids)
        result = theirs.generate(ids, attention_mask=mask, **settings)
        return result[:, ids.size(1) :].tolist()

    return write


def as_transformers(model: Transformer) -> Any:
    """transformers' GPT-2 with our weights, on the CPU."""
    from transformers import GPT2Config, GPT2LMHeadModel

    V, C = model.input_embedding.embedding.weight.shape
    config = GPT2Config(
        vocab_size=V,
        n_positions=model.seq_len,
        n_embd=C,
        n_layer=len(model.blocks),
        n_head=model.blocks[0].attention.num_heads,
        n_inner=model.blocks[0].feed_forward.expand.weight.size(0),
        **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), V - 1),
    )
    theirs = GPT2LMHeadModel(config).eval()
    theirs.transformer.load_state_dict(huggingface_weights(model))
    return theirs


def ctranslate2(model: Transformer, *, compute_type: str) -> Continue:
    """CTranslate2's Generator, converted from transformers' model."""
    import ctranslate2
    from ctranslate2.converters.transformers import GPT2Loader

    spec = GPT2Loader().get_model_spec(as_transformers(model))
    V = model.input_embedding.embedding.num_embeddings
    spec.register_vocabulary([str(token) for token in range(V)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = str(V - 1)
    spec.validate()
    spec.optimize(quantization=None)
    with TemporaryDirectory() as folder:
        spec.save(folder)
        engine = ctranslate2.Generator(
            folder,
            device=model.device.type,
            compute_type=compute_type,
            intra_threads=torch.get_num_threads(),
        )

    def write(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        results = engine.generate_batch(
            [[str(token) for token in prompt] for prompt in prompts],
            min_length=num_tokens,
            max_length=num_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return [[int(token) for token in result.sequences[0]] for result in results]

    return write


def llama_cpp(model: Transformer, *, type_name: str) -> Continue:
    """llama.cpp by llama-cpp-python, which takes one prompt at a time."""
    import llama_cpp

    num_gpu_layers = -1 if model.device.type == "cuda" else 0  # all of them, if it was built so
    num_heads = model.blocks[0].attention.num_heads
    layer = model.blocks[0].feed_forward.expand
    sizes = (model.seq_len, layer.in_features, len(model.blocks), num_heads, layer.out_features)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        export_gguf(path, dict(zip(SIZES.values(), sizes, strict=True)), model.cpu(), type_name)
        engine = llama_cpp.Llama(
            str(path),
            n_ctx=model.seq_len,
            n_threads=torch.get_num_threads(),
            n_threads_batch=torch.get_num_threads(),
            n_gpu_layers=num_gpu_layers,
            verbose=False,
        )

    def write(prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
        texts = []
        for prompt in prompts:
            engine.reset()
            tokens = engine.generate(prompt, temp=0, repeat_penalty=1.0)
            texts.append(list(islice(tokens, num_tokens)))
        return texts

    return write


ENGINES: dict[str, tuple[str, Start]] = {  # by name: the package it needs, and how it starts
    **{
        f"ours {name}": ("torch", partial(ours, precision=name))
        for name in ("float32", "bfloat16", "int8")
    },
    **{
        f"transformers {name}": ("transformers", partial(transformers, precision=name))
        for name in ("float32", "bfloat16")
    },
    **{
        f"CTranslate2 {name}": ("ctranslate2", partial(ctranslate2, compute_type=name))
        for name in ("float32", "int8")
    },
    **{
        f"llama.cpp {name}": ("llama_cpp", partial(llama_cpp, type_name=name))
        for name in FILE_TYPES
    },
}
