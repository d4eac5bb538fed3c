"""Whole training runs on a tiny text: what they write, that they repeat, stop and go on."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import train
from corpus.corpus import read_corpus
from reports.history import History
from storage import checkpoint
from system.errors import ConfigError, NonFiniteError, OutputError
from training.settings import DEFAULTS

ROOT = Path(__file__).parent.parent.parent
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def final_state(folder: Path) -> dict[str, Any]:
    return checkpoint.load(folder / checkpoint.FINAL_NAME)


def history_of(folder: Path) -> History:
    return History.from_state_dict(final_state(folder)["history"])


def weights_of(path: Path) -> dict[str, Tensor]:
    return checkpoint.load(path)["model_state_dict"]


def is_same(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    """Whether two nests of tensors are equal to the last bit."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(is_same(one[key], other[key]) for key in one)
    return torch.equal(one, other)


# ---------------------------------------------------------------- what a run leaves


def test_a_run_writes_the_models_the_newest_checkpoints_and_the_plot(trained):
    names = {path.name for path in trained.folder.iterdir() if not path.name.startswith(".")}
    assert names == {
        "data.txt",
        "final_trained_model.pt",
        "best_model.pt",
        "model_checkpoint_step_16.pt",  # keep_checkpoints=2: step 8 is gone
        "model_checkpoint_step_24.pt",
        "training_losses.png",
        "sampling_comparison.png",
    }
    assert not list(trained.folder.glob(".*part"))
    assert (trained.folder / "training_losses.png").read_bytes().startswith(PNG_SIGNATURE)


def test_a_run_is_a_line_per_report_on_stdout_and_nothing_on_stderr(trained):
    assert trained.stderr == ""
    steps = re.findall(r"^step +(\d+)  train .* val .* ppl .* bits/byte ", trained.stdout, re.M)
    assert [int(step) for step in steps] == [0, 8, 12, 16, 24]
    assert "device    cpu (as configured), float32 (as configured)" in trained.stdout
    assert "text      data.txt" in trained.stdout
    assert re.search(r"^greedy +Once upon a time", trained.stdout, re.MULTILINE)
    assert re.fullmatch(
        r"done      \d+\.\d minutes, best validation loss \d\.\d{3} at step 24; "
        r"next: python generate\.py --prompt 'Once upon a time'",
        trained.stdout.splitlines()[-1],
    )


def test_the_loss_falls_from_chance(trained):
    history = history_of(trained.folder)
    losses = [evaluation.loss for evaluation in history.evaluations]
    assert 10.7 < losses[0] < 10.95  # ln 50257 = 10.82
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < 5
    assert len(history.train_losses) == 24
    assert history.train_losses[-1] < history.train_losses[0] / 2


def test_files_say_how_they_came_about(trained):
    state = final_state(trained.folder)
    assert state["step"] == 24
    assert state["config"].keys() == DEFAULTS.keys()
    assert re.fullmatch("[0-9a-f]{64}", state["text_sha256"])
    assert weights_of(trained.folder / checkpoint.FINAL_NAME)[checkpoint.EMBEDDING].shape == (
        50257,
        16,
    )


# ---------------------------------------------------------------- the same again


def test_the_same_seed_gives_the_same_run_to_the_last_bit(trained_in):
    one, again, other = trained_in("one"), trained_in("again"), trained_in("other", seed=7)
    for name in ("final_trained_model.pt", "best_model.pt", "model_checkpoint_step_16.pt"):
        assert is_same(weights_of(one / name), weights_of(again / name))
    assert history_of(one) == history_of(again)
    assert history_of(one).train_losses != history_of(other).train_losses


# ---------------------------------------------------------------- equal by design


def test_two_accumulated_batches_of_4_learn_as_one_of_8(trained_in):
    same = {"dropout": 0.0, "num_epochs": 1, "share_unused_tokens": True}
    one = history_of(trained_in("one", batch_size=8, grad_accum_steps=1, **same))
    two = history_of(trained_in("two", batch_size=4, grad_accum_steps=2, **same))
    three = history_of(trained_in("three", batch_size=3, grad_accum_steps=2, **same))
    # float32 sums in another order, which twelve steps of Adam may enlarge
    assert two.train_losses == pytest.approx(one.train_losses, rel=1e-4)
    assert two.evaluations[-1].loss == pytest.approx(one.evaluations[-1].loss, rel=1e-4)
    assert three.train_losses != pytest.approx(one.train_losses, rel=1e-4)


@torch.no_grad()
def naive_loss(model: nn.Module, ids: Tensor, seq_len: int) -> float:
    total = 0.0
    for start in range(0, len(ids) - 1, seq_len):
        targets = ids[start + 1 : start + 1 + seq_len]
        logits = model(ids[None, start : start + len(targets)])[0]
        total += nn.functional.cross_entropy(logits, targets, reduction="sum").item()
    return total / (len(ids) - 1)


