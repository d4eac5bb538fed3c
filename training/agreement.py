"""What all processes of a training must have in common before its first step."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from corpus.corpus import Corpus
from system.errors import ProcessesError
from system.machine import Machine
from training.processes import Processes
from training.wanted import shown

PLACES = {"data", "val_data", "weights_path", "output_dir"}  # may be elsewhere on each machine


def chosen_machine(
    choose: Callable[..., Machine], team: Processes, *, kept: dict[str, str] | None
) -> Machine:
    """This process's device, and on it what the first process chose of what its run has kept."""
    first = choose(kept=kept) if team.is_first else None
    ways = dict(team.gather(first and first.ways)[0])
    del ways["device"]  # there may be another one here, which is to do the same
    return first or choose(kept=ways)


def facts_of(config: dict[str, Any], state: dict[str, Any], corpus: Corpus) -> dict[str, Any]:
    """What sums over processes need: where one has another of it, they mean nothing.

    `state` is that of the checkpoint which the run goes on from, or empty.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.parent.glob("*/*.py")):
        digest.update(path.read_bytes())
    return {
        **{key: value for key, value in config.items() if key not in PLACES},
        "text": corpus.text_sha256[:12],
        "code": digest.hexdigest()[:12],
        "torch": str(torch.__version__),
        "checkpoint": [state.get("run_id"), state.get("step")],
    }


def check_same(team: Processes, facts: dict[str, Any]) -> None:
    """ProcessesError with all that a process has otherwise than the first one."""
    first, *others = team.gather(facts)
    problems = [
        f"{key} is {shown(other.get(key))} in process {rank}, {shown(first.get(key))} in process 0"
        for rank, other in enumerate(others, 1)
        for key in first | other
        if first.get(key) != other.get(key)
    ]
    if problems:
        raise ProcessesError(
            f"the processes differ ({'; '.join(problems[:5])}): start all of them with the same "
            "command, code and files"
        )
