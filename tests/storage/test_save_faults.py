"""Whatever operation of a save fails, the old or the new checkpoint loads, without leftovers."""

import errno
import os

import pytest
from faulty_disk import counted_operations, newest_step, next_generation
from tiny_run import tiny_state

from storage import checkpoint
from system import files
from system.errors import NonFiniteError, OutputError
from system.process import describe, exit_code_of


def operations_of_a_save(place) -> list[str]:
    next_generation(place, 1)
    with counted_operations(lambda n: None) as names:
        next_generation(place, 2)
    for path in place.iterdir():
        path.unlink()
    return names


@pytest.mark.parametrize("cause", [errno.EIO, errno.ENOSPC])
def test_any_failing_operation_is_named_and_leaves_a_checkpoint_that_loads(tmp_path, cause):
    names = operations_of_a_save(tmp_path)
    assert {"write", "fsync", "replace", "unlink"} <= set(names)
    for failing in range(len(names)):
        next_generation(tmp_path, 1)

        def fail(n, failing=failing):
            if n == failing:
                raise OSError(cause, os.strerror(cause))

        with pytest.raises(OSError, match=os.strerror(cause)) as caught, counted_operations(fail):
            next_generation(tmp_path, 2)
        assert os.strerror(cause) in describe(caught.value), names[failing]
        assert exit_code_of(caught.value) == 6
        assert newest_step(tmp_path) in (1, 2)
        assert not list(tmp_path.glob(".*part"))
        for path in tmp_path.iterdir():
            path.unlink()


def test_a_failed_fsync_is_never_followed_by_the_rename(tmp_path):
    def fail(n):
        if names[n] == "fsync":
            raise OSError(errno.EIO, "input/output error")

    with pytest.raises(OSError, match="input/output"), counted_operations(fail) as names:
        checkpoint.save(tmp_path / "model.pt", tiny_state())
    assert "replace" not in names
    assert not list(tmp_path.iterdir())


def test_bytes_that_change_on_their_way_to_the_disk_never_get_the_name(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    checkpoint.save(path, tiny_state(1))
    before = path.read_bytes()
    write = files._CandidFile.write

    def garbled(file, data):
        changed = bytearray(data)
        if b"PK" not in changed:  # the bytes of a tensor
            changed[0] ^= 1
        return write(file, bytes(changed))

    monkeypatch.setattr(files._CandidFile, "write", garbled)
    monkeypatch.setattr(files.io, "BufferedWriter", lambda raw: raw)  # one write an entry
    with pytest.raises(OutputError, match="garbled"):
        checkpoint.save(path, tiny_state(2))
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.pt"]


def test_a_state_that_is_not_finite_is_not_written(tmp_path):
    state = tiny_state()
    state["model_state_dict"][checkpoint.EMBEDDING][1, 1] = float("nan")
    with pytest.raises(NonFiniteError, match=r"embedding\.weight is not finite"):
        checkpoint.save(tmp_path / "model.pt", state)
    assert not list(tmp_path.iterdir())
