"""Speed and memory of what takes turns here and now, as a Markdown table."""

import argparse
import os
import platform
import re
from collections.abc import Collection, Sequence
from dataclasses import fields, replace
from functools import partial
from importlib.metadata import distributions, version
from pathlib import Path

from benchmarks import train_peers as who
from benchmarks.generate_peers import ENGINES, writing
from benchmarks.turns import Contestant, Rows, Task, table, take_turns
from system.command_line import Parser
from system.errors import ConfigError
from system.files import as_path
from system.process import run_command
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
CPU_INFO = Path("/proc/cpuinfo")


def train(task: Task) -> str:
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
    highest = max(floor_rates.values(), default=float("nan"))
    for result in results:
        share = result.gflops / floor_rates.get(result.task.flops, highest)
        rows[result.name]["of products alone"] = f"{share:.0%}"
    return table(rows)


def loss(task: Task) -> str:
    """Only the loss over the full vocabulary, from hidden states to both gradients."""
    contestants = []
    for name, loss_of in LOSSES.items():
        alone = replace(task, num_layers=0, compiled=name.endswith("compiled"))
        contestants.append(Contestant(name, alone, partial(who.loss_alone, loss_of=loss_of)))
    return table(compared(take_turns(contestants), ["ours"], column="ours is faster"))


def compared(results: Sequence[Contestant], ours: Collection[str], *, column: str) -> Rows:
    """Rows of a table; the column says how many times as fast ours are."""
    best = [result.median_seconds for result in results if result.name in ours]
    return {
        r.name: r.cells() | {column: ", ".join(f"{r.median_seconds / s:.2f}" for s in best)}
        for r in results
    }


def scaling(task: Task) -> str:
    """Our training (unused tokens sharing a row) of other models, lengths and batches."""
    rows = {}
    for changes in SCALES:
        name = ", ".join(f"{key} {value}" for key, value in changes.items()) or "as it is"
        alone = Contestant(name, replace(task, is_shared=True, **changes), who.ours)
        rows |= {result.name: result.cells() for result in take_turns([alone])}
    return table(rows)


def generate(task: Task) -> str:
    """Tokens a second, 128 new ones a prompt: ours and every engine that is installed."""
    rows: Rows = {}
    for batch_size, prompt_tokens in CASES:
        case = replace(task, batch_size=batch_size, prompt_tokens=prompt_tokens, **WRITING)
        writers = [
            Contestant(f"{name} {kind}", case, partial(writing, engine=engine, kind=kind))
            for name, (package, engine, kinds) in ENGINES.items()
            for kind in kinds
            if package in versions()
        ]
        for result in take_turns(writers, num_warm_ups=1):
            cell = {f"batch {batch_size}, prompt {prompt_tokens}": result.cells()["tokens/s"]}
            rows[result.name] = rows.get(result.name, {}) | cell
    return table(rows, corner="tokens/s")


PARTS = {  # what measures; the shape and the steps if the command line names none
    "train": (train, "default", 12),
    "loss": (loss, "default", 12),
    "scaling": (scaling, "default", 4),
    "generate": (generate, "gpt2-small", 3),
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """What the command line sets."""
    parts = [
        f"{name}: {measure.__doc__} By default --shape {shape} --steps {steps}."
        for name, (measure, shape, steps) in PARTS.items()
    ]
    parser = Parser(
        prog="bench.py",
        description="\n".join([__doc__, *parts]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("part", choices=PARTS, help="what is measured")
    add("--shape", choices=SHAPES, help="model and batch to start from")
    add("--compiled", action="store_true", help="train: torch.compile'd rows as well")
    add("--nanogpt", type=as_path, metavar="DIR", help="train: this checkout of nanoGPT takes part")
    for name, default in OPTIONS.items():
        values = " or ".join(dict.fromkeys(str(getattr(shape, name)) for shape in SHAPES.values()))
        add(f"--{name.replace('_', '-')}", type=type(default), help=f"default: {values}")
    return parser.parse_args(arguments)


def versions() -> dict[str, str]:
    """Of the packages whose speed is measured, those that are installed."""
    return {name: version(name) for name, *_ in ENGINES.values() if any(distributions(name=name))}


def main(arguments: Sequence[str] | None = None) -> None:
    given = vars(parse(arguments))
    measure, shape, steps = PARTS[given.pop("part")]
    task = replace(SHAPES[given.pop("shape", shape)], **{"steps": steps, **given})
    problems = problems_of({name: getattr(task, name) for name in OPTIONS if name in KEYS})
    if task.steps < 1:
        problems.append(f"steps={task.steps} is not a whole number >= 1")
    if not 1 <= task.num_used <= task.vocab_size:
        problems.append(f"num_used={task.num_used} is not in [1, vocab_size={task.vocab_size}]")
    if task.nanogpt and not (task.nanogpt / "model.py").exists():
        problems.append(f"nanogpt={task.nanogpt} has no model.py: name a checkout's folder")
    if problems:
        raise ConfigError("command line: " + "; ".join(problems))
    models = re.findall("model name.*: (.*)", CPU_INFO.read_text()) if CPU_INFO.exists() else []
    hardware = f"{[*models, platform.processor()][0]}, {os.cpu_count()} processors"
    software = ", ".join(" ".join(item) for item in versions().items())
    print(f"{task}\n{hardware}; {task.machine()}; {software}")
    print(f"\n{measure(task)}")


if __name__ == "__main__":
    run_command(main)
