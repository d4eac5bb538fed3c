"""How a run begins: afresh, or from a checkpoint, with what may change on the way and what not."""

import uuid
from pathlib import Path
from typing import Any

from exchange.pretrained import Pretrained
from reports.history import History
from storage import checkpoint, run_folder
from storage.checkpoint import ARCHITECTURE
from system.errors import CheckpointError, DataError
from system.process import log
from tokenizer import TABLE_SHA256
from training.run import Run

FIXED_KEYS = ("seq_len", *(key for key in ARCHITECTURE if key != "dropout"))
TEXT_KEYS = ("val_fraction", "replace_invalid_utf8", "share_unused_tokens")  # decide on the rows
FREE_KEYS = ("resume", "allow_other_text", "output_dir")  # of no consequence to the model


def begin(run: Run, wanted: bool | str, pretrained: Pretrained | None = None) -> None:
    """Starts the run afresh, or goes on from the newest (True) or the named checkpoint."""
    if wanted:
        resume(run, wanted)
    else:
        path = run_folder.unfinished(run.folder)
        if path:
            log(f"notice    an unfinished run is here, left alone: --resume {path} continues it")
        if pretrained:
            log(f"weights   {pretrained}")
            pretrained.load_into(run.model)
    run_folder.claim(run.folder, run.id)


def resume(run: Run, wanted: bool | str) -> None:
    """Takes over a checkpoint, and says which, what was skipped and what has changed."""
    if isinstance(wanted, str):
        path = Path(wanted)
        state = checkpoint.load(path)
    else:
        path, state, skipped = run_folder.newest_intact(run.folder)
        for reason in skipped:
            log(f"warning   skipped: {reason}")
    restore(run, path, state)
    if isinstance(wanted, str) and run_folder.is_overtaken(run.folder, state):
        run.id = uuid.uuid4().hex  # a new branch: the later files are those of the old one
        log(f"notice    there are later checkpoints than {path}: they are left alone")
    run.remove_old()
    log(f"resumed   {path} at step {run.step:,} of {run.num_steps:,}")


def restore(run: Run, path: Path, state: dict[str, Any]) -> None:
    """Gives the run what `Run.save` wrote; raises if it is of another model, tokenizer or text."""
    check_same_run(path, state, run)
    for _, change in changes(state["config"], run.config):
        log(f"changed   {change}")
    weights = state["model_state_dict"]
    rows = run.vocabulary.compact_rows(weights[checkpoint.EMBEDDING])
    run.model.load_state_dict({**weights, checkpoint.EMBEDDING: rows})
    try:
        run.history = History.from_state_dict(state["history"])
        if not run.history.evaluations or len(run.history.train_losses) != state["step"]:
            raise ValueError("its history is not that of its step")
        if state["text_sha256"] == run.corpus.text_sha256:
            restore_optimizer(run, state)
        else:
            log("changed   the text: the optimizer starts anew")
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = f"no state to resume ({path}: {error!r}): choose another checkpoint"
        raise CheckpointError(reason) from error
    run.step = run.saved_step = state["step"]
    run.id = state["run_id"]


def restore_optimizer(run: Run, state: dict[str, Any]) -> None:
    """Takes over the moments and the scale; ValueError where a moment has another shape."""
    moments, groups = state["optimizer_state_dict"], run.optimizer.state_dict()["param_groups"]
    parameters = [p for group in run.optimizer.param_groups for p in group["params"]]
    for number, parameter in enumerate(parameters):
        for name in ("exp_avg", "exp_avg_sq"):
            if moments[number][name].shape != parameter.shape:
                raise ValueError(f"{name} of parameter {number} has another shape")
    run.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    if run.scaler.is_enabled() and state["scaler_state_dict"]:
        run.scaler.load_state_dict(state["scaler_state_dict"])


def check_same_run(path: Path, state: dict[str, Any], run: Run) -> None:
    """Raises unless the state is of the run's architecture, tokenizer and text."""
    may_differ = run.config["allow_other_text"]
    fixed = FIXED_KEYS if may_differ else FIXED_KEYS + TEXT_KEYS
    differing = [change for key, change in changes(state["config"], run.config) if key in fixed]
    if differing:
        raise CheckpointError(
            f"another architecture ({path}: {', '.join(differing)}): set it back to resume"
        )
    needed = ("optimizer_state_dict", "scaler_state_dict", "history", "step", "run_id")
    missing = [key for key in (*needed, "text_sha256", "tokenizer_sha256") if key not in state]
    if missing:
        raise CheckpointError(
            f"not a checkpoint to resume ({path} lacks {', '.join(missing)}): "
            "name one called model_checkpoint_step_X.pt"
        )
    check_fingerprint("tokenizer", path, state["tokenizer_sha256"], TABLE_SHA256, CheckpointError)
    if not may_differ:
        found = run.corpus.text_sha256
        check_fingerprint("text", path, state["text_sha256"], found, DataError)


def check_fingerprint(kind: str, path: Path, old: str, new: str, error: type[ValueError]) -> None:
    """The error if what the checkpoint was trained with is not what is here now."""
    if old != new:
        override = ", or set allow_other_text" if kind == "text" else ""
        raise error(
            f"another {kind} ({path} is of {str(old)[:12]}, this is {new[:12]}): "
            f"put the old one back, or start without --resume{override}"
        )


def changes(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, str]]:
    """What differs and matters: changes({"seed": 1}, {"seed": 2}) -> [("seed", "seed 1 -> 2")]."""
    keys = [key for key in new if key not in FREE_KEYS and old.get(key) != new[key]]
    return [(key, f"{key} {old.get(key)!r} -> {new[key]!r}") for key in keys]
