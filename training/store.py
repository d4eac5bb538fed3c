"""What the files of a run hold, written and read in one place; for any optimizer and any weights.

The best loss and the order of the batches are not among it: they follow from the rest.
"""

import shlex
from pathlib import Path
from typing import Any

from torch import Tensor

from adapters.lora import adapter_weights, plain_weights
from corpus.order import EARLIER, ORDERS
from reports.history import History
from storage import checkpoint, run_folder, sharded
from system.errors import CheckpointError
from system.process import log, only_warn, warn
from tokenizer import TABLE_SHA256
from training.engines import spread
from training.merge import merged
from training.run import Run

WEIGHTS, BASE = "model_state_dict", checkpoint.BASE
OPTIMIZER, GROUPS, SCALER = "optimizer_state_dict", "optimizer_groups", "scaler_state_dict"
MEMORY, AVERAGES, NUM_IN_TAIL = "memory", "averages", "num_in_tail"
GENERATIONS, TEACHER = "generations", "teacher"
PLAIN = (bool, int, float, str, Tensor)  # what files hold of a group's settings
OF_NOW = {"lr", "weight_decay", "fused", "foreach", "capturable"}  # of config and device
NEEDED = (OPTIMIZER, SCALER, "history", "step", "run_id", "text_sha256", "tokenizer_sha256")


def about(run: Run) -> dict[str, Any]:
    """What every file says of its model: config, step, history, how it came about."""
    return {
        "config": run.config,
        "step": run.step,
        "run_id": run.id,
        "script_config": run.script,
        "ways": run.learner.machine.ways,
        "text_sha256": run.corpus.text_sha256,
        "order": run.corpus.batches.order,
        "tokenizer_sha256": TABLE_SHA256,
        "history": run.history.state_dict(),
        "time": run.progress.state_dict(),
        GENERATIONS: run.generations.state_dict(run.progress.at(run.step, warmup_steps=0)),
    }


def model_state(run: Run, *, averaged: bool = False) -> dict[str, Any]:
    """What is learned: the model with all the rows, or the adapters that stand beside one.

    All processes have to ask.
    """
    if run.config["adapter"]:
        return {**about(run), BASE: run.base, WEIGHTS: run.adapters(averaged=averaged)}
    return {**about(run), WEIGHTS: run.full_weights(averaged=averaged)}


def best_of_now(run: Run) -> dict[str, Any]:
    """As `model_state`, of the weights or their averages, whichever the latest evaluation likes."""
    return model_state(run, averaged=run.history.evaluations[-1].is_averaged)


def save(run: Run) -> None:
    """Writes what `restore` needs to go on from here, then drops this run's oldest files.

    In one file by the first process, or where weights are spread in a folder by all of them.
    """
    optimizer = run.learner.optimizer.state_dict()
    rest = {
        GROUPS: [
            {key: value for key, value in group.items() if isinstance(value, PLAIN)}
            for group in optimizer["param_groups"]
        ],
        SCALER: run.learner.scaler.state_dict(),
        MEMORY: run.learner.memory,
        NUM_IN_TAIL: run.averages.num_in_tail,
    }
    if run.learner.engine.is_sharded:
        base = {BASE: run.base} if run.config["adapter"] else {}
        path = save_parts(run, about(run) | base | rest | {AVERAGES: {}}, optimizer["state"])
    else:
        path = checkpoint.step_path(run.folder, run.step)
        large = {OPTIMIZER: optimizer["state"], AVERAGES: run.averages.values}
        large[TEACHER] = run.generations.teacher_weights()
        state = model_state(run) | rest | large
        if run.team.is_first:
            run_folder.save_step(run.folder, state)
    run.saved_step, run.saved_path = run.step, path
    remove_old(run)


def save_parts(run: Run, state: dict[str, Any], moments: dict[int, dict[str, Tensor]]) -> Path:
    """Writes a checkpoint into which every process puts its parts of weights and moments."""
    model = run.learner.model
    weights = adapter_weights(model) if run.config["adapter"] else plain_weights(model)
    tensors = {f"{sharded.MODEL}|{name}": weight for name, weight in weights.items()}
    for number, held in moments.items():
        tensors |= {f"{OPTIMIZER}|{number}|{name}": moment for name, moment in held.items()}
    tensors |= {f"{AVERAGES}|{name}": value for name, value in run.averages.values.items()}
    path = sharded.step_path(run.folder, run.step)
    if run.team.is_first:
        run_folder.free(path, run.id)
    rows = {sharded.ROWS: run.corpus.vocabulary.row_of_token}
    sharded.save(path, tensors, state | rows, run.team)
    return path


def remove_old(run: Run) -> None:
    if not run.team.is_first:
        return
    keep = run.config["keep_checkpoints"]
    run_folder.remove_old(run.folder, run_id=run.id, step=run.step, keep=keep)


def try_to_save(run: Run) -> None:
    """Saves; a disk without room stops no training, and the next interval tries again."""
    with only_warn(f"no checkpoint of step {run.step}"):
        save(run)


def keep_if_best(run: Run) -> None:
    """Writes the model down if its evaluation, the latest, is the best so far."""
    if run.history.best is run.history.evaluations[-1]:
        state = best_of_now(run)
        said = f"no {checkpoint.BEST_NAME} of step {run.step}"
        with only_warn(said), run.progress.timed("write"):
            if run.team.is_first:
                checkpoint.save(run.folder / checkpoint.BEST_NAME, state)