@pytest.mark.parametrize("share", [True, False])
def test_the_reported_loss_is_that_of_the_saved_full_model(
    trained_in, tiny_config, tokenizer, share
):
    folder = trained_in("run", share_unused_tokens=share, patience=0, num_epochs=1)
    corpus = read_corpus(tiny_config, tokenizer, share_rows=share)
    assert (corpus.vocabulary.num_shared > 1) == share
    model = checkpoint.load_model(folder / checkpoint.FINAL_NAME)
    expected = naive_loss(model, corpus.val_ids, seq_len=16)
    # float32: the terms of the shared row are multiplied instead of added
    assert history_of(folder).evaluations[-1].loss == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------- ends before the end


def test_without_a_better_evaluation_a_run_stops_and_the_best_weights_are_final(trained_in, capsys):
    folder = trained_in("run", learning_rate=0.3, eval_freq=4, patience=2, num_epochs=8)
    steps = [int(step) for step in re.findall(r"^step +(\d+)", capsys.readouterr().out, re.M)]
    best, state = checkpoint.load(folder / checkpoint.BEST_NAME), final_state(folder)
    assert steps == list(range(0, steps[-1] + 1, 4))
    assert 0 < best["step"] == state["step"] == steps[-1] - 2 * 4 < 96
    assert is_same(state["model_state_dict"], best["model_state_dict"])


def test_a_diverging_run_is_an_error_and_writes_no_broken_model(trained_in):
    with pytest.raises(NonFiniteError, match=r"at step \d+, learning rate .*lower learning_rate"):
        trained_in("run", learning_rate=1e30)
    assert {path.name for path in Path("run").glob("*.pt")} <= {checkpoint.BEST_NAME}


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stopped_process_leaves_a_checkpoint_and_one_line(text_folder, tiny_options, name):
    options = [*tiny_options, "--num_epochs=100000", "--save_freq=1000000", "--patience=0"]
    command = [sys.executable, str(ROOT / "train.py"), *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=text_folder, **pipes) as process:
        for line in process.stdout:
            if line.startswith("step     16 "):
                break
        time.sleep(0.1)  # anywhere in the loop
        number = getattr(signal, name)
        process.send_signal(number)
        _, errors = process.communicate(timeout=60)
    said = "Ctrl-C" if name == "SIGINT" else name
    match = re.fullmatch(
        rf"stopped: by {said} after step (\d+), saved (.+): python train.py --resume goes on\n",
        errors,
    )
    assert match, errors
    assert process.returncode == 128 + number
    assert checkpoint.load(text_folder / match[2])["step"] == int(match[1]) >= 16


# ---------------------------------------------------------------- faults


def test_a_wrong_config_is_refused_before_any_work(tmp_path, run_python):
    options = ["--batch_size=0", "--dropout=much", "--output_dir="]
    result = run_python(ROOT / "train.py", *options, folder=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert re.fullmatch(r"error: config: .*dropout='much'.*batch_size=0.*\n", result.stderr)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_key_is_refused_before_any_work(text_folder, tiny_config):
    with pytest.raises(ConfigError, match="did you mean learning_rate"):
        train.train({**tiny_config, "learning_rat": 1e-3})
    assert [path.name for path in text_folder.iterdir()] == ["data.txt"]


def test_an_output_folder_that_is_missing_is_made(trained_in):
    assert (trained_in("a/b", num_epochs=1) / checkpoint.FINAL_NAME).is_file()


def test_an_output_folder_that_is_a_file_is_refused_before_any_work(text_folder, tiny_config):
    with pytest.raises(OutputError, match="is a file"):
        train.train({**tiny_config, "output_dir": "data.txt"})
    assert [path.name for path in text_folder.iterdir()] == ["data.txt"]


def test_a_plot_that_cannot_be_written_is_a_warning(trained_in, capsys):
    picture = trained_in("run", num_epochs=1) / "training_losses.png"
    picture.unlink()
    picture.mkdir()
    folder = trained_in("run", num_epochs=2, resume=True)
    assert checkpoint.load(folder)["step"] == 24
    warnings = re.findall("^warning: .*$", capsys.readouterr().err, re.MULTILINE)
    assert warnings
    assert all("training_losses.png" in warning for warning in warnings)
    assert not list(folder.glob(".*part"))


def test_a_folder_may_have_spaces_and_any_letters(trained_in):
    folder = trained_in("a run, äöü 雪", num_epochs=1, sample_prompt="雪 😀", resume=False)
    assert checkpoint.load_model(folder / checkpoint.FINAL_NAME).seq_len == 16


@pytest.mark.parametrize("module", ["train", "model"])
def test_importing_does_no_work_and_loads_nothing_heavy(tmp_path, run_python, module):
    code = f"import sys, {module}; print(sorted({{'tensorflow', 'matplotlib'}} & set(sys.modules)))"
    result = run_python("-W", "error", "-c", code, folder=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (0, "[]\n", "")
    assert list(tmp_path.iterdir()) == []
