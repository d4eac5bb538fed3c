"""Speed and memory of what takes turns here and now, as a Markdown table."""

import argparse
import re
from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from functools import partial
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import processes, record
from benchmarks import train_peers as who
from benchmarks.generate_peers import ENGINES, writing
from benchmarks.gpu import measure_gpu
from benchmarks.minutes import measure_minutes
from benchmarks.recipe import measure_recipes
from benchmarks.turns import Contestant, Rows, Task, take_turns
from system.command_line import Parser
from system.errors import ConfigError
from system.files import as_path
from system.process import run_command
from training.loss import ALIGNED_ROWS
from training.settings import KEYS
from training.wanted import problems_of

OURS = {"ours, full vocabulary": {}, "ours, unused tokens share a row": {"is_shared": True}}
FLOOR = "matrix products alone"
LARGE = dict.fromkeys(("seq_len", "embedding_dim", "vocab_size"), 8192)
PEAK = {"batch_size": 1, "num_heads": 1, "num_layers": 0, **LARGE}  # as a GPU likes its products
LOSSES = {
    "ours": who.our_loss,
    "F.cross_entropy": who.all_logits,
    "F.cross_entropy, compiled": who.all_logits,
    "F.linear_cross_entropy": who.torch_loss,
    "F.linear_cross_entropy, chunks": partial(who.torch_loss, **who.CHUNKS),
}
GPT2_SMALL = {"embedding_dim": 768, "num_layers": 12, "num_heads": 12, "ffn_hidden_dim": 3072}
SHAPES = {"default": Task(), "gpt2-small": Task(batch_size=4, seq_len=256, **GPT2_SMALL)}
SHAPES["gpt2-train"] = replace(SHAPES["gpt2-small"], batch_size=16, seq_len=1024, dropout=0.0)
SCALES = [  # changes to the task, a row of `scaling` each
    {},
    {"embedding_dim": 128, "num_layers": 2, "ffn_hidden_dim": 512},
    {"embedding_dim": 512, "num_layers": 8, "ffn_hidden_dim": 2048},
    GPT2_SMALL,
    *({"seq_len": seq_len} for seq_len in (64, 256, 512, 1024)),
    *({"batch_size": batch_size} for batch_size in (1, 4, 16, 32)),
]
CASES = [(1, 16), (8, 16), (1, 512), (8, 512)]  # prompts and their tokens, a column of `generate`
WRITING = {"seq_len": 1024, "new_tokens": 128}
OPTIONS = {option.name: option.default for option in fields(Task) if option.repr}
CHUNK_SIZES = (512, 1024, 2048, 4096, 8192)  # tokens that the loss takes at once
SMOOTHED_STEPS = 20


def train(task: Task) -> Rows:
    """A full training step: ours, every peer that is installed, and the floor under them."""
    machine = task.machine()
    precisions = dict.fromkeys(["float32", str(machine.dtype).removeprefix("torch.")])
    peers = {"plain loop, our model": partial(who.plain, build=who.our_model)}
    peers |= {"transformers": partial(who.plain, build=who.gpt2)}
    peers |= {"nanoGPT": who.nanogpt} if task.nanogpt else {}
    chosen = [(name, who.ours, changes) for name, changes in OURS.items()]
    for name, build in peers.items():
        chosen += [(f"{name}, {kind}", build, {"precision": kind}) for kind in precisions]
    contestants = [
        Contestant(name + suffix, replace(task, compiled=bool(suffix), **changes), build)
        for name, build, changes in chosen
        for suffix in ["", ", compiled"][: 1 + task.compiled]
    ]
    for changes in [PEAK] if machine.device.type == "cuda" else OURS.values():
        floor = replace(task, **changes)
        contestants.append(Contestant(f"{FLOOR}, {floor.num_rows:,} rows", floor, who.floor))
    results = take_turns(contestants)
    rows = compared(results, OURS, column="ours is faster (full, shared)")
    floor_rates = {r.task.flops: r.gflops for r in results if r.name.startswith(FLOOR)}
    for result in results if floor_rates else []:
        floor_rate = floor_rates.get(result.task.flops, max(floor_rates.values()))
        rows[result.name]["of products alone"] = result.gflops / floor_rate
    return rows


