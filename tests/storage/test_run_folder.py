"""Whose checkpoints a folder holds: strict names, retention, which one a run goes on from."""

import os
from pathlib import Path

import pytest
from tiny_run import tiny_state

from storage import checkpoint, run_folder
from system.errors import CheckpointError

OURS, THEIRS = "a" * 32, "b" * 32


def saved(path: Path, step: int, run_id: str = OURS) -> Path:
    """A checkpoint file whose name may say another step than it holds."""
    checkpoint.save(path, tiny_state(step, run_id))
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


def test_the_step_inside_a_file_counts_and_neither_its_name_nor_its_time(tmp_path):
    early = saved(checkpoint.step_path(tmp_path, 99), step=1)
    (late,) = steps_saved(tmp_path, 50)
    for seconds in (0, -1000):  # two equal times, and a clock that was set back
        os.utime(early, (10**9, 10**9))
        os.utime(late, (10**9 + seconds, 10**9 + seconds))
        assert run_folder.of_run(tmp_path, OURS) == [early, late]
        assert run_folder.newest_intact(tmp_path)[0] == late


def test_the_newest_model_is_the_final_one_unless_its_run_went_on(tmp_path):
    run_folder.claim(tmp_path, OURS)
    best = saved(tmp_path / checkpoint.BEST_NAME, 40)
    late, early = steps_saved(tmp_path, 90, 10)
    steps_saved(tmp_path, 500, run_id=THEIRS)
    checkpoint.step_path(tmp_path, 700).write_bytes(b"?")
    final = saved(tmp_path / checkpoint.FINAL_NAME, 40)
    for seconds, newest in ((1, [final, late, best, early]), (-1, [late, final, best, early])):
        for path in (late, early, best):
            os.utime(path, (10**9, 10**9))
        os.utime(final, (10**9 + seconds, 10**9 + seconds))
        assert run_folder.models_in(tmp_path) == newest


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
    for number in (1, 2):  # the second time, the place of the first is taken
        saved(checkpoint.step_path(tmp_path, 8), step=8, run_id=THEIRS)
        path = run_folder.save_step(tmp_path, tiny_state(8, OURS))
        assert checkpoint.glance(path) == (OURS, 8)
        others = list((tmp_path / "earlier_runs").rglob("*.pt"))
        assert [checkpoint.glance(other) for other in others] == [(THEIRS, 8)] * number


def finished_run(where: Path, run_id: str, *steps: int) -> dict[str, bytes]:
    """Puts the files of a run into the folder; the content of each by its name."""
    names = [checkpoint.BEST_NAME, checkpoint.FINAL_NAME]
    paths = [saved(where / name, steps[-1], run_id) for name in names]
    paths += steps_saved(where, *steps, run_id=run_id)
    pictures = (run_folder.PLOT_NAME, run_folder.COMPARISON_NAME)
    for name in pictures:
        (where / name).write_text(f"picture of {run_id}")
    run_folder.claim(where, run_id)
    paths += [where / name for name in (*pictures, run_folder.RUN_ID_NAME)]
    return {path.name: path.read_bytes() for path in paths}


def files_below(folder: Path) -> dict[str, bytes]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def below(place: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"earlier_runs/{place}/{name}": content for name, content in files.items()}


def test_the_files_of_an_earlier_run_are_set_aside_whole_and_can_be_resumed_there(tmp_path):
    (tmp_path / "data.txt").write_text("a text")
    (tmp_path / "notes_model.pt").write_bytes(b"the user's own")
    users = files_below(tmp_path)
    stray = saved(checkpoint.step_path(tmp_path, 7), 7, "c" * 32)  # copied in, of a third run
    third = {f"earlier_runs/cccccccc/{stray.name}": stray.read_bytes()}
    theirs = finished_run(tmp_path, THEIRS, 9, 100)
    place = run_folder.set_aside(str(tmp_path), OURS)
    assert place == tmp_path / "earlier_runs" / "bbbbbbbb"
    assert files_below(tmp_path) == users | third | below("bbbbbbbb", theirs)
    assert run_folder.newest_intact(place)[1]["step"] == 100
    assert run_folder.set_aside(tmp_path, OURS) is None
    again = finished_run(tmp_path, THEIRS, 9, 101)
    run_folder.set_aside(tmp_path, OURS)
    expected = users | third | below("bbbbbbbb", theirs) | below("bbbbbbbb-2", again)
    assert files_below(tmp_path) == expected


