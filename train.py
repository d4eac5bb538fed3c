"""Trains a GPT on your text: `python train.py`, or `python train.py --batch_size 16`.

Edit `config` below, or override any key of it on the command line; `--help` lists them.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tqdm import tqdm

from exchange.pretrained import Pretrained, from_safetensors, official
from generation.comparison import COMPARISON_NAME, Reference, compare_settings, plot_comparison
from generation.fast_weights import prepared
from generation.generator import TextGenerator
from storage import checkpoint
from system.files import check_writable, only_writer, sweep_parts
from system.process import Stopped, StopSignals, log, run_command
from training import settings
from training.resume import begin
from training.run import SAMPLING, Run

USE_PRETRAINED = False  # True fine-tunes the official GPT-2 named below
MODEL_NAME = "gpt2-small (124M)"  # or gpt2-medium (355M), gpt2-large (774M), gpt2-xl (1558M)

config = {
    # the model
    "seq_len": 128,  # tokens that the model sees at once, its context
    "embedding_dim": 256,  # width of the model, a multiple of num_heads
    "num_layers": 4,  # transformer blocks
    "num_heads": 8,  # attention heads in each block
    "dropout": 0.1,  # share of activations zeroed in training; 0 suits a text of many megabytes
    "ffn_hidden_dim": 1024,  # width inside the feed-forward layers, usually 4 x embedding_dim
    # the optimisation
    "batch_size": 8,  # windows that are in memory at once; lower it when memory runs out
    "grad_accum_steps": 1,  # batches per update: 8 x 4 learns as 32 x 1 does, in less memory
    "num_epochs": 5,  # times that every training window is shown
    "learning_rate": 3e-4,  # the highest rate; larger models want less
    "lr_schedule": "decay",  # constant, cosine (falls all the way) or decay (in the last fifth)
    "lr_min_ratio": 0.1,  # cosine and decay end at this share of learning_rate
    "warmup_steps": 0,  # updates in which the rate rises to learning_rate
    "weight_decay": 0.1,  # pull of the matrices towards 0
    "max_grad_norm": 1.0,  # longer gradients are cut to this length
    "patience": 5,  # stop after so many evaluations without a better one; 0 never stops early
    "weights_path": "",  # a folder or .safetensors file with a Hugging Face GPT-2 to fine-tune
    "seed": 42,  # same seed, same machine: the same model to the last bit
    # the text
    "data": "",  # a text file; by default the first of TinyStories.txt, data.txt, example.txt here
    "stride": 64,  # tokens between the starts of windows; below seq_len they overlap
    "val_fraction": 0.1,  # share of the text, its end, that is kept for validation
    "replace_invalid_utf8": False,  # True reads bytes that are not UTF-8 as U+FFFD
    "share_unused_tokens": True,  # train one row for all tokens that the text lacks: same loss
    # reports and files
    "eval_freq": 500,  # updates between evaluations
    "eval_tokens": 50_000,  # validation tokens read at most in an evaluation
    "sample_prompt": "Once upon a time",  # continued at each evaluation and at the end
    "sample_tokens": 60,  # length of these samples; 0 is none
    "save_freq": 1000,  # updates between checkpoints
    "keep_checkpoints": 3,  # how many of them stay, the newest
    "output_dir": ".",  # where checkpoints, the final model and the plot go
    "resume": False,  # True goes on from the newest checkpoint, a path from that one
    "allow_other_text": False,  # True resumes on another text, with a fresh optimizer
    # the machine
    "device": "auto",  # auto, cpu, mps, cuda or cuda:N
    "precision": "auto",  # auto, float32, bfloat16 or float16; auto is the fastest that is safe
    "compile": "auto",  # on, off or auto: on with CUDA, where the start-up time pays
}


def train(config: dict[str, Any]) -> Path:
    """Trains on the text found in the working folder; returns the final model's path."""
    settings.check(config)
    pretrained = pretrained_weights(config)
    if pretrained:
        config = pretrained.config(config)
    folder = Path(config["output_dir"])
    check_writable(folder)
    with only_writer(folder), StopSignals() as signals:
        sweep_parts(folder)
        run = Run(config)
        log(run.describe())
        begin(run, config["resume"], pretrained)
        signals.hold()
        try:
            train_to_the_end(run, signals.check)
        except Stopped as stopped:
            raise Stopped(stopped.number, run.leave()) from None
        path = save_final_model(run)
        compare_strategies(run, path, signals.check)
        return path


def pretrained_weights(config: dict[str, Any]) -> Pretrained | None:
    """What a run starts from, None for random weights."""
    if config["weights_path"]:
        return from_safetensors(config["weights_path"])
    return official(MODEL_NAME) if USE_PRETRAINED else None


def train_to_the_end(run: Run, poll: Callable[[], None]) -> None:
    """The training loop; `poll` may raise between updates to leave it in order."""
    with tqdm(total=run.num_steps, initial=run.step, unit="step", disable=None) as bar:
        while True:
            if run.is_evaluation_due():
                run.evaluate(poll)
            if run.is_save_due():
                run.try_to_save()
            if run.is_over():
                break
            poll()
            run.update()
            bar.update()
            bar.set_postfix_str(str(run.progress))


def save_final_model(run: Run) -> Path:
    """Writes the model of the last step, or with `patience` that of the best evaluation."""
    path = run.folder / checkpoint.FINAL_NAME
    checkpoint.save(path, run.final_state())
    log(f"saved     {path}\n")
    return path


def compare_strategies(run: Run, path: Path, poll: Callable[[], None]) -> None:
    """Shows what each way of sampling makes of the final model, beside held-out text."""
    if not run.config["sample_tokens"]:
        return
    comparison = compare_settings(
        TextGenerator(
            prepared(checkpoint.load_model(path), device=run.machine.device), run.tokenizer
        ),
        run.config["sample_prompt"],
        max_new_tokens=run.config["sample_tokens"],
        seed=SAMPLING["seed"],
        reference=Reference(run.corpus.train_ids, run.corpus.val_ids.numpy()),
    )
    log(str(comparison))
    try:
        plot_comparison(run.folder / COMPARISON_NAME, comparison)
    except OSError as error:
        log(f"warning: no picture of the comparison ({run.folder}): {error}")


def main() -> None:
    source = Path(__file__).read_text(encoding="utf-8")
    train(settings.from_command_line(sys.argv[1:], config, source=source))


if __name__ == "__main__":
    run_command(main)
