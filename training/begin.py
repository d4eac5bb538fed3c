"""How a run begins: afresh, from published weights, or from a checkpoint; what may have changed."""

import shlex
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from adapters.lora import adapt, base_id
from corpus.corpus import Corpus, read_corpus
from corpus.order import EARLIER, NOW
from corpus.vocabulary import Vocabulary
from model import Transformer
from storage import checkpoint, run_folder, sharded
from system.errors import CheckpointError, ConfigError, DataError
from system.machine import Machine, choose_device, trim_heap, tune_process
from system.process import log, warn
from tokenizer import END_OF_TEXT_ID, TABLE_SHA256, GPT2Tokenizer
from training import capacity, origin, store
from training.agreement import check_same, chosen_machine, facts_of
from training.description import as_text, environment, rows_about, title
from training.estimate import resident_bytes
from training.estimate import table as estimate_table
from training.learner import Learner
from training.plan import planned
from training.processes import ALONE, Processes
from training.progress import last_step
from training.rates import find_rate
from training.rules import (
    as_new,
    for_first_updates,
    left_to_rules,
    settled,
    with_embedding_dropout,
)
from training.run import Run
from training.settings import AUTO, EARLIER_DEFAULTS, FIXED, FREE, KEYS, ORDERED
from training.wanted import Wanted, check, shown
from training.ways import machine_for


@dataclass(frozen=True)
class Start:
    """Where a run begins: its config, its first model, and the checkpoint that it goes on from."""

    config: dict[str, Any]
    build_model: Callable[[dict[str, Any], Vocabulary, Machine], Transformer]
    path: Path | None = None
    state: dict[str, Any] = field(default_factory=dict)
    is_branch: bool = False  # beside later checkpoints, or in another folder
    reordered: str = ""  # changes after which a step shows other windows


def prepared(wanted: Wanted, team: Processes) -> tuple[Start, Corpus, Machine]:
    """All that comes before there is a model, the same in all processes."""
    start = first_or_next_start(wanted, team)
    start = replace(start, config=origin.with_own_rows(start.config))
    config = start.config
    tune_process()
    device = team.start(config["device"])
    place, _ = choose_device(device)  # one that is not here is said at once
    order = start.state.get("order", EARLIER) if start.path else NOW
    corpus = read_corpus(
        config, GPT2Tokenizer(), share_rows=config["share_unused_tokens"], order=order
    )
    if start.path:
        check_same_order(start, corpus)
        if config["generations"] == AUTO and start.state["text_sha256"] != corpus.text_sha256:
            config = {**config, "generations": 1}  # what was learned of the other text stays
    known = {"num_steps": last_step(config, corpus.batches), "is_paced": not config["max_minutes"]}
    config = settled(config, corpus, **known)
    start = replace(start, config=config)
    check_same(team, facts_of(start.config, start.state, corpus))
    if not config["estimate"]:
        capacity.check_memory(config, corpus, place, team.size)
    choose = partial(machine_for, {**config, "device": device}, corpus.vocabulary.size)
    return start, corpus, chosen_machine(choose, team, kept=start.state.get("ways"))


def estimate(wanted: Wanted, team: Processes = ALONE) -> str:
    """The memory that the run would take, as a table; nothing is trained."""
    start, corpus, machine = prepared(wanted, team)
    return estimate_table(start.config, corpus.vocabulary.size, machine)


def find_lr(wanted: Wanted, team: Processes = ALONE) -> str:
    """The learning rate that a short test recommends; no file but its picture is written."""
    start, corpus, machine = prepared(wanted, team)
    return find_rate(assembled(start, corpus, machine, wanted, team), wanted)


def plan(wanted: Wanted, team: Processes = ALONE) -> str:
    """A model and a command for the minutes that there are; nothing is trained."""
    start, corpus, machine = prepared(wanted, team)
    return planned(for_first_updates(start.config), corpus, machine, wanted)


ANSWERS = {"estimate": estimate, "find_lr": find_lr, "plan": plan}  # to each of QUESTIONS


