"""How a file reaches the disk whole or not at all, and how a folder has one writer."""

import fcntl
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from system.errors import FolderInUseError, OutputError

LOCK_NAME = ".train.lock"
PART_NAME = re.compile(r"\..+\.(\d+)\.part")  # .<target>.<process id>.part


def as_path(path: str | Path) -> Path:
    """The path that a user means: `~` is the home folder wherever the path came from."""
    return Path(path).expanduser()


def check_writable(folder: Path) -> None:
    """OutputError unless files can be made in the folder."""
    if not folder.exists():
        raise OutputError(f"the output folder is missing ({folder}): mkdir -p {folder}")
    if not folder.is_dir():
        raise OutputError(f"the output folder is a file ({folder}): choose another output_dir")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"the output folder is read-only ({folder}): choose another output_dir")


def write_durably(
    path: Path,
    write: Callable[[BinaryIO], None],
    *,
    verify: Callable[[Path], None] = lambda path: None,
) -> None:
    """Puts what `write` produces at `path`: after a crash the old file is there or the new one.

    A temporary file beside the target is written, synced and renamed, then the folder is synced. On
    any error the target is untouched and the temporary file is gone. `verify` reads the temporary
    file back, while the disk is busy with the sync, and raises if it is not right.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part_path = part_path_of(path)
    raw = _CandidFile(part_path, "wb")
    try:
        with io.BufferedWriter(raw) as file:
            write(file)
            file.flush()
            with ThreadPoolExecutor(1) as beside:
                verdict = beside.submit(verify, part_path)
                os.fsync(file.fileno())
            verdict.result()
        os.replace(part_path, path)
    except BaseException as error:
        part_path.unlink(missing_ok=True)
        cause = raw.write_error
        if cause and isinstance(error, Exception):
            raise OSError(cause.errno, cause.strerror, str(path)) from error
        raise
    sync_folder(path.parent)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A folder to fill, which gets the name `path` when all that is in it is on the disk."""
    part_path = part_path_of(path)
    part_path.mkdir()
    try:
        yield part_path
        for file_path in part_path.iterdir():
            with file_path.open("rb") as file:
                os.fsync(file.fileno())
        sync_folder(part_path)
        os.replace(part_path, path)
    finally:
        shutil.rmtree(part_path, ignore_errors=True)
    sync_folder(path.parent)


def part_path_of(path: Path) -> Path:
    """Where this process prepares what will be at `path`; `sweep_parts` knows the name."""
    return path.with_name(f".{path.name}.{os.getpid()}.part")


class _CandidFile(io.FileIO):
    """Remembers why a write failed: torch.save turns a full disk into "unexpected pos 704"."""

    write_error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return os.write(self.fileno(), data)
        except OSError as error:
            self.write_error = error
            raise


def sync_folder(folder: Path) -> None:
    """Makes renames and deletions in the folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep_parts(folder: Path) -> list[Path]:
    """The temporary files and folders in `folder` whose process is gone; they are deleted."""
    found = [(path, PART_NAME.fullmatch(path.name)) for path in folder.iterdir()]
    stale = [path for path, match in found if match and not _is_running(int(match[1]))]
    for path in stale:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
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
