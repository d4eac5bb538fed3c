"""Speed and memory, measured here and now: `python bench.py train`, `loss`, `scaling`, `generate`.

What is compared takes turns, a step at a time, each in a process of its own (see duel.py). The
result is a Markdown table.
"""

import argparse
import importlib.util
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from torch.nn import functional as F

from benchmarks import train_peers as who
from benchmarks.generate_peers import CASES, CONTEXT, Case, writers
from benchmarks.train_peers import Task
from benchmarks.turns import Contestant, Result, Step, device_line, table, take_turns
from system.command_line import Parser
from system.errors import ConfigError
from system.machine import Machine
from system.process import run_command
from training.settings import AT_LEAST_1, KEYS
from training.wanted import head_problems, shown

OURS = ("ours, full vocabulary", "ours, unused tokens share a row")
FLOOR = "matrix products alone"
PEAK_SIZE = 8192  # rows and columns of the product that shows the peak of a GPU
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


@dataclass(frozen=True)
class Wanted:
    """What the command line asks for."""

    task: Task
    machine: Machine
    options: argparse.Namespace

    def contestant(
        self,
        name: str,
        build: Callable[..., Step],
        *,
        num_rows: int | None = None,
        precision: str | None = None,
        **settings: Any,
    ) -> Contestant:
        """`build(task, machine, **settings)`; it computes `num_rows` of the head, or all."""
        return Contestant(
            name,
            partial(build, self.task, **settings),
            num_tokens=self.task.num_tokens,
            flops=self.task.flops(num_rows or self.task.vocab_size),
            device=self.options.device,
            precision=precision or self.options.precision,
        )


# ---------------------------------------------------------------- what is compared


def train(wanted: Wanted) -> str:
    """A full training step: ours, every peer that is installed, and the floor under them."""
    results = run([*our_contestants(wanted), *peers(wanted), *floors(wanted)], wanted)
    ours = [result for result in results if result.contestant.name in OURS]
    floor_results = [result for result in results if result.contestant.name.startswith(FLOOR)]
    header = ["", "tokens/s", "middle half", "ours is faster (full, shared)"]
    header += ["peak memory", "GFLOP/s", "of products alone"]
    rows = [
        [
            *result.speed_cells(),
            ", ".join(f"{mine.tokens_per_second / result.tokens_per_second:.2f}" for mine in ours),
            f"{result.memory_bytes / 1e9:.2f} GB",
            f"{result.flops_per_second / 1e9:,.0f}",
            f"{result.flops_per_second / floor_rate(result, floor_results):.0%}",
        ]
        for result in results
    ]
    return table(header, rows)


def our_contestants(wanted: Wanted) -> list[Contestant]:
    """Ours as train.py starts it, and compiled where that is asked for."""
    num_rows = wanted.task.vocabulary(is_shared=True).size
    ways = {"": "auto", ", compiled": "on"} if wanted.options.compiled else {"": "auto"}
    return [
        wanted.contestant(
            name + suffix, who.ours, num_rows=rows, is_shared=is_shared, wants_compile=compile_
        )
        for suffix, compile_ in ways.items()
        for name, rows, is_shared in zip(OURS, (None, num_rows), (False, True), strict=True)
    ]


def peers(wanted: Wanted) -> list[Contestant]:
    """The others in float32 and in what this machine multiplies faster."""
    builders: dict[str, Callable[..., Step]] = {"plain loop, our model": who.plain}
    if importlib.util.find_spec("transformers"):
        builders["transformers"] = who.hugging_face
    else:
        print("left out: transformers is not installed")
    if wanted.options.nanogpt:
        builders["nanoGPT"] = partial(who.nanogpt, folder=wanted.options.nanogpt)
    precisions = dict.fromkeys(["float32", str(wanted.machine.dtype).removeprefix("torch.")])
    return [
        wanted.contestant(
            f"{name}, {precision}" + ", compiled" * is_compiled,
            build,
            precision=precision,
            is_compiled=is_compiled,
        )
        for name, build in builders.items()
        for precision in precisions
        for is_compiled in ([False, True] if wanted.options.compiled else [False])
    ]