def begin(wanted: Wanted, team: Processes = ALONE) -> Run:
    """A run that is ready for its next update; what it consists of is said line by line."""
    start, corpus, machine = prepared(wanted, team)
    run = assembled(start, corpus, machine, wanted, team)
    facts = corpus.facts_soon()
    rows = rows_about(run, facts)
    run.about = {
        "title": title(run),
        "environment": environment(run),
        "about": rows,
        "facts": facts,
    }
    log(as_text(rows))
    run.start_baselines()
    if start.path:
        go_on(run, start)
    else:
        check_steps(run)
        make_way(run)
    if team.is_first:
        run_folder.claim(run.folder, run.id)
    return run


def assembled(
    start: Start, corpus: Corpus, machine: Machine, wanted: Wanted, team: Processes
) -> Run:
    """A run as it starts, before it has said or written anything."""
    config = start.config
    if team.is_first:
        capacity.check_disk(config, corpus, run_id=start.state.get("run_id"))
    is_spread = team.is_launched and config["parallel"] == "fsdp"  # block by block, to the device
    first_home = replace(machine, device=torch.device("cpu")) if is_spread else machine
    trim_heap()  # the machine was measured
    resident = resident_bytes(machine)
    model = adapt(start.build_model(config, corpus.vocabulary, first_home), config)
    capacity.shrink(model, config)
    trim_heap()  # a float32 matrix came and went
    if config["adapter"] and start.path:
        origin.restore_adapters(model, start.path, start.state)
    base = base_id(model)  # while one process has all of it
    num_shared, separator = corpus.vocabulary.num_shared, None
    if config["mask_documents"]:
        separator = int(corpus.vocabulary.row_of_token[END_OF_TEXT_ID])
    shared = {"num_shared": num_shared, "separator": separator, "team": team}
    learner = Learner(model, machine, for_first_updates(config), **shared)
    run = Run(config, {**wanted.script, "resume": False}, corpus, learner)
    run.base, run.resident_bytes = base, resident
    run.progress.began = wanted.began
    return run


def first_or_next_start(wanted: Wanted, team: Processes) -> Start:
    """A new run or one that goes on; a launcher that starts again means the newest checkpoint."""
    wants_newest = wanted.config["resume"] is True
    if team.is_started_again or (team.may_start_again and wants_newest):
        if any(run_folder.STEP_NAME.fullmatch(path.name) for path in wanted.folder.iterdir()):
            return resumed(replace(wanted, options={**wanted.options, "resume": True}))
        log("resume    no checkpoint is there yet: the run starts from its beginning")
        return started(wanted)
    return resumed(wanted) if wanted.config["resume"] else started(wanted)


def check_steps(run: Run) -> None:
    """ConfigError if there are too few for the warm-up, or for as many models."""
    warmup_steps, num_steps = run.config["warmup_steps"], run.progress.last_step
    if run.generations.count > num_steps:
        raise ConfigError(
            f"config: generations={run.generations.count} are more than the run's {num_steps} "
            f"steps ({run.progress.limit}): each needs hundreds to learn"
        )
    if warmup_steps > num_steps / run.generations.count:
        of_each = f" of {run.generations.count} models" * (run.generations.count > 1)
        raise ConfigError(
            f"config: warmup_steps={warmup_steps} is more than the run's {num_steps} steps "
            f"({run.progress.limit}){of_each}: try {num_steps // run.generations.count // 10}"
        )


def make_way(run: Run) -> None:
    """Moves what an earlier run has left out of the new run's folder, and says where it is."""
    if not run.team.is_first:
        return
    unfinished = run_folder.unfinished(run.folder)
    aside = run_folder.set_aside(run.folder, run.id)
    if aside:
        log(f"earlier   the files of the run before are now in {aside}")
    if aside and unfinished:
        path = shlex.quote(str(aside / unfinished.name))
        log(f"          it had not ended: python train.py --resume {path} continues it")


def started(wanted: Wanted) -> Start:
    """A new run, from random weights or from published ones."""
    config = {**wanted.config, "output_dir": str(wanted.folder)}
    if not origin.is_published(config):
        if config["adapter"]:
            warn("the frozen weights are random: --use_pretrained or --weights_path gives others")
        return Start(left_to_rules(config, wanted.chosen), origin.random_model)
    config, build = origin.tuned(config, wanted.chosen)
    return Start(with_embedding_dropout(config), build)


