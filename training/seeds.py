"""The same training with several seeds, one after the other: how much of a result is chance."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from reports.history import History
from storage import checkpoint, run_folder
from system.errors import ConfigError
from system.files import make_folder
from training.wanted import Wanted, check


def options_of_each(wanted: Wanted) -> list[dict[str, Any]]:
    """The options of each training: its seed, and a folder of its own under output_dir.

    With `resume` those go on that have a checkpoint.
    """
    config = wanted.config
    if isinstance(config["resume"], str):
        raise ConfigError("config: a checkpoint goes on with its own seed: resume it without seeds")
    seeds = range(config["seed"], config["seed"] + config["seeds"])
    check({"seed": seeds[-1]})
    every = []
    for seed in seeds:
        folder = wanted.folder / f"seed_{seed}"
        make_folder(folder)
        goes_on = config["resume"] and any(run_folder.checkpoints_in(folder))
        own = {"seeds": 1, "seed": seed, "output_dir": str(folder), "resume": goes_on}
        every.append({**wanted.options, **own})
    return every


def spread(paths: Sequence[Path]) -> str:
    """Mean and spread of the best validation losses of several final models, in a line."""
    states = [checkpoint.load(path) for path in paths]
    losses = [History.from_state_dict(state["history"]).best.loss for state in states]
    each = ", ".join(f"{loss:.3f}" for loss in losses)
    return (
        f"seeds     best validation losses {each}: mean {mean(losses):.3f}, standard deviation "
        f"{stdev(losses):.3f}, range {max(losses) - min(losses):.3f}"
    )
