"""A run that goes on ends as if it had never stopped; changes are printed or refused."""

import shutil
from pathlib import Path

import pytest
import torch
from tiny_run import CONFIG, fingerprint, prepare, tiny_state, train_quickly

from storage import checkpoint, run_folder
from system.errors import CheckpointError, DataError
from system.process import Stopped
from training import run as run_module

HERE = Path()


pytestmark = pytest.mark.usefixtures("place")


def stop_before(monkeypatch, step: int) -> None:
    """Lets the next training end as Ctrl-C ends it, ahead of the update with this number."""
    update = run_module.Run.update

    def stopping(run):
        if run.step == step:
            raise Stopped(2)
        update(run)

    monkeypatch.setattr(run_module.Run, "update", stopping)
    with pytest.raises(Stopped):
        train_quickly()
    monkeypatch.setattr(run_module.Run, "update", update)


def test_stopped_and_resumed_is_the_run_that_never_stopped(place, monkeypatch):
    expected = fingerprint(train_quickly())
    for step in (1, 7, 11):
        prepare(place / f"stopped at {step}")
        stop_before(monkeypatch, step)
        assert fingerprint(train_quickly(resume=True)) == expected


def test_more_epochs_after_the_end_are_the_longer_run(place):
    longer = {"lr_schedule": "constant", "patience": 0}
    expected = fingerprint(train_quickly(num_epochs=5, **longer))
    prepare(place / "in two parts")
    train_quickly(num_epochs=3, **longer)
    path = train_quickly(num_epochs=5, resume=True, **longer)
    assert fingerprint(path) == expected


def test_what_changed_on_purpose_is_printed_as_old_and_new(capsys, monkeypatch):
    stop_before(monkeypatch, 5)
    train_quickly(resume=True, learning_rate=1e-4, eval_freq=6, dropout=0.0)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("changed")]
    assert [line.split()[1:] for line in lines] == [
        ["dropout", "0.2", "->", "0.0"],
        ["learning_rate", "0.0003", "->", "0.0001"],
        ["eval_freq", "4", "->", "6"],
    ]


@pytest.mark.parametrize("change", [{"embedding_dim": 16}, {"num_layers": 2}, {"seq_len": 8}])
def test_another_architecture_is_refused_with_old_and_new(monkeypatch, change):
    stop_before(monkeypatch, 5)
    key, value = next(iter(change.items()))
    with pytest.raises(CheckpointError, match=f"{key} {CONFIG[key]} -> {value}"):
        train_quickly(resume=True, **change)


def test_another_text_is_refused_with_both_hashes_unless_the_config_allows_it(place, monkeypatch):
    stop_before(monkeypatch, 5)
    path = place / "data.txt"
    path.write_text(path.read_text() + "The cat sat on the mat, and slept for a very long time.")
    with pytest.raises(DataError, match=r"is of [0-9a-f]{12}, this is [0-9a-f]{12}") as caught:
        train_quickly(resume=True)
    assert caught.value.exit_code == 3
    assert train_quickly(resume=True, allow_other_text=True).exists()


def test_another_tokenizer_is_refused(monkeypatch):
    stop_before(monkeypatch, 5)
    monkeypatch.setattr("resume.TABLE_SHA256", "0" * 64)
    with pytest.raises(CheckpointError, match="another tokenizer"):
        train_quickly(resume=True)


def test_a_fresh_start_beside_an_unfinished_run_says_how_to_continue_it(monkeypatch, capsys):
    stop_before(monkeypatch, 5)
    expected = fingerprint(checkpoint.step_path(HERE, 5))
    train_quickly(num_epochs=1, save_freq=5)
    assert "--resume model_checkpoint_step_5.pt continues it" in capsys.readouterr().out
    kept = list(HERE.glob("earlier_runs/*/model_checkpoint_step_5.pt"))
    assert [fingerprint(path) for path in kept] == [expected]


def test_another_runs_later_checkpoint_is_never_resumed_nor_deleted(place, monkeypatch):
    foreign = checkpoint.step_path(place, 99)
    checkpoint.save(foreign, tiny_state(99, run_id="b" * 32))
    before = foreign.read_bytes()
    stop_before(monkeypatch, 5)
    path, state, _ = run_folder.newest_intact(place)
    assert (path.name, state["step"]) == ("model_checkpoint_step_5.pt", 5)
    train_quickly(resume=True, keep_checkpoints=1)
    assert foreign.read_bytes() == before


def test_a_folder_of_other_runs_alone_needs_a_name(place):
    checkpoint.save(checkpoint.step_path(place, 3), tiny_state(3, run_id="b" * 32))
    checkpoint.save(checkpoint.step_path(place, 6), tiny_state(6, run_id="c" * 32))
    with pytest.raises(CheckpointError, match="name the one to go on from with --resume PATH"):
        train_quickly(resume=True)


def test_the_step_inside_decides_and_other_names_are_not_read(place, monkeypatch):
    stop_before(monkeypatch, 7)
    shutil.copy(checkpoint.step_path(place, 7), place / "model_checkpoint_step_70_backup.pt")
    shutil.copy(checkpoint.step_path(place, 7), place / "model_checkpoint_step_007.pt")
    shutil.move(checkpoint.step_path(place, 7), checkpoint.step_path(place, 1))
    path, state, _ = run_folder.newest_intact(place)
    assert (path.name, state["step"]) == ("model_checkpoint_step_1.pt", 7)


def test_going_back_to_an_earlier_checkpoint_leaves_the_later_ones_alone(place, monkeypatch):
    stop_before(monkeypatch, 7)
    later = checkpoint.step_path(place, 7).read_bytes()
    train_quickly(resume="model_checkpoint_step_6.pt", num_epochs=2, save_freq=100)
    assert checkpoint.step_path(place, 7).read_bytes() == later


def test_a_damaged_newest_file_never_costs_the_intact_ones(place, monkeypatch):
    stop_before(monkeypatch, 7)
    newest = checkpoint.step_path(place, 7)
    damaged = bytearray(newest.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # in a tensor: only its checksum tells
    newest.write_bytes(damaged)
    train_quickly(resume=True, keep_checkpoints=1, num_epochs=2, save_freq=100)
    path, _, _ = run_folder.newest_intact(place)
    assert checkpoint.load(path)["step"] == 12


def test_resume_without_a_checkpoint_or_with_a_missing_one_is_an_error(place):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train_quickly(resume=True)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        train_quickly(resume="none.pt")
    torch.save({"config": {}}, place / "other.pt")
    with pytest.raises(CheckpointError, match="lacks model_state_dict"):
        train_quickly(resume="other.pt")


def test_a_final_model_is_no_checkpoint_to_resume():
    train_quickly(num_epochs=1)
    with pytest.raises(CheckpointError, match="lacks optimizer_state_dict"):
        train_quickly(resume=checkpoint.FINAL_NAME)