def floors(wanted: Wanted) -> list[Contestant]:
    """The products of our two steps; of a GPU its peak."""
    if wanted.machine.device.type == "cuda":
        build = partial(who.peak, size=PEAK_SIZE)
        return [replace(wanted.contestant(FLOOR, build), flops=2.0 * PEAK_SIZE**3)]
    sizes = [wanted.task.vocabulary(is_shared=is_shared).size for is_shared in (False, True)]
    return [
        wanted.contestant(
            f"{FLOOR}, {rows:,} rows", partial(who.floor, num_rows=rows), num_rows=rows
        )
        for rows in sizes
    ]


def floor_rate(result: Result, floors: Sequence[Result]) -> float:
    """FLOP/s of the floor with as much work, or of the only one there is."""
    alike = [floor for floor in floors if floor.contestant.flops == result.contestant.flops]
    return (alike or floors)[0].flops_per_second


def loss(wanted: Wanted) -> str:
    """Only the loss over the full vocabulary, from hidden states to both gradients."""
    losses = {
        "ours": who.our_loss,
        "F.cross_entropy": who.plain_loss,
        "F.cross_entropy, compiled": who.compiled_loss,
    }
    if hasattr(F, "linear_cross_entropy"):
        losses["F.linear_cross_entropy"] = who.torch_loss
        chunks = {"batch_chunk_size": 1024, "acc_policy": "compact"}
        losses["F.linear_cross_entropy, chunks"] = partial(who.torch_loss, **chunks)
    else:
        print("left out: this torch has no F.linear_cross_entropy")
    alone = replace(wanted, task=replace(wanted.task, num_layers=0))
    contestants = [
        alone.contestant(name, who.loss_step, loss_of=loss_of) for name, loss_of in losses.items()
    ]
    results = run(contestants, wanted)
    header = ["", "milliseconds", "middle half", "times ours", "peak memory", "GFLOP/s"]
    rows = [
        [
            result.contestant.name,
            f"{1e3 * result.median_seconds:.1f}",
            "-".join(f"{1e3 * seconds:.1f}" for seconds in result.middle_half()),
            f"{result.median_seconds / results[0].median_seconds:.2f}",
            f"{result.memory_bytes / 1e9:.2f} GB",
            f"{result.flops_per_second / 1e9:,.0f}",
        ]
        for result in results
    ]
    return table(header, rows)


def scaling(wanted: Wanted) -> str:
    """Our training (unused tokens sharing a row) of other models, lengths and batches."""
    rows = []
    for changes in SCALES:
        changed = replace(wanted, task=replace(wanted.task, **changes))
        num_rows = changed.task.vocabulary(is_shared=True).size
        name = ", ".join(f"{key} {value}" for key, value in changes.items()) or "as it is"
        contestant = changed.contestant(
            name, who.ours, num_rows=num_rows, is_shared=True, wants_compile="auto"
        )
        for result in run([contestant], wanted):
            memory, rate = result.memory_bytes / 1e9, result.flops_per_second / 1e9
            rows.append([*result.speed_cells(), f"{memory:.2f} GB", f"{rate:,.0f}"])
    return table(["", "tokens/s", "middle half", "peak memory", "GFLOP/s"], rows)


def generate(wanted: Wanted) -> str:
    """Tokens a second, 128 new ones a prompt: ours and every engine that is installed."""
    task = replace(wanted.task, seq_len=CONTEXT)
    speeds: dict[str, dict[Case, str]] = {}
    for case in CASES:
        for result in run(list(writers(task, case, wanted.options.device)), wanted, num_warm_ups=1):
            speeds.setdefault(result.contestant.name, {})[case] = result.speed_cells()[1]
    rows = [[name, *(cells.get(case, "-") for case in CASES)] for name, cells in speeds.items()]
    return table(["tokens/s", *map(str, CASES)], rows)


