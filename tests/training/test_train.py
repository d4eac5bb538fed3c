"""Whole training runs on a tiny text: what they write and print, and when they end."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import CONFIG, canonical, train_quickly
from torch import Tensor
from torch.nn import functional as F

from corpus.corpus import read_corpus
from model import Transformer
from reports.history import History
from storage import checkpoint
from system.errors import OutputError
from training.optim import set_learning_rate
from training.settings import DEFAULTS

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def history_of(path: Path) -> History:
    return History.from_state_dict(checkpoint.load(path)["history"])


def test_a_run_writes_the_models_the_newest_checkpoints_and_the_plots(trained):
    assert {path.name for path in trained.folder.glob("[!.]*")} == {
        "data.txt",
        "final_trained_model.pt",
        "best_model.pt",
        "model_checkpoint_step_16.pt",  # keep_checkpoints=2: step 8 is gone
        "model_checkpoint_step_24.pt",
        "history.jsonl",
        "report.html",
        "training_losses.png",
        "sampling_comparison.png",
    }
    assert (trained.folder / "training_losses.png").read_bytes().startswith(PNG_SIGNATURE)
    state = checkpoint.load(trained.folder)  # a folder means its final model
    assert state["step"] == 24
    assert state["config"].keys() == DEFAULTS.keys()
    assert re.fullmatch("[0-9a-f]{64}", state["text_sha256"])
    assert state["model_state_dict"][checkpoint.EMBEDDING].shape == (50257, 16)


def test_a_run_is_a_line_per_report_on_stdout_and_nothing_on_stderr(trained):
    assert trained.stderr == ""
    steps = re.findall(r"^step +(\d+)  train .* val .* ppl .* bits/byte ", trained.stdout, re.M)
    assert [int(step) for step in steps] == [0, 8, 12, 16, 24]
    assert "device    cpu (as configured), float32 (as configured)" in trained.stdout
    assert "text      data.txt" in trained.stdout
    assert re.search(r"^greedy +Once upon a time", trained.stdout, re.MULTILINE)
    _, _, last = trained.stdout.partition("done      ")
    assert re.match(r"\d+\.\d minutes, best validation loss \d\.\d{3} at step 24\nfiles ", last)
    files, commands = last.split("\nnext ")
    for name in ("final_trained_model.pt", "report.html", "training_losses.png", "history.jsonl"):
        assert f" {name} " in files
    assert [command.split()[:2] for command in commands.splitlines()] == [
        ["python", "generate.py"],
        ["python", "report.py"],
        ["python", "export.py"],
    ]


def test_the_loss_falls_from_chance(trained):
    history = history_of(trained.folder)
    losses = [evaluation.loss for evaluation in history.evaluations]
    assert 10.7 < losses[0] < 10.95  # ln 50257 = 10.82
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 5
    assert len(history.train_losses) == 24


@torch.no_grad()
def naive_losses(model: Transformer, ids: Tensor, seq_len: int) -> Tensor:
    """Of each of ids[1:], (N - 1,)."""
    losses = []
    for start in range(0, len(ids) - 1, seq_len):
        targets = ids[start + 1 : start + 1 + seq_len]
        logits = model(ids[None, start : start + len(targets)])[0]
        losses.append(F.cross_entropy(logits, targets, reduction="none"))
    return torch.cat(losses)


@pytest.mark.parametrize("share", [True, False])
def test_the_reported_loss_is_that_of_the_saved_full_model(place, tokenizer, share):
    path = train_quickly(share_unused_tokens=share, num_epochs=1)
    corpus = read_corpus(CONFIG, tokenizer, share_rows=share)
    assert (corpus.vocabulary.num_shared > 1) == share
    expected = naive_losses(checkpoint.load_model(path), corpus.val_ids, seq_len=16).mean().item()
    # float32: the terms of the shared row are multiplied instead of added
    assert history_of(path).evaluations[-1].loss == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("chance", "least", "most"), [(1.0, 0.025, 0.1), (0.0, 0.0, 0.0125)])
def test_tokens_that_come_once_tell_how_often_a_new_one_comes(
    place, tokenizer, chance, least, most
):
    generator = np.random.default_rng(0)
    words = generator.choice([262, 290, 257, 284], 2000)  # of these tokens " the" is one
    words[generator.permutation(2000)[:100]] = 1000 + 7 * np.arange(100)  # like no other word
    (place / "data.txt").write_text(tokenizer.decode(words.tolist()), encoding="utf-8")
    path = train_quickly(rare_as_unused=chance, learning_rate=2e-2, num_epochs=6, eval_freq=1000)
    model, corpus = checkpoint.load_model(path), read_corpus(CONFIG, tokenizer, share_rows=True)
    is_unused = corpus.vocabulary.row_of_token == corpus.vocabulary.size - 1
    with torch.no_grad():
        probability = F.softmax(model(corpus.val_ids[None, :16]), dim=-1)
    assert least < probability[..., is_unused].sum(-1).median() < most


def steps_of(printed: str) -> list[int]:
    """The steps of the evaluations."""
    return [int(step) for step in re.findall(r"^step +(\d+)", printed, re.MULTILINE)]


def test_without_a_better_evaluation_a_run_stops_and_the_best_weights_are_final(place, capsys):
    worsens = {"learning_rate": 0.3, "lr_schedule": "constant"}
    path = train_quickly(**worsens, eval_freq=4, patience=2, num_epochs=8)
    steps = steps_of(capsys.readouterr().out)
    best, final = checkpoint.load(place / checkpoint.BEST_NAME), checkpoint.load(path)
    assert 0 < best["step"] == final["step"] == steps[-3] < 30  # of 48: two were no better
    assert canonical(final["model_state_dict"]) == canonical(best["model_state_dict"])


@pytest.mark.parametrize(("schedule", "last_step"), [("constant", 4), ("linear", 12)])
def test_a_plateau_ends_a_run_only_where_the_rate_will_not_fall(place, capsys, schedule, last_step):
    stays = {"learning_rate": 1e-12, "lr_schedule": schedule, "max_steps": 12, "num_epochs": 8}
    train_quickly(**stays, eval_freq=4, patience=1)
    assert steps_of(capsys.readouterr().out)[-1] == last_step


def test_a_batch_of_fewer_windows_moves_the_weights_by_less(place, monkeypatch, capsys):
    rates = []

    def noted(optimizer, rate):
        rates.append(rate)
        set_learning_rate(optimizer, rate)

    monkeypatch.setattr("training.learner.set_learning_rate", noted)
    same = {"learning_rate": 1e-3, "lr_schedule": "constant", "warmup_steps": 0}
    path = train_quickly(**same, batch_size=5, grad_accum_steps=2, num_epochs=2)
    rates = rates[-steps_of(capsys.readouterr().out)[-1] :]  # without those of timed updates
    rows = np.array(history_of(path).num_tokens) // CONFIG["seq_len"]
    assert rows.max() == 10
    assert rows.min() < 10  # the last batch of an epoch is smaller
    assert rates[: len(rows)] == pytest.approx(1e-3 * rows / 10)


def test_an_output_folder_that_is_missing_is_made_whatever_its_letters(place):
    path = train_quickly(output_dir="runs/a run, äöü 雪", num_epochs=1, sample_prompt="雪 😀")
    assert path == Path("runs/a run, äöü 雪/final_trained_model.pt")
    assert checkpoint.load_model(path).seq_len == 16


def test_an_output_folder_that_is_a_file_is_refused_before_any_work(place):
    with pytest.raises(OutputError, match="is a file"):
        train_quickly(output_dir="data.txt")
    assert [path.name for path in place.iterdir()] == ["data.txt"]
