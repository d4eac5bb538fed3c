"""How a file reaches the disk whole or not at all, and how a folder has one writer."""

import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

LOCK_NAME = ".train.lock"
PART_NAME = re.compile(r"\..+\.(\d+)\.part")  # .<target>.<process id>.part


class OutputError(OSError):
    """A folder that cannot be written."""

    exit_code = 6


class FolderInUseError(RuntimeError):
    """Another process trains in this folder."""

    exit_code = 2


def check_writable(folder: Path) -> None:
    """OutputError unless files can be made in the folder."""
    if not folder.exists():
        raise OutputError(f"the output folder is missing ({folder}): mkdir -p {folder}")
    if not folder.is_dir():
        raise OutputError(f"the output folder is a file ({folder}): choose another output_dir")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"the output folder is read-only ({folder}): choose another output_dir")


def write_durably(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Puts what `write` produces at `path`: after a crash the old file is there or the new one.

    A temporary file beside the target is written, synced and renamed, then the folder is synced. On
    any error the target is untouched and the temporary file is gone.
    """
    part_path = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part_path.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        part_path.replace(path)
    except BaseException:
        part_path.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames and deletions in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_parts(folder: Path) -> list[Path]:
    """The temporary files in `folder` whose process is gone; they are deleted."""
    found = [(path, PART_NAME.fullmatch(path.name)) for path in folder.iterdir()]
    stale = [path for path, match in found if match and not _is_running(int(match[1]))]
    for path in stale:
        path.unlink(missing_ok=True)
    return stale


def _is_running(process_id: int) -> bool:
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@contextmanager
def exclusive(lock_path: Path) -> Iterator[None]:
    """Waits for the lock and holds it; the kernel frees it when this process ends, however."""
    with lock_path.open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Holds the folder for this process; FolderInUseError names the one that holds it already."""
    with (folder / LOCK_NAME).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            owner = lock.read().strip() or "unknown"
            raise FolderInUseError(
                f"another run writes here ({folder}, process {owner}): "
                "wait for it, stop it, or choose another output_dir"
            ) from error
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
