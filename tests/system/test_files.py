"""Files reach the disk whole or not at all, and a folder has one writer."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import BinaryIO

import pytest

from system import files
from system.errors import FolderInUseError, OutputError
from system.files import (
    LOCK_NAME,
    check_writable,
    exclusive,
    only_writer,
    part_path_of,
    sweep_parts,
    write_durably,
)

ROOT = Path(__file__).parent.parent.parent
HOLD_THE_FOLDER = """
import sys, time
from pathlib import Path
from system.files import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("error", [OSError, ValueError, KeyboardInterrupt, None])
def test_a_write_is_beside_its_target_until_it_is_whole_and_gone_after_an_error(tmp_path, error):
    target = tmp_path / "model.pt"
    target.write_bytes(b"old")

    def write(file: BinaryIO) -> None:
        file.write(b"new")
        assert target.read_bytes() == b"old"
        assert names_in(tmp_path) == [part_path_of(target).name, "model.pt"]
        if error:
            raise error

    with pytest.raises(error) if error else nullcontext():
        write_durably(target, write)
    assert target.read_bytes() == (b"old" if error else b"new")
    assert names_in(tmp_path) == ["model.pt"]


@pytest.mark.parametrize("cause", [errno.EINVAL, errno.EOPNOTSUPP, errno.EIO])
def test_a_disk_that_cannot_sync_folders_is_no_error_and_a_failed_sync_names_its_folder(
    tmp_path, monkeypatch, cause
):
    fsync = os.fsync

    def refuse_folders(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(cause, os.strerror(cause))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", refuse_folders)
    failure = pytest.raises(OSError, match="Input/output") if cause == errno.EIO else nullcontext()
    with failure as caught:
        write_durably(tmp_path / "model.pt", lambda file: file.write(b"new"))
    assert caught is None or caught.value.filename == str(tmp_path)
    assert names_in(tmp_path) == ["model.pt"]


@pytest.mark.parametrize("name", ["fsync", "replace"])
def test_a_refused_system_call_names_the_target_and_not_the_temporary_file(
    tmp_path, monkeypatch, name
):
    def refuse(*arguments):
        path = arguments[0] if isinstance(arguments[0], Path) else None
        raise OSError(errno.EDQUOT, "refused", path)

    monkeypatch.setattr(os, name, refuse)
    with pytest.raises(OSError, match="refused") as caught:
        write_durably(tmp_path / "model.pt", lambda file: file.write(b"new"))
    assert caught.value.filename == str(tmp_path / "model.pt")
    assert names_in(tmp_path) == []


def test_a_read_only_disk_refuses_the_cleaning_too_and_the_target_is_named(tmp_path, monkeypatch):
    def refuse(*arguments, **options):
        raise OSError(errno.EROFS, "read-only", str(arguments[0]))

    monkeypatch.setattr(os, "unlink", refuse)
    monkeypatch.setattr(files, "_CandidFile", refuse)
    with pytest.raises(OSError, match="read-only") as caught:
        write_durably(tmp_path / "model.pt", lambda file: file.write(b"new"))
    assert caught.value.filename == str(tmp_path / "model.pt")


def test_a_pipe_is_never_replaced_by_a_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for name in ("pipe", "link"):
        with pytest.raises(OutputError, match=rf"a device or a pipe, no file \(.*{name}\)"):
            write_durably(tmp_path / name, lambda file: file.write(b"new"))
        assert stat.S_ISFIFO((tmp_path / name).stat().st_mode)


def test_only_the_temporary_files_of_dead_processes_are_swept(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    place = part_path_of(Path("x")).name.split(".")[2]
    stale = tmp_path / f".model.pt.{place}.{dead.pid}.gpt-part"
    kept = [
        part_path_of(Path("model.pt")).name,
        f".model.pt.{dead.pid}.part",  # another program's
        f".model.pt.0123abcd.{dead.pid}.gpt-part",  # another container's
        f"model.pt.{place}.{dead.pid}.gpt-part",
        "model.pt",
    ]
    for name in (stale.name, *kept):
        (tmp_path / name).touch()
    stale_folder = tmp_path / f".exported.{place}.{dead.pid}.gpt-part"
    stale_folder.mkdir()
    (stale_folder / "a file").touch()
    assert sorted(sweep_parts(tmp_path)) == [stale_folder, stale]
    assert names_in(tmp_path) == sorted(kept)
    assert sweep_parts(tmp_path) == []


def test_a_second_process_is_told_who_writes_and_a_dead_ones_lock_is_free(tmp_path):
    command = [sys.executable, "-c", HOLD_THE_FOLDER, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        try:
            with pytest.raises(FolderInUseError, match=f"process {holder.pid} on ") as caught:
                only_writer(tmp_path).__enter__()
            assert caught.value.exit_code == 2
        finally:
            holder.send_signal(signal.SIGKILL)
    for _ in range(2):
        with only_writer(tmp_path), pytest.raises(FolderInUseError, match=f"process {os.getpid()}"):
            only_writer(tmp_path).__enter__()


def test_a_dangling_link_in_the_locks_place_is_a_warning_and_stays(tmp_path, capsys):
    link = tmp_path / LOCK_NAME
    link.symlink_to("/nowhere/lock")
    with only_writer(tmp_path):
        assert "cannot be locked" in capsys.readouterr().err
    assert link.is_symlink()


@pytest.mark.parametrize("cause", ["ENOSYS", "ENOLCK", "EOPNOTSUPP"])
def test_a_disk_without_locks_is_a_warning_and_any_other_refusal_names_the_file(
    tmp_path, monkeypatch, capsys, cause
):
    fcntl = pytest.importorskip("fcntl")

    def refuse(*_):
        raise OSError(getattr(errno, cause), "refused")

    monkeypatch.setattr(fcntl, "flock", refuse)
    with exclusive(tmp_path / "lock"), only_writer(tmp_path):
        pass
    line = f"warning: a second run could write here too ({tmp_path / LOCK_NAME}): it cannot"
    assert capsys.readouterr().err.startswith(line)
    cause = "EIO"
    with pytest.raises(OSError, match="refused") as caught:
        only_writer(tmp_path).__enter__()
    assert caught.value.filename == str(tmp_path / LOCK_NAME)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="filelock for Python 3.10 empties the file")
def test_a_file_of_somebody_else_in_the_locks_place_keeps_its_content(tmp_path):
    (tmp_path / LOCK_NAME).write_text("a list of trains to lock\n")
    with only_writer(tmp_path), pytest.raises(FolderInUseError, match="process unknown"):
        only_writer(tmp_path).__enter__()
    assert (tmp_path / LOCK_NAME).read_text() == "a list of trains to lock\n"


def test_an_exclusive_lock_is_waited_for(tmp_path):
    has_entered = threading.Event()

    def enter() -> None:
        with exclusive(tmp_path / "lock"):
            has_entered.set()

    second = threading.Thread(target=enter)
    with exclusive(tmp_path / "lock"):
        second.start()
        assert not has_entered.wait(timeout=0.2)
    assert has_entered.wait(timeout=10)
    second.join()


def test_a_missing_output_folder_and_a_file_are_named_with_their_remedy(tmp_path):
    with pytest.raises(OutputError, match=r"missing .*no such\): mkdir -p '.*no such'$") as caught:
        check_writable(tmp_path / "no such")
    assert caught.value.exit_code == 6
    (tmp_path / "taken").touch()
    with pytest.raises(OutputError, match=r"is a file \(.*taken\): choose another folder"):
        check_writable(tmp_path / "taken")


def test_a_read_only_output_folder_is_refused(tmp_path, monkeypatch):
    check_writable(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)  # root may write
    with pytest.raises(OutputError, match="the output folder is read-only"):
        check_writable(tmp_path)
