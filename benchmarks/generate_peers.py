"""Engines that write text, ours and others, from the same random weights and the same prompts."""

from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.train_peers import gpt2, our_model
from benchmarks.turns import Steps, Task
from exchange.gguf_file import FILE_TYPES, export_gguf
from generation.decoding import Context, continue_rows
from generation.fast_weights import prepared
from generation.guesses import MOST_GUESSES
from generation.settings import Sampling
from system.machine import Machine, tune_process

Tokens = list[list[int]]  # tokens of prompts, or of what continues them
Engine = Callable[[Task, Machine, str, Tokens], Iterator[Tokens]]  # str: type of the weights


def writing(task: Task, machine: Machine, *, engine: Engine, kind: str) -> Steps:
    """A step greedily continues a prompt for each row of the batch, with no end of text."""
    torch.manual_seed(task.seed)
    last = task.vocab_size - 1  # ends a text for some engines: no prompt has it
    prompts = torch.randint(last, (task.batch_size, task.prompt_tokens)).tolist()
    for texts in engine(task, machine, kind, prompts):
        lengths = [len(text) for text in texts]
        if lengths != [task.new_tokens] * task.batch_size:
            raise RuntimeError(f"wrote {lengths} tokens in place of {task.new_tokens} each")
        yield texts


def ours(
    task: Task, machine: Machine, kind: str, prompts: Tokens, *, most_guesses: int = 0
) -> Iterator[Tokens]:
    """What generate.py runs; without guesses as the other engines, a step of the model a token."""
    tune_process()
    model = prepared(our_model(task).eval().to(machine.device), kind)
    while True:
        context = Context(model, prompts, max_new_tokens=task.new_tokens)
        greedy, seeds = Sampling(temperature=0), [0] * len(prompts)
        texts: Tokens = [[] for _ in prompts]
        for step in continue_rows(context, greedy, seeds=seeds, most_guesses=most_guesses):
            for row, token in step.items():
                texts[row].append(token)
        yield texts


def transformers(task: Task, machine: Machine, kind: str, prompts: Tokens) -> Iterator[Tokens]:
    """transformers' own `generate`."""
    model = gpt2(task).eval().to(machine.device, getattr(torch, kind))
    ids = torch.tensor(prompts, device=machine.device)
    settings = {"attention_mask": torch.ones_like(ids), "do_sample": False, "use_cache": True}
    settings |= dict.fromkeys(("max_new_tokens", "min_new_tokens"), task.new_tokens)
    while True:
        yield model.generate(ids, **settings)[:, ids.size(1) :].tolist()


def ctranslate2(task: Task, machine: Machine, kind: str, prompts: Tokens) -> Iterator[Tokens]:
    """CTranslate2's Generator, converted from transformers' model."""
    import ctranslate2
    from ctranslate2.converters.transformers import GPT2Loader

    spec = GPT2Loader().get_model_spec(gpt2(task).eval())
    spec.register_vocabulary([str(token) for token in range(task.vocab_size)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = str(task.vocab_size - 1)
    spec.validate()
    spec.optimize(quantization=None)
    place = {"device": machine.device.type, "intra_threads": torch.get_num_threads()}
    with TemporaryDirectory() as folder:
        spec.save(folder)
        engine = ctranslate2.Generator(folder, compute_type=kind, **place)
    texts = [[*map(str, prompt)] for prompt in prompts]
    settings = {"min_length": task.new_tokens, "max_length": task.new_tokens, "sampling_topk": 1}
    while True:
        results = engine.generate_batch(texts, include_prompt_in_result=False, **settings)
        yield [[int(token) for token in result.sequences[0]] for result in results]


def llama_cpp(task: Task, machine: Machine, kind: str, prompts: Tokens) -> Iterator[Tokens]:
    """llama.cpp by llama-cpp-python, which takes one prompt at a time."""
    import llama_cpp

    settings = dict.fromkeys(("n_threads", "n_threads_batch"), torch.get_num_threads())
    settings["n_gpu_layers"] = -1 if machine.device.type == "cuda" else 0  # all, if built so
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        export_gguf(path, asdict(task), our_model(task), kind)
        engine = llama_cpp.Llama(str(path), n_ctx=task.seq_len, verbose=False, **settings)
    while True:
        texts = []
        for prompt in prompts:
            engine.reset()
            tokens = engine.generate(prompt, temp=0, repeat_penalty=1.0)
            texts.append([*islice(tokens, task.new_tokens)])
        yield texts


ENGINES = {  # the package that each needs, how it starts, the types of its weights
    "ours": ("torch", ours, ("float32", "bfloat16", "int8")),
    "ours, guessing": ("torch", partial(ours, most_guesses=MOST_GUESSES), ("float32",)),
    "transformers": ("transformers", transformers, ("float32", "bfloat16")),
    "CTranslate2": ("ctranslate2", ctranslate2, ("float32", "int8")),
    "llama.cpp": ("llama-cpp-python", llama_cpp, tuple(FILE_TYPES)),
}
