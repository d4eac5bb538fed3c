"""The command as a user meets it: one line, a documented code, a traceback only on request."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_run import CONFIG, prepare

from files import FolderInUseError, only_writer

REPOSITORY = Path(__file__).parent.parent
OPTIONS = [f"--{key}={value}" for key, value in CONFIG.items() if value is not False]


def command(*options: str, script: str = "train.py", **more) -> subprocess.CompletedProcess:
    environment = {**os.environ, **more.pop("env", {})}
    line = [sys.executable, str(REPOSITORY / script), *options]
    return subprocess.run(
        line, env=environment, capture_output=True, text=True, check=False, **more
    )


def test_a_foreseen_error_is_one_line_and_its_traceback_comes_on_request(tmp_path):
    (tmp_path / "data.txt").write_text("")
    done = command(cwd=tmp_path)
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("error: ")
    shown = command(cwd=tmp_path, env={"TRACEBACK": "1"})
    assert shown.returncode == 3
    assert "Traceback" in shown.stderr
    assert shown.stderr.endswith(done.stderr)


@pytest.mark.parametrize("streams", ["| head -n 1", ">&-", ">&- 2>&-", "2>&1 | head -n 1"])
def test_training_without_a_reader_of_its_output_reaches_its_end(tmp_path, streams):
    prepare(tmp_path)
    line = f'"$0" "$@" {streams}'
    script = [sys.executable, str(REPOSITORY / "train.py"), *OPTIONS, "--num_epochs=1"]
    done = subprocess.run(
        ["bash", "-c", line, *script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stdout + done.stderr
    assert (tmp_path / "final_trained_model.pt").exists()


def test_generate_refuses_a_damaged_checkpoint_with_one_line(tmp_path):
    (tmp_path / "model.pt").write_bytes(b"torn")
    done = command("--prompt=a", "--checkpoint=model.pt", script="generate.py", cwd=tmp_path)
    assert done.returncode == 4
    assert done.stderr.startswith("error: not an intact checkpoint (model.pt")
    assert done.stderr.count("\n") == 1


def test_a_second_writer_is_named_and_a_dead_ones_lock_is_free(tmp_path):
    holder = "import files, pathlib, os\nwith files.only_writer(pathlib.Path('.')): "
    place = {"cwd": tmp_path, "env": {**os.environ, "PYTHONPATH": str(REPOSITORY)}}
    waiting = [sys.executable, "-c", holder + "print('held', flush=True); input()"]
    with subprocess.Popen(
        waiting, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **place
    ) as process:
        process.stdout.readline()
        in_use = pytest.raises(FolderInUseError, match=f"process {process.pid}")
        with in_use as caught, only_writer(tmp_path):
            pass
        assert caught.value.exit_code == 2
        process.kill()
    with only_writer(tmp_path):
        pass
