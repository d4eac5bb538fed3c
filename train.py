"""Trains a GPT on your text: `python train.py`, or `python train.py --batch_size 16`.

Edit `config` below, or override any key of it on the command line; `--help` lists them.
"""

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from system.files import make_folder, only_writer, sweep_parts
from system.process import Stopped, StopSignals, log, run_command, warn
from training.parallel import joined
from training.processes import Processes
from training.wanted import Wanted, options_from, wanted

if TYPE_CHECKING:
    from training.run import Run

USE_PRETRAINED = False  # True fine-tunes the official GPT-2 named below
MODEL_NAME = "gpt2-small (124M)"  # or gpt2-medium (355M), gpt2-large (774M), gpt2-xl (1558M)

config = {
    # the model
    "seq_len": 128,  # tokens that the model sees at once, its context
    "embedding_dim": 256,  # width of the model, a multiple of num_heads
    "num_layers": 4,  # transformer blocks
    "num_heads": 8,  # attention heads in each block
    "dropout": 0.1,  # share of activations zeroed; unchanged, muon's rule decides
    "embedding_dropout": "auto",  # that of the embedding; auto: dropout's, or by muon's rule
    "ffn_hidden_dim": 1024,  # width inside the feed-forward layers
    # the optimisation
    "batch_size": 8,  # windows in memory at once; lower it when memory runs out
    "grad_accum_steps": 2,  # batches per update: 8 x 4 learns as 32 x 1 does
    "num_epochs": 5,  # times that every training window is shown
    "max_steps": 0,  # updates that end a run, if nothing else has; 0: any number
    "max_tokens": 0,  # the same in tokens shown; 0: any number
    "max_minutes": 0,  # time for all of it: epochs repeat till then; 0: any
    "optimizer": "muon",  # adamw, or muon, which learns more from a step
    "learning_rate": 3e-4,  # the highest rate; unchanged, muon's rule decides
    "lr_schedule": "linear",  # constant, cosine, linear, or decay in the last fifth
    "lr_min_ratio": 0.0,  # a rate that falls ends at this share of learning_rate
    "warmup_steps": 0,  # updates in which the rate rises to learning_rate
    "weight_decay": 0.1,  # pull of the matrices towards 0; unchanged, muon's rule decides
    "average_weights": "",  # ema, tail, or a decay below 1: judged too; empty: no
    "generations": "auto",  # models, each taught by the one before; auto: as many as help
    "max_grad_norm": 1.0,  # longer gradients are cut to this length
    "patience": 5,  # evaluations without a better one that end a run; 0: none do
    "seed": 42,  # same seed, same machine: the same bits
    "seeds": 1,  # trainings, one after the other, each with its seed and folder
    # what it starts from
    "weights_path": "",  # folder or .safetensors of a GPT-2 to tune
    "adapter": "",  # lora tunes small matrices beside frozen ones; empty: all
    "lora_rank": 8,  # rows of a small matrix: more learn more
    "lora_alpha": 16,  # what they learn counts lora_alpha / lora_rank times
    "lora_dropout": 0.0,  # share of what they read zeroed
    "lora_layers": "blocks",  # parts of the names of layers with them
    "freeze": "",  # parts of names of weights that learn no more
    "base_precision": "float32",  # of frozen matrices: float32, int8 or nf4
    # the text
    "data": "",  # text, list of them, or {text: weight}; empty: found here
    "val_data": "",  # text to validate on; empty: a part of data
    "data_field": "text",  # where a record of JSON, CSV or Parquet has its text
    "data_errors": "stop",  # at what cannot be read: stop, or skip and count
    "stride": 64,  # tokens from window to window; fewer overlap
    "val_fraction": 0.1,  # share of the text, its end, for validation
    "replace_invalid_utf8": False,  # True reads invalid bytes as U+FFFD
    "mask_documents": False,  # True reads each document of a window alone
    "share_unused_tokens": True,  # one row for all tokens that the text lacks
    "rare_as_unused": 0.5,  # how often a token that comes once is read as an unused one
    # reports and files
    "eval_freq": 500,  # updates between evaluations; an epoch ends with one too
    "eval_tokens": 50_000,  # validation tokens read at most in an evaluation
    "sample_prompt": "Once upon a time",  # continued at each evaluation and at the end
    "sample_tokens": 60,  # length of these samples; 0 is none
    "save_freq": 1000,  # updates between checkpoints
    "keep_checkpoints": 3,  # how many of them stay, the newest
    "tensorboard": False,  # True writes what TensorBoard shows, an extra
    "wandb": False,  # True writes what Weights & Biases shows, an extra
    "output_dir": ".",  # where checkpoints, the final model and the plot go
    "resume": False,  # True: from the newest checkpoint; a path: from that
    "allow_other_text": False,  # True resumes on another text, moments anew
    # the machine
    "device": "auto",  # auto, cpu, mps, cuda or cuda:N
    "estimate": False,  # True prints how much memory training takes, and ends
    "find_lr": False,  # True tries learning rates for a minute, and recommends one
    "plan": False,  # True proposes a model for max_minutes on this machine and text
    "checkpoint_activations": False,  # True keeps fewer: less memory, a third slower
    "parallel": "ddp",  # with torchrun: ddp copies the model, fsdp spreads it
    "precision": "auto",  # float32, bfloat16, float16 or auto: the fastest here
    "compile": "auto",  # on, off or auto: on with CUDA, where it pays
}


