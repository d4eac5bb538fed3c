"""A full, small or read-only disk: the true cause in one line, and no good file harmed."""

import errno
import os
import resource
import subprocess
import sys

import pytest
from tiny_run import REPOSITORY, tiny_state, train_quickly

from corpus import token_cache
from reports import plot
from storage import checkpoint, run_folder
from system.errors import OutOfRoomError, OutputError
from system.process import describe, exit_code_of
from training import capacity, samples
from training.run import Run


@pytest.fixture
def limited():
    """Sets the largest size of a file, as a quota or a full disk would; no limit afterwards."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_save_that_meets_the_limit_at_any_offset_leaves_the_old_file(tmp_path, limited):
    path = tmp_path / "model.pt"
    checkpoint.save(path, tiny_state(1))
    before = path.read_bytes()
    for size in range(0, len(before), 61):
        limited(size)
        with pytest.raises(OSError, match="File too large") as caught:
            checkpoint.save(path, tiny_state(2))
        limited(resource.RLIM_INFINITY)
        assert "model.pt" in describe(caught.value)
        assert exit_code_of(caught.value) == 6
        assert path.read_bytes() == before
        assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]


def test_a_full_disk_in_a_periodic_save_is_a_warning_and_the_next_save_works(
    place, monkeypatch, capsys
):
    save = run_folder.save

    def full_at_step_6(path, state):
        if state["step"] == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
        save(path, state)

    monkeypatch.setattr(run_folder, "save", full_at_step_6)
    train_quickly(keep_checkpoints=100)
    assert "no checkpoint of step 6: No space left on device" in capsys.readouterr().err
    steps = {path.name for path in run_folder.of_run(place, run_folder.claimed_by(place))}
    assert "model_checkpoint_step_9.pt" in steps
    assert "model_checkpoint_step_6.pt" not in steps


def test_a_full_disk_at_the_final_save_is_an_error(place, limited):
    limited(500_000)
    with pytest.raises(OSError, match="File too large") as caught:
        train_quickly(num_epochs=1)
    assert exit_code_of(caught.value) == 6
    assert not list(place.glob("*.pt"))
    assert not list(place.glob(".*part"))


def test_a_disk_that_is_too_small_is_refused_before_the_first_step(place, monkeypatch):
    usage = capacity.shutil.disk_usage(place)
    monkeypatch.setattr(capacity.shutil, "disk_usage", lambda path: usage._replace(free=3_000_000))
    monkeypatch.setattr(Run, "update", None)
    with pytest.raises(OutputError, match=r"2 MB x \(2 \+ 1\) checkpoints .* 3 MB are there"):
        train_quickly()


@pytest.mark.parametrize("key", ["embedding_dim", "num_layers", "ffn_hidden_dim"])
def test_a_model_that_cannot_fit_is_refused_before_it_is_allocated(place, key):
    with pytest.raises(OutOfRoomError, match=r"parameters.*GB to train.*GB free on cpu") as caught:
        train_quickly(**{key: 10**10})
    assert caught.value.exit_code == 8


def test_the_count_of_parameters_is_that_of_the_model():
    state = tiny_state()
    total = sum(tensor.numel() for tensor in state["model_state_dict"].values())
    assert capacity.num_parameters(state["config"], num_rows=3) == total


def test_a_token_cache_that_cannot_be_written_beside_the_text_goes_to_the_output(
    place, monkeypatch
):
    build = token_cache._build_cache_at

    def read_only(cache_path, *arguments):
        if not cache_path.is_absolute():  # that of the working folder, where the text is
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return build(cache_path, *arguments)

    monkeypatch.setattr(token_cache, "_build_cache_at", read_only)
    output = place / "output"
    output.mkdir()
    assert train_quickly(output_dir=str(output), num_epochs=1).exists()
    assert list((output / ".tokens").glob("*/manifest.json"))


def test_a_plot_that_cannot_be_written_is_a_warning(place, monkeypatch, capsys):
    def no_plot(path, *shown):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(plot, "plot_history", no_plot)
    monkeypatch.setattr(samples, "plot_comparison", no_plot)
    assert train_quickly(num_epochs=1, sample_tokens=1).exists()
    notes = capsys.readouterr().err
    for name in ("training_losses.png", "sampling_comparison.png"):
        assert f"warning: no {name}: Permission denied" in notes


@pytest.mark.slow
def test_a_reader_never_meets_half_a_checkpoint(tmp_path):
    path = tmp_path / "model.pt"
    checkpoint.save(path, tiny_state(0))
    writer = (
        "from tiny_run import tiny_state; from storage import checkpoint\n"
        f"for step in range(60): checkpoint.save({str(path)!r}, tiny_state(step))"
    )
    places = os.pathsep.join([str(REPOSITORY / "tests"), str(REPOSITORY)])
    environment = {**os.environ, "PYTHONPATH": places}
    with subprocess.Popen([sys.executable, "-c", writer], env=environment) as process:
        steps = []
        while process.poll() is None:
            steps.append(checkpoint.load(path)["step"])
    assert process.returncode == 0
    assert len(set(steps)) > 3, "the reader saw too few generations to prove anything"
    assert steps[1:] == sorted(steps[1:])