def loss(task: Task) -> Rows:
    """Only the loss over the full vocabulary, from hidden states to both gradients."""
    contestants = []
    for name, loss_of in LOSSES.items():
        alone = replace(task, num_layers=0, compiled=name.endswith("compiled"))
        contestants.append(Contestant(name, alone, partial(who.loss_alone, loss_of=loss_of)))
    return compared(take_turns(contestants), ["ours"], column="ours is faster")


def head(task: Task) -> Rows:
    """Our loss in chunks of so many tokens, and compiled; a step with rows that divide by 64."""
    alone = replace(task, num_layers=0)
    sizes = [size for size in CHUNK_SIZES if size < task.num_tokens] + [task.num_tokens]
    losses = {
        f"loss, {n:,} tokens at once": (alone, partial(who.our_loss, chunk_size=n)) for n in sizes
    }
    losses["loss, compiled"] = (replace(alone, compiled=True), who.our_loss)
    contestants = [
        Contestant(name, changed, partial(who.loss_alone, loss_of=loss_of))
        for name, (changed, loss_of) in losses.items()
    ]
    padded = -(-task.vocab_size // ALIGNED_ROWS) * ALIGNED_ROWS
    for rows in dict.fromkeys([task.vocab_size, padded]):
        contestants.append(
            Contestant(f"step, {rows:,} rows", replace(task, vocab_size=rows), who.ours)
        )
    return {result.name: result.numbers() for result in take_turns(contestants)}


def agreement(task: Task) -> Rows:
    """Losses of the same steps in every type, means of 20, and how far they part from float32's."""
    kinds = {"float32, exact": ("float32", True), "float32": ("float32", False)}
    kinds |= {kind: (kind, False) for kind in ("bfloat16", "float16")}
    contestants = [
        Contestant(name, replace(task, precision=kind), partial(who.on_text, is_exact=is_exact))
        for name, (kind, is_exact) in kinds.items()
    ]
    rows: Rows = {}
    exact = None
    for result in take_turns(contestants, num_warm_ups=0):
        size = min(SMOOTHED_STEPS, len(result.values))
        means = np.convolve(result.values, np.full(size, 1 / size), "valid")
        exact = means if exact is None else exact
        rows[result.name] = result.numbers() | {
            "loss": float(means[-1]),
            "largest difference": float(np.abs(means - exact).max()),
        }
    return rows


def compared(results: Sequence[Contestant], ours: Collection[str], *, column: str) -> Rows:
    """Rows of a table; the column says how many times as fast ours are."""
    best = [result.median_seconds for result in results if result.name in ours]
    return {
        r.name: r.numbers() | {column: [r.median_seconds / seconds for seconds in best]}
        for r in results
    }


def scaling(task: Task) -> Rows:
    """Our training (unused tokens sharing a row) of other models, lengths, batches; processes."""
    if task.processes:
        return processes.rows_of(task)
    contestants = []
    for changes in SCALES:
        name = ", ".join(f"{key} {value}" for key, value in changes.items()) or "as it is"
        contestants.append(Contestant(name, replace(task, is_shared=True, **changes), who.ours))
    return {result.name: result.numbers() for result in take_turns(contestants, together=False)}


def generate(task: Task) -> Rows:
    """Tokens a second, 128 new ones a prompt: ours and every engine that is installed."""
    rows: Rows = {}
    task = replace(task, max_seconds=task.max_seconds / len(CASES))
    for batch_size, prompt_tokens in CASES:
        case = replace(task, batch_size=batch_size, prompt_tokens=prompt_tokens, **WRITING)
        writers = [
            Contestant(f"{name} {kind}", case, partial(writing, engine=engine, kind=kind))
            for name, (package, engine, kinds) in ENGINES.items()
            for kind in kinds
            if package in versions()
        ]
        for result in take_turns(writers, num_warm_ups=1):
            rate = {f"batch {batch_size}, prompt {prompt_tokens}": result.numbers()["tokens/s"]}
            rows[result.name] = rows.get(result.name, {}) | rate
    return rows


PARTS = {  # what measures; the shape and the steps if the command line names none
    "train": (train, "default", 12),
    "loss": (loss, "default", 12),
    "head": (head, "default", 12),
    "scaling": (scaling, "default", 4),
    "generate": (generate, "gpt2-small", 3),
    "agreement": (agreement, "default", 200),
}
ONLY_OF = {"seeds": "recipe", "processes": "scaling"}  # options, each of one part
OF_TEXTS = {"recipe": measure_recipes, "minutes": measure_minutes}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line sets."""
    parts = [
        f"{name}: {measure.__doc__} By default --shape {shape} --steps {steps}."
        for name, (measure, shape, steps) in PARTS.items()
    ]
    parts += [f"gpu: {measure_gpu.__doc__}"]
    parts += [f"{name} TEXT...: {measure.__doc__}" for name, measure in OF_TEXTS.items()]
    parts += [f"compare OLD NEW: {record.compare.__doc__}"]
    parser = Parser(
        prog="bench.py",
        description="\n".join([__doc__, *parts]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
    )
    add = parser.add_argument
    add("part", choices=[*PARTS, "gpu", *OF_TEXTS, "compare"], help="what is measured")
    add("files", nargs="*", type=as_path, help="compare: two that --json wrote; else texts")
    add("--json", type=as_path, metavar="FILE", help="where the numbers go as well")
    add("--shape", choices=SHAPES, help="model and batch to start from")
    add("--seeds", type=int, metavar="N", help="recipe: runs of each kind, default: 1")
    add("--processes", action="store_true", help="scaling: one a core beside one for all cores")
    add("--compiled", action="store_true", help="train: torch.compile'd rows as well")
    add("--nanogpt", type=as_path, metavar="DIR", help="train, minutes: this checkout takes part")
    add(
        "--only",
        type=expression,
        metavar="PATTERN",
        help="rows whose names this regular expression finds",
    )
    add(
        "--max-seconds", type=float, help="of each training of recipe and minutes; else of all rows"
    )
    for name, default in OPTIONS.items():
        values = " or ".join(dict.fromkeys(str(getattr(shape, name)) for shape in SHAPES.values()))
        add(f"--{name.replace('_', '-')}", type=type(default), help=f"default: {values}")
    return parser.parse_args(arguments)


def versions() -> dict[str, str]:
    """Of the packages whose speed is measured, those that are installed."""
    return {name: version(name) for name, *_ in ENGINES.values() if any(distributions(name=name))}


def expression(text: str) -> str:
    """The text, where it is a regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"{text} is no regular expression ({error})") from error
    return text


