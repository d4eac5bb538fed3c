"""Sends signals to real trainings, at chosen places and at random times, and resumes them.

Prints one line of JSON: how each life ended, and whether the run it belongs to ended as the one
that met no signal.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kill_loop import LOG_NAME, fork, get_ready, one_life, resumable_life
from tiny_run import CONFIG, fingerprint, prepare, train_quickly

from corpus import token_build
from generation import generator
from storage import checkpoint
from system.process import run_command
from training import learner, samples, store
from training.run import Run

PLACES: dict[str, tuple[Any, str]] = {
    "tokenizing": (token_build, "append_ids"),
    "first step": (Run, "update"),
    "evaluation": (learner.Learner, "mean_loss"),
    "sampling": (generator.TextGenerator, "generate"),
    "saving": (store, "save"),
    "final save": (store, "save_final"),
    "strategies": (samples, "compare_strategies"),
}
SIGNALS = {
    "SIGINT": [signal.SIGINT],
    "SIGTERM": [signal.SIGTERM],
    "SIGHUP": [signal.SIGHUP],
    "SIGINT twice": [signal.SIGINT, signal.SIGINT],
}
FEW = {  # for every change; `--all` leads the life of every signal in every place
    "SIGINT in tokenizing",
    "SIGHUP in first step",
    "SIGTERM in evaluation",
    "SIGINT in sampling",
    "SIGINT in saving",
    "SIGTERM in final save",
    "SIGHUP in strategies",
    "SIGINT twice in evaluation",
}


def with_signals(place: str, numbers: list[int]) -> Callable[[], None]:
    """A life that sends itself the signals when it first comes to the place."""

    def life() -> None:
        module, name = PLACES[place]
        original, pending = getattr(module, name), list(numbers)

        def signalling(*arguments: Any, **options: Any) -> Any:
            while pending:
                os.kill(os.getpid(), pending.pop(0))
            return original(*arguments, **options)

        setattr(module, name, signalling)
        run_command(train_quickly)

    return life


def end_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def report(code: int, expected: str) -> dict[str, Any]:
    """How the life ended, and what became of the run that it belonged to."""
    output = Path("output.log").read_text()
    is_fresh = not any(Path().glob("model_checkpoint_step_*.pt"))
    assert Path(checkpoint.FINAL_NAME).exists() or one_life()
    steps = [line.split()[0] for line in Path(LOG_NAME).read_text().splitlines()]
    return {
        "code": code,
        "traceback": "Traceback" in output,
        "repeated": len(set(steps)) < len(steps) and not is_fresh,
        "same": fingerprint(Path(checkpoint.FINAL_NAME)) == expected,
        "empty": any(path.stat().st_size == 0 for path in Path().glob("*.pt")),
        "last_line": output.strip().splitlines()[-1],
    }


def main() -> None:
    get_ready()
    CONFIG["sample_tokens"] = 3  # so that a signal may meet the sampling
    home, chance = Path(tempfile.mkdtemp()), random.Random(0)
    prepare(home / "reference")
    start = time.monotonic()
    assert one_life()
    seconds = time.monotonic() - start
    expected = fingerprint(Path(checkpoint.FINAL_NAME))
    every = {f"{name} in {place}": (place, name) for place in PLACES for name in SIGNALS}
    wanted = every if "--all" in sys.argv else {life: every[life] for life in sorted(FEW)}
    ends = {}
    for life, (place, name) in wanted.items():
        prepare(home / life)
        code = end_of(fork(with_signals(place, list(SIGNALS[name]))))
        ends[life] = report(code, expected)
    for number in range(25 if "--all" in sys.argv else 0):
        prepare(home / f"random {number}")
        child = fork(lambda: run_command(resumable_life))
        time.sleep(chance.uniform(0.05, 1.2) * seconds)
        os.kill(child, chance.choice([signal.SIGINT, signal.SIGTERM, signal.SIGHUP]))
        ends[f"random {number}"] = report(end_of(child), expected)
    print(json.dumps(ends))


if __name__ == "__main__":
    main()
