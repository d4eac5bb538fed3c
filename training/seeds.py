"""The same training with several seeds, one after the other: how much of a result is chance."""

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from reports.history import History
from storage import checkpoint, run_folder
from system.errors import ConfigError
from system.files import make_folder
from training.begin import going_on
from training.rules import RULED
from training.settings import AUTO
from training.wanted import Wanted, check, without_effect


def options_of_each(wanted: Wanted) -> list[dict[str, Any]]:
    """The options of each training: its seed, and a folder of its own under output_dir.

    With `resume` those go on that have a checkpoint; the others begin with what the first of those
    was given.
    """
    config = wanted.config
    if isinstance(config["resume"], str):
        raise ConfigError("config: a checkpoint goes on with its own seed: resume it without seeds")
    seeds = range(config["seed"], config["seed"] + config["seeds"])
    check({"seed": seeds[-1]})
    folders = {seed: wanted.folder / f"seed_{seed}" for seed in seeds}
    for folder in folders.values():
        make_folder(folder)
    begun = [f for f in folders.values() if config["resume"] and any(run_folder.checkpoints_in(f))]
    options_of_new = options_like(wanted, begun[0]) if begun else wanted.options
    options_of_begun = useful({**config, "seeds": 1}, wanted.options)
    every = []
    for seed, folder in folders.items():
        own = {"seeds": 1, "seed": seed, "output_dir": str(folder), "resume": folder in begun}
        every.append({**(options_of_begun if folder in begun else options_of_new), **own})
    return every


def options_like(wanted: Wanted, folder: Path) -> dict[str, Any]:
    """The options that make a new run of the one in the folder, with what was written since."""
    state = run_folder.newest_intact(folder)[1]
    config = {**going_on(wanted, state), "resume": False}
    left = [key for key in RULED if config[key] == AUTO]  # to rules, which had not decided yet
    left += ["dropout"] if "embedding_dropout" in left else []
    return {key: value for key, value in useful(config, config).items() if key not in left}


def useful(config: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Those of the options that change something in a run with the config."""
    useless = dict(without_effect(config))
    return {key: value for key, value in options.items() if key not in useless}


def spread(paths: Sequence[Path]) -> str:
    """Mean and spread of the best validation losses of several final models, in a line."""
    states = [checkpoint.load(path) for path in paths]
    losses = [History.from_state_dict(state["history"]).best.loss for state in states]
    each = ", ".join(f"{loss:.3f}" for loss in losses)
    return (
        f"seeds     best validation losses {each}: mean {mean(losses):.3f}, standard deviation "
        f"{stdev(losses):.3f}, range {max(losses) - min(losses):.3f}"
    )