def task_of(given: dict[str, Any], shape: str, steps: int) -> Task:
    """The task that the command line describes, or all that is wrong with it."""
    task = replace(SHAPES[given.pop("shape", shape)], **{"steps": steps, **given})
    problems = problems_of({name: getattr(task, name) for name in OPTIONS if name in KEYS})
    if task.steps < 1:
        problems.append(f"steps={task.steps} is not a whole number >= 1")
    if not 1 <= task.num_used <= task.vocab_size:
        problems.append(f"num_used={task.num_used} is not in [1, vocab_size={task.vocab_size}]")
    if not task.max_seconds > 0:
        problems.append(f"max_seconds={task.max_seconds} is not above 0")
    if task.nanogpt and not (task.nanogpt / "model.py").exists():
        problems.append(f"nanogpt={task.nanogpt} has no model.py: name a checkout's folder")
    if problems:
        raise ConfigError("command line: " + "; ".join(problems))
    return task


def main(arguments: Sequence[str] | None = None) -> None:
    given = vars(parse(arguments))
    part, files, path = given.pop("part"), given.pop("files", []), given.pop("json", None)
    if part in OF_TEXTS:
        OF_TEXTS[part](given, files, path)
        return
    for name, owner in ONLY_OF.items():
        if name in given and part != owner:
            raise ConfigError(f"command line: {part} and --{name}: only {owner} takes it")
    if len(files) != 2 * (part == "compare"):
        raise ConfigError(f"command line: {part} and {len(files)} files: only compare takes two")
    if part == "compare":
        if given or path:
            raise ConfigError(f"command line: compare takes no --{[*given, 'json'][0]}")
        print(record.compare(*map(record.load, files)))
        return
    if part == "gpu":
        measure_gpu(given, path or Path("gpu.json"))
        return
    measure, shape, steps = PARTS[part]
    task = task_of(given, shape, steps)
    measured = record.conditions(task, versions())
    print("\n".join(f"{key}: {value}" for key, value in measured.items()), end="\n\n", flush=True)
    rows = measure(task)
    print(record.table(rows, corner="tokens/s" if part == "generate" else ""))
    if path:
        record.save(path, {"part": part, **measured, "rows": rows})


if __name__ == "__main__":
    run_command(main)