def leave(run: Run) -> str:
    """Saves what is not saved yet; how to go on from here."""
    if run.step != run.saved_step:
        save(run)
    if run.step == 0:
        return " before the first step, nothing to save"
    place = "" if run.folder == Path() else f" --output_dir {shlex.quote(str(run.folder))}"
    return (
        f" after step {run.step}, saved {run.saved_path}: python train.py --resume{place} goes on"
    )


def save_final(run: Run) -> Path:
    """Writes the final model: the one of the best evaluation, adapters merged."""
    path = run.folder / checkpoint.FINAL_NAME
    state = final_state(run)
    if run.config["adapter"]:
        state = merged(run, state)
    if run.team.is_first:
        checkpoint.save(path, state)
    log(f"saved     {path}\n")
    return path


def final_state(run: Run) -> dict[str, Any]:
    """The model of the best evaluation, that before the first update included."""
    best = run.history.best
    if best.step == run.step:
        return best_of_now(run)
    state = best_state(run, run.folder) if run.team.is_first else {}
    if run.team.highest(state is None):
        warn(f"the final model is that of the last step: no {checkpoint.BEST_NAME} of this run")
        return best_of_now(run)
    log(f"best loss {best.loss:.3f} at step {best.step}: the final model has these weights")
    if best.step == 0:
        log("training did not help: lower learning_rate, or give it more text")
    return state


def best_state(run: Run, folder: Path) -> dict[str, Any] | None:
    """The model of the run's best evaluation, where the folder has it intact."""
    try:
        state = checkpoint.load(folder / checkpoint.BEST_NAME)
        evaluations = History.from_state_dict(state["history"]).evaluations
    except (CheckpointError, KeyError, OSError):
        return None
    return state if evaluations[-1] == run.history.best else None


def check_complete(path: Path, state: dict[str, Any]) -> None:
    """CheckpointError unless the state is one to go on from."""
    if missing := [key for key in NEEDED if key not in state]:
        raise CheckpointError(
            f"not a checkpoint to resume ({path} lacks {', '.join(missing)}): "
            "name one called model_checkpoint_step_X.pt"
        )
    if state.get("order", EARLIER) not in ORDERS:
        raise CheckpointError(
            f"an unknown order of batches ({path}: {state['order']!r}): update this program"
        )


def restore(run: Run, path: Path, state: dict[str, Any], *, has_moments: bool) -> None:
    """Gives the run, whose model has the state's weights, the rest of what `save` wrote."""
    try:
        run.history = History.from_state_dict(state["history"])
        if state["text_sha256"] != run.corpus.text_sha256:
            run.history.num_of_other_text = len(run.history.evaluations)
        run.step = run.saved_step = run.told_step = state["step"]
        run.saved_path = path
        run.progress.load_state_dict(state.get("time", {}))
        run.learner.fit(state.get(MEMORY, {}))
        teacher = state.get(TEACHER, {}) if has_moments else {}
        progress = run.progress.at(run.step, warmup_steps=0)
        run.generations.restore(generation_of(state), teacher, progress)
        run.generations.settle(run.progress.expected_steps(run.step))
        if not run.history.evaluations or len(run.history.train_losses) != run.step:
            raise ValueError("its history is not that of its step")
        if not run.history.learning_rates:  # an earlier version has not noted them
            windows = map(run.corpus.batches.window_indices, range(run.step))
            run.history.learning_rates = list(map(run.learning_rate, range(run.step)))
            run.history.num_tokens = [run.config["seq_len"] * len(batch) for batch in windows]
        if has_moments and state["config"].get("optimizer", "adamw") == run.config["optimizer"]:
            restore_optimizer(run, state)
            run.averages.restore(state.get(AVERAGES, {}), state.get(NUM_IN_TAIL, 0))
        else:
            log("changed   the text, its order or the optimizer: moments start anew")
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"no state to resume ({path}: {error!r}): choose another checkpoint"
        raise CheckpointError(reason) from error
    run.id = state["run_id"]


def generation_of(state: dict[str, Any]) -> dict[str, Any]:
    """Where a run stood among its generations; earlier versions have noted their first steps."""
    saved = state.get(GENERATIONS, [0])
    if isinstance(saved, dict):
        return saved
    return {"first_steps": saved, "began": saved[-1], "progress": state["step"]}


def restore_optimizer(run: Run, state: dict[str, Any]) -> None:
    """Takes over what moments there are, and the scale; ValueError if one has another shape."""
    optimizer, scaler = run.learner.optimizer, run.learner.scaler
    groups = optimizer.state_dict()["param_groups"]
    for group, saved in zip(groups, state.get(GROUPS, [{}] * len(groups)), strict=True):
        group.update({key: saved[key] for key in saved.keys() - OF_NOW})
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for number, moments in state[OPTIMIZER].items():
        for name, moment in moments.items():
            is_like_it = isinstance(moment, Tensor) and moment.dim() == parameters[number].dim()
            if is_like_it and moment.shape != parameters[number].shape:
                raise ValueError(f"{name} of parameter {number} has another shape")
            moments[name] = spread(moment, parameters[number])
    optimizer.load_state_dict({"state": state[OPTIMIZER], "param_groups": groups})
    if scaler.is_enabled() and state[SCALER]:
        scaler.load_state_dict(state[SCALER])