# ---------------------------------------------------------------- tables


def run(
    contestants: Sequence[Contestant], wanted: Wanted, *, num_warm_ups: int = 2
) -> list[Result]:
    """Results of those that could run; the others are named in a line."""
    results = take_turns(contestants, wanted.options.steps, num_warm_ups)
    for result in results:
        if result.failure:
            print(f"left out: {result.contestant.name}: {result.failure}")
    return [result for result in results if not result.failure]


class Part(NamedTuple):
    """What can be measured; the shape and the measured steps if the command line names none."""

    measure: Callable[[Wanted], str]
    shape: str
    steps: int


PARTS = {
    "train": Part(train, "default", 12),
    "loss": Part(loss, "default", 12),
    "scaling": Part(scaling, "default", 4),
    "generate": Part(generate, "gpt2-small", 3),
}


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parts = [f"{name}: {part.measure.__doc__}" for name, part in PARTS.items()]
    parser = Parser(
        prog="bench.py",
        description="\n".join([__doc__, *parts]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("part", choices=PARTS, help="what is measured")
    steps = ", ".join(f"{name} {part.steps}" for name, part in PARTS.items())
    add("--steps", type=int, help=f"measured steps of each contestant (default: {steps})")
    add("--compiled", action="store_true", help="train: torch.compile'd rows as well")
    add("--nanogpt", type=Path, metavar="DIR", help="train: this checkout of nanoGPT takes part")
    shapes = ", ".join(f"{name} {part.shape}" for name, part in PARTS.items())
    add("--shape", choices=SHAPES, help=f"model and batch to start from (default: {shapes})")
    for size in fields(Task):
        kind, shape_has = type(size.default), [getattr(task, size.name) for task in SHAPES.values()]
        values = " or ".join(dict.fromkeys(map(str, shape_has)))
        add(f"--{size.name.replace('_', '-')}", type=kind, help=f"default: {values}")
    add("--device", default="auto", help="auto, cpu, mps, cuda or cuda:N")
    add("--precision", default="auto", help="ours: auto, float32, bfloat16 or float16")
    return parser.parse_args(arguments)


def check(options: argparse.Namespace, task: Task) -> None:
    """ConfigError with everything that cannot be measured."""
    others = {name: getattr(options, name) for name in ("steps", "device", "precision")}
    values = {**asdict(task), **others}
    rules = {name: KEYS[name].rule if name in KEYS else AT_LEAST_1 for name in values}
    problems = [
        f"{name}={shown(value)} is not {rules[name].wants}"
        for name, value in values.items()
        if not rules[name].is_met(value)
    ]
    if not problems:
        problems = head_problems(task.embedding_dim, task.num_heads)
    if task.num_used > task.vocab_size:
        problems.append(f"num_used={task.num_used} is more than vocab_size={task.vocab_size}")
    if options.nanogpt and not (options.nanogpt / "model.py").exists():
        problems.append(f"nanogpt={options.nanogpt} has no model.py: name a checkout's folder")
    if problems:
        raise ConfigError("command line: " + "; ".join(problems))


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(sys.argv[1:] if arguments is None else arguments)
    part = PARTS[options.part]
    options.steps = part.steps if options.steps is None else options.steps
    given = {size.name: getattr(options, size.name) for size in fields(Task)}
    given = {name: value for name, value in given.items() if value is not None}
    task = replace(SHAPES[options.shape or part.shape], **given)
    check(options, task)
    wanted = Wanted(task, Machine.choose(options.device, options.precision), options)
    print(f"{task}\n{device_line(wanted.machine)}")
    print(f"\n{part.measure(wanted)}")


if __name__ == "__main__":
    run_command(main)