def resumed(wanted: Wanted) -> Start:
    """The newest (True) or the named checkpoint, with the config that it had and what changed."""
    named = wanted.named_checkpoint
    if named:
        path, state = named, sharded.load(named)
    else:
        path, state, skipped = run_folder.newest_intact(wanted.folder)
        for reason in skipped:
            warn(f"skipped: {reason}")
    store.check_complete(path, state)
    config = {**going_on(wanted, state), "output_dir": str(wanted.folder)}
    check(config)
    reordered = check_changes(path, {**EARLIER_DEFAULTS, **state["config"]}, config)
    is_elsewhere = path.absolute().parent != wanted.folder.absolute()
    is_overtaken = named is not None and run_folder.is_overtaken(wanted.folder, state)
    build = origin.beneath(config) if config["adapter"] else partial(origin.restored_model, state)
    return Start(config, build, path, state, is_elsewhere or is_overtaken, reordered)


def going_on(wanted: Wanted, state: dict[str, Any]) -> dict[str, Any]:
    """The config that the checkpoint's run goes on with: its own, and what was written since."""
    had = state["config"]
    had.setdefault("embedding_dropout", had["dropout"])  # earlier versions had one for all places
    config = wanted.resumed(had, state.get("script_config", {}))
    if config["optimizer"] != had.get("optimizer", EARLIER_DEFAULTS["optimizer"]):
        return as_new(config, wanted.chosen)
    if had["embedding_dropout"] == config["embedding_dropout"] == had["dropout"]:
        return {**config, "embedding_dropout": config["dropout"]}
    return config


def check_changes(path: Path, old: dict[str, Any], new: dict[str, Any]) -> str:
    """Says what has changed, refuses another architecture, returns what reorders the windows."""
    changed = {
        key: f"{key} {shown(old[key])} -> {shown(new[key])}" for key in KEYS if old[key] != new[key]
    }
    fixed = [text for key, text in changed.items() if KEYS[key].on_resume == FIXED]
    if fixed:
        raise CheckpointError(
            f"another architecture ({path}: {', '.join(fixed)}): set it back to resume"
        )
    ordered = [text for key, text in changed.items() if KEYS[key].on_resume == ORDERED]
    sizes = [config["batch_size"] * config["grad_accum_steps"] for config in (old, new)]
    if sizes[0] != sizes[1]:
        ordered.append(f"batch_size x grad_accum_steps {sizes[0]} -> {sizes[1]}")
    for key, text in changed.items():
        if KEYS[key].on_resume == FREE or text in ordered:
            log(f"changed   {text}")
    return "" if new["allow_other_text"] else ", ".join(ordered)


def check_same_order(start: Start, corpus: Corpus) -> None:
    """Raises unless the next updates, if any, show what the checkpoint's run would have shown."""
    state, path = start.state, start.path
    if start.reordered and state["step"] < last_step(start.config, corpus.batches):
        raise ConfigError(
            f"the run could not go on as it was ({path}: {start.reordered}): "
            "set it back to resume, or start a new run"
        )
    if state["tokenizer_sha256"] != TABLE_SHA256:
        raise CheckpointError(f"another tokenizer ({path}): start without --resume")
    old, new = state["text_sha256"], corpus.text_sha256
    if old != new and not start.config["allow_other_text"]:
        raise DataError(
            f"another text or val_data ({path} is of {old[:12]}, this is {new[:12]}): put the old "
            "one back, start without --resume, or set allow_other_text"
        )


def go_on(run: Run, start: Start) -> None:
    """Takes the checkpoint over, and says which."""
    path = start.path
    has_moments = not start.reordered and start.state["text_sha256"] == run.corpus.text_sha256
    store.restore(run, path, start.state, has_moments=has_moments)
    log(f"resumed   {path} at {run.progress.place(run.step)}")
    if run.is_over():
        limit = run.progress.limit if run.progress.is_over(run.step) else "patience"
        log(f"          that is the end: raise {limit} to train on")
    else:
        check_steps(run)
    run.id = run.team.gather(uuid.uuid4().hex)[0] if start.is_branch else run.id
    if start.is_branch:
        best = store.best_state(run, path.parent)
        run.saved_step = 0  # what is later, or there already, is another run's
        make_way(run)
        run.report("")
        if best and run.team.is_first:
            checkpoint.save(run.folder / checkpoint.BEST_NAME, {**best, "run_id": run.id})
    store.remove_old(run)  # a kill may have come before it