def train(config: dict[str, Any], options: dict[str, Any] | None = None) -> Path:
    """Trains as the config and the `options` beside it say; returns the final model's path."""
    with joined() as team:
        return train_in(team, config, options or {})


def train_in(team: Processes, config: dict[str, Any], options: dict[str, Any]) -> Path:
    """Trains with all the processes of the team."""
    constants = {"use_pretrained": USE_PRETRAINED, "model_name": MODEL_NAME}
    asked = wanted({**constants, **config}, options)
    if asked.config["seeds"] > 1 and not asked.question:
        return train_with_seeds(team, config, asked)
    make_folder(asked.folder)
    with team.by_first(only_writer(asked.folder)), StopSignals(team.agree) as signals:
        from reports.terminal import ending
        from system.neighbours import sharing_processors
        from training import begin, samples, store  # bring torch, which --help need not wait for

        sweep_parts(asked.folder)
        if asked.question:
            log(begin.ANSWERS[asked.question](asked, team))
            return asked.folder
        run = begin.begin(asked, team)
        signals.hold()
        try:
            with sharing_processors():
                train_to_the_end(run, signals)
        except Stopped as stopped:
            raise Stopped(stopped.number, store.leave(run)) from None
        if run.step == 0:
            warn(f"there was no time for an update: raise {run.progress.limit}")
        path = store.save_final(run)
        team.part()
        signals.part()
        with signals.interruptible():
            samples.compare_strategies(run, path)
        run.write_report()
        best, minutes = run.history.best, (time.monotonic() - run.progress.began) / 60
        result = f"best validation loss {best.loss:.3f} at step {best.step:,}"
        log(f"done      {minutes:.1f} minutes, {result}")
        log(ending(run.folder, run.config["sample_prompt"]))
        return path


def train_with_seeds(team: Processes, config: dict[str, Any], asked: Wanted) -> Path:
    """Trains once with each of several seeds and says how far they spread; the first one's path."""
    from training import seeds

    try:
        paths = [train_in(team, config, options) for options in seeds.options_of_each(asked)]
    except Stopped:
        log(f"seeds     the same command with --resume goes on with all {asked.config['seeds']}")
        raise
    if team.is_first:
        log(seeds.spread(paths))
    return paths[0]


def train_to_the_end(run: "Run", signals: StopSignals) -> None:
    """The training loop; a signal is waited for, so that every update is whole."""
    from reports.terminal import is_watched
    from training import store

    look = {"unit": "step", "dynamic_ncols": True, "disable": not is_watched()}
    with tqdm(initial=run.step, **look) as bar:
        while True:
            if run.is_evaluation_due():
                evaluate(run, signals)
            if run.is_save_due():
                store.try_to_save(run)
            if run.is_over():
                return
            signals.check()
            run.update()
            bar.total = run.progress.expected_steps(run.step)
            bar.update()
            bar.set_postfix_str(run.pace)


def evaluate(run: "Run", signals: StopSignals) -> None:
    """Shows where the run stands. Measuring may be interrupted, recording may not."""
    from training import store
    from training.samples import measure

    with run.progress.timed("evaluation"):
        with signals.interruptible():
            loss, sample = measure(run)
        run.record(loss)
        store.keep_if_best(run)
        run.report(sample)
    if run.progress.lacks_a_report:
        run.write_page()
    run.progress.read()


def main() -> None:
    with joined() as team:
        train_in(team, config, options_from(sys.argv[1:], config))


if __name__ == "__main__":
    run_command(main)
