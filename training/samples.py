"""What the model of a run writes: a sample at each evaluation, and a comparison at the end."""

from pathlib import Path

import torch

from generation.comparison import Reference, compare_settings, plot_comparison
from generation.fast_weights import prepared
from generation.generator import TextGenerator
from generation.settings import SAMPLE
from storage import checkpoint
from storage.run_folder import COMPARISON_NAME
from system.process import log, only_warn
from training.memory import free_caches, only_out_of_memory
from training.run import Run

SAMPLING = {**SAMPLE, "seed": 0}  # samples differ by the model alone


def measure(run: Run) -> tuple[float, str]:
    """The validation loss in nats a token, and a sample of what the model writes by now.

    What averages reach is noted with them; where that is better, they write the sample.
    """
    loss, averages = run.learner.mean_loss(run.val_rows), run.averages
    if averages.values:
        with averages.in_place():
            averages.loss = run.learner.mean_loss(run.val_rows)
    return loss, sample(run, averaged=averages.loss < loss) if run.config["sample_tokens"] else ""


def sample(run: Run, *, averaged: bool) -> str:
    """What the model, or that of the averages, writes; all processes have to ask."""
    prompt, length = run.config["sample_prompt"], run.config["sample_tokens"]
    if run.config["adapter"] and not run.learner.engine.is_sharded:
        free_caches()
        with run.averages.in_place(averaged), run.learner.machine.autocast():
            writer = TextGenerator(run.learner.model, run.tokenizer)
            text = writer.generate(prompt, length, **SAMPLING) if run.team.is_first else ""
        free_caches()
        return text
    weights = run.full_weights(averaged=averaged)
    if not run.team.is_first:
        return ""
    model = checkpoint.model_from({"config": run.config, "model_state_dict": weights})
    for device in (model.device, torch.device("cpu")):
        with only_out_of_memory(f"no room on {device} to write a sample"):
            writer = TextGenerator(model.to(device), run.tokenizer)
            return writer.generate(prompt, length, **SAMPLING)
    return ""


def compare_strategies(run: Run, path: Path) -> None:
    """Shows what each way of sampling makes of the final model, beside held-out text.

    Not where time or memory are short: `generate.py --compare` does it later.
    """
    prompt, length = run.config["sample_prompt"], run.config["sample_tokens"]
    is_small = run.config["base_precision"] == "float32"  # else it may not fit as a whole
    has_time = is_small and not run.config["max_minutes"]  # it takes as long as many updates
    if length and run.team.is_first and has_time:
        model = prepared(checkpoint.load_model(path), device=run.learner.machine.device)
        comparison = compare_settings(
            TextGenerator(model, run.tokenizer),
            prompt,
            max_new_tokens=length,
            seed=SAMPLING["seed"],
            reference=Reference(run.corpus.train_ids, run.corpus.val_ids.numpy()),
        )
        run.about["comparison"] = comparison.as_dict()
        log(f"{comparison}\n")
        with only_warn(f"no {COMPARISON_NAME}"):
            plot_comparison(run.folder / COMPARISON_NAME, comparison)
