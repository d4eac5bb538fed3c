"""The command as a user meets it: one line, a documented code, a traceback only on request."""

import contextlib
import io
import runpy
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from tiny_run import CONFIG, REPOSITORY, train_quickly

from storage import checkpoint
from training.run import Run

OPTIONS = [f"--{key}={value}" for key, value in CONFIG.items() if value is not False]
TRAIN = [REPOSITORY / "train.py", *OPTIONS, "--num_epochs=1"]
WRITE = [REPOSITORY / "generate.py", "--max-new-tokens=3"]


@pytest.mark.parametrize("streams", [">&- 2>&-", "2>&1 | head -n 1"])
def test_training_without_a_home_and_a_reader_of_its_output_reaches_its_end(place, streams):
    line = f'unset HOME; "$0" "$@" {streams}'
    done = subprocess.run(["bash", "-c", line, sys.executable, *TRAIN], capture_output=True)
    assert b"Traceback" not in done.stdout + done.stderr
    assert (place / "final_trained_model.pt").exists()


def test_a_notebook_runs_a_command_and_a_thread_trains_after_it(place, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", *OPTIONS, "--num_epochs=1"])
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        runpy.run_path(str(REPOSITORY / "train.py"), run_name="__main__")  # as %run does
    assert "saved" in shown.getvalue()
    with ThreadPoolExecutor(1) as thread:
        assert thread.submit(train_quickly, num_epochs=1).result().exists()


def test_no_home_and_no_temporary_folder_are_needed(place, run_python):
    names = ("HOME", "TMPDIR", "TMP", "TEMP", "XDG_CACHE_HOME", "XDG_CONFIG_HOME")
    nowhere = dict.fromkeys(names, "/proc/nowhere")  # not even root can make it
    for line in (TRAIN, WRITE):
        done = run_python(*line, folder=place, **nowhere)
        assert done.returncode == 0, done.stderr
    assert (place / "training_losses.png").exists()


@pytest.mark.parametrize(
    ("script", "options", "code", "line"),
    [
        ("train.py", ["--warmup_steps=999999"], 2, "warmup_steps=999999"),
        ("train.py", ["--embedding_dim=10", "--num_heads=4"], 2, "embedding_dim=10"),
        ("bench.py", ["train", "--steps=0"], 2, "steps=0"),
        ("bench.py", ["train", "--device=cuda:99"], 2, "device=cuda:99"),
        ("export.py", ["--to=gguf", "new.gguf"], 4, "final_trained_model.pt"),
        ("export.py", ["--to=gguf", "none/new.gguf"], 6, "none"),
        ("generate.py", ["--prompt=a"], 4, "python train.py"),
    ],
)
def test_every_command_has_its_code_and_one_line(
    place, monkeypatch, capsys, script, options, code, line
):
    tiny = OPTIONS if script == "train.py" else []
    monkeypatch.setattr(sys, "argv", [script, *tiny, *options])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(REPOSITORY / script), run_name="__main__")
    error = capsys.readouterr().err
    assert left.value.code == code, error
    assert error.startswith("error: ")
    assert line in error
    assert error.count("\n") == 1


def test_an_output_folder_that_is_deleted_in_the_run_is_made_again(place, monkeypatch):
    output = place / "output"
    output.mkdir()
    update = Run.update

    def delete_and_update(run):
        if run.step == 4:
            shutil.rmtree(output)
        update(run)

    monkeypatch.setattr(Run, "update", delete_and_update)
    assert train_quickly(output_dir=str(output)) == output / "final_trained_model.pt"
    assert checkpoint.load(output / "final_trained_model.pt")["step"] > 4