def test_files_of_the_run_itself_stay_and_those_of_unknown_runs_go_to_a_folder_called_so(tmp_path):
    ours = finished_run(tmp_path, OURS, 9)
    others = {checkpoint.step_path(Path(), 3): b"torn", checkpoint.step_path(Path(), 5): b""}
    for path, content in others.items():
        (tmp_path / path).write_bytes(content)
    saved(checkpoint.step_path(tmp_path, 7), 9, "../..")
    checkpoint.step_path(tmp_path, 8).symlink_to("nothing")
    steps_saved(tmp_path, 500, run_id=THEIRS)
    assert run_folder.set_aside(tmp_path, OURS).parent == tmp_path / "earlier_runs"
    assert {name for name in files_below(tmp_path) if "/" not in name} == ours.keys()
    unknown = tmp_path / "earlier_runs" / "unknown"
    names = [f"model_checkpoint_step_{step}.pt" for step in (3, 5, 7, 8)]
    assert sorted(path.name for path in unknown.iterdir()) == names
    assert (unknown / names[-1]).is_symlink()
    assert run_folder.of_run(tmp_path / "earlier_runs" / "bbbbbbbb", THEIRS)


def test_a_crash_between_any_two_moves_loses_nothing_and_the_next_start_finishes(
    tmp_path, monkeypatch
):
    rename = Path.rename
    num_files = len(finished_run(tmp_path / "0", THEIRS, 9, 100))
    for num_moves in range(num_files):
        place = tmp_path / str(num_moves)
        place.mkdir(exist_ok=True)
        theirs = finished_run(place, THEIRS, 9, 100)
        left = iter(range(num_moves))

        def move_or_die(path, target, left=left):
            if next(left, None) is None:
                raise KeyboardInterrupt
            return rename(path, target)

        monkeypatch.setattr(Path, "rename", move_or_die)
        with pytest.raises(KeyboardInterrupt):
            run_folder.set_aside(place, OURS)
        monkeypatch.undo()
        assert sorted(files_below(place).values()) == sorted(theirs.values())
        is_moved = not list(place.glob("*.pt"))
        newest = run_folder.newest_intact(place / "earlier_runs/bbbbbbbb" if is_moved else place)
        assert newest[1]["step"] == 100
        run_folder.set_aside(place, OURS)
        assert files_below(place) == below("bbbbbbbb", theirs)


def test_the_newest_checkpoint_of_the_folders_run_is_resumed(tmp_path):
    paths = steps_saved(tmp_path, 9, 100, 20)
    steps_saved(tmp_path, 500, run_id=THEIRS)
    run_folder.claim(tmp_path, OURS)
    path, state, skipped = run_folder.newest_intact(tmp_path)
    assert (path, state["step"], skipped) == (paths[1], 100, [])


def test_a_checkpoint_that_goes_while_the_folder_is_read_is_none_and_a_dangling_link_is_named(
    tmp_path, monkeypatch
):
    first, second = steps_saved(tmp_path, 9, 100)
    checkpoint.step_path(tmp_path, 200).symlink_to("nothing")

    def delete_and_look(path: Path) -> tuple[str, int]:
        second.unlink(missing_ok=True)
        return checkpoint.glance(path)

    monkeypatch.setattr(run_folder, "glance", delete_and_look)
    path, _, skipped = run_folder.newest_intact(tmp_path)
    assert path == first
    assert ["step_200.pt" in reason for reason in skipped] == [True]


def test_nothing_to_resume_and_only_other_runs_checkpoints_are_said(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing to resume .* start without --resume"):
        run_folder.newest_intact(tmp_path)
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
