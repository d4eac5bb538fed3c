"""Whose checkpoints a folder holds: strict names, retention, which one a run goes on from."""

from pathlib import Path
from typing import Any

import pytest

from storage import checkpoint, run_folder
from system.errors import CheckpointError

OURS, THEIRS = "a" * 32, "b" * 32
CONFIG = {
    "seq_len": 3,
    "embedding_dim": 2,
    "num_layers": 1,
    "num_heads": 1,
    "dropout": 0.0,
    "ffn_hidden_dim": 1,
}


def state_of(step: int, run_id: str) -> dict[str, Any]:
    weights = checkpoint.build_model(CONFIG, vocab_size=5).state_dict()
    return {"config": CONFIG, "model_state_dict": weights, "step": step, "run_id": run_id}


def saved(path: Path, step: int, run_id: str = OURS) -> Path:
    """A checkpoint file whose name may say another step than it holds."""
    checkpoint.save(path, state_of(step, run_id))
    return path


def steps_saved(where: Path, *steps: int, run_id: str = OURS) -> list[Path]:
    return [saved(checkpoint.step_path(where, step), step, run_id) for step in steps]


def test_only_strict_names_are_checkpoints_in_the_order_of_their_steps(tmp_path):
    paths = steps_saved(tmp_path, 1000, 9, 20, 1)
    for name in (
        "model_checkpoint_step_5_backup.pt",
        "my_model_checkpoint_step_6.pt",
        "model_checkpoint_step_-7.pt",
        "model_checkpoint_step_007.pt",
        "model_checkpoint_step_٨.pt",
        "model_checkpoint_step_9.pt.part",
        "final_trained_model.pt",
    ):
        saved(tmp_path / name, step=5)
    assert run_folder.of_run(tmp_path, OURS) == [paths[3], paths[1], paths[2], paths[0]]


def test_the_step_inside_a_file_counts_and_not_its_name(tmp_path):
    early = saved(checkpoint.step_path(tmp_path, 99), step=1)
    (late,) = steps_saved(tmp_path, 50)
    assert run_folder.of_run(tmp_path, OURS) == [early, late]
    assert run_folder.newest_intact(tmp_path)[0] == late


@pytest.mark.parametrize(("keep", "kept"), [(1, [100]), (2, [20, 100]), (9, [9, 20, 100])])
def test_retention_keeps_the_newest_of_this_run_and_all_of_others(tmp_path, keep, kept):
    steps_saved(tmp_path, 9, 20, 100)
    others = steps_saved(tmp_path, 5, 50, 500, run_id=THEIRS)
    unreadable = checkpoint.step_path(tmp_path, 7)
    unreadable.write_bytes(b"?")
    run_folder.remove_old(tmp_path, run_id=OURS, step=100, keep=keep)
    ours = [checkpoint.step_path(tmp_path, step) for step in kept]
    assert set(tmp_path.iterdir()) == {*ours, *others, unreadable}


def test_a_file_of_another_run_is_never_written_over(tmp_path):
    saved(checkpoint.step_path(tmp_path, 8), step=8, run_id=THEIRS)
    path = run_folder.save_beside_others(tmp_path, state_of(8, OURS))
    assert checkpoint.glance(path) == (OURS, 8)
    (other,) = set(tmp_path.iterdir()) - {path}
    assert checkpoint.glance(other) == (THEIRS, 8)


def test_the_newest_checkpoint_of_the_folders_run_is_resumed(tmp_path):
    paths = steps_saved(tmp_path, 9, 100, 20)
    steps_saved(tmp_path, 500, run_id=THEIRS)
    run_folder.claim(tmp_path, OURS)
    path, state, skipped = run_folder.newest_intact(tmp_path)
    assert (path, state["step"], skipped) == (paths[1], 100, [])


def test_a_damaged_newest_checkpoint_is_skipped_and_named(tmp_path):
    (good, bad) = steps_saved(tmp_path, 9, 100)
    bad.write_bytes(bad.read_bytes()[:-100])
    path, _, skipped = run_folder.newest_intact(tmp_path)
    assert path == good
    assert [bad.name in reason for reason in skipped] == [True]


def test_nothing_to_resume_is_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing to resume .* start without --resume"):
        run_folder.newest_intact(tmp_path)


def test_only_other_runs_checkpoints_are_not_resumed_by_guess(tmp_path):
    steps_saved(tmp_path, 500, run_id=THEIRS)
    run_folder.claim(tmp_path, OURS)
    with pytest.raises(CheckpointError, match=r"only checkpoints of other runs .*step_500.pt"):
        run_folder.newest_intact(tmp_path)


def test_a_run_without_its_final_model_is_unfinished(tmp_path):
    run_folder.claim(tmp_path, OURS)
    assert run_folder.unfinished(tmp_path) is None
    _, newest = steps_saved(tmp_path, 8, 16)
    assert run_folder.unfinished(tmp_path) == newest
    saved(tmp_path / checkpoint.FINAL_NAME, step=16, run_id=THEIRS)
    assert run_folder.unfinished(tmp_path) == newest
    saved(tmp_path / checkpoint.FINAL_NAME, step=16)
    assert run_folder.unfinished(tmp_path) is None


def test_a_claim_is_read_back_unless_it_is_damaged(tmp_path):
    assert run_folder.claimed_by(tmp_path) is None
    run_folder.claim(tmp_path, OURS)
    assert run_folder.claimed_by(tmp_path) == OURS
    (tmp_path / run_folder.RUN_ID_NAME).write_bytes(b"\xff")
    assert run_folder.claimed_by(tmp_path) is None
