"""How a file reaches the disk whole or not at all, and how a folder has one writer."""

import errno
import hashlib
import io
import os
import platform
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO

import psutil
from filelock import FileLock, SoftFileLock, Timeout

from system.errors import ConfigError, FolderInUseError, OutputError
from system.process import warn

BLOCK_BYTES = 1 << 20  # read at once
LOCK_NAME = ".train.lock"
OWNER = re.compile(r"[0-9]*( on [^\n]*)?\n?")  # what a lock file says after its first byte
PART_NAME = re.compile(r"\..+\.([0-9a-f]{8})\.([0-9]+)\.gpt-part")  # see `part_path_of`
UNSUPPORTED = {errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
NO_LOCKS = UNSUPPORTED | {errno.ENOLCK, errno.ELOOP}  # ELOOP: a link in the lock's place
NO_FOLDER_SYNC = UNSUPPORTED | {errno.EINVAL, errno.EBADF, errno.EACCES, errno.EPERM}


def as_path(path: str | Path) -> Path:
    """The path that a user means: `~` is the home folder wherever the path came from."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"nobody's home folder ({path}): write the path in full") from error


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Inside, the error of a refused system call names the file that the user knows."""
    try:
        yield
    except OSError as error:
        is_named = error.filename and not PART_NAME.fullmatch(Path(str(error.filename)).name)
        if is_named or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def check_writable(folder: str | Path) -> None:
    """OutputError unless files can be made in the folder."""
    folder, remedy = as_path(folder), "choose another folder"
    if not folder.exists():
        fault, remedy = "missing", f"mkdir -p {shlex.quote(str(folder))}"
    elif not folder.is_dir():
        fault = "a file"
    elif not os.access(folder, os.W_OK | os.X_OK):
        fault = "read-only"
    else:
        return
    raise OutputError(f"the output folder is {fault} ({folder}): {remedy}")


def make_folder(folder: str | Path) -> None:
    """Makes the folder where it is missing; OutputError unless files can be made in it."""
    with suppress(FileExistsError):  # a file: the check says so
        as_path(folder).mkdir(parents=True, exist_ok=True)
    check_writable(folder)


@contextmanager
def _in_place_of(path: Path) -> Iterator[Path]:
    """Where to prepare what gets the name `path` in the end; after an error nothing is left."""
    part_path = part_path_of(path)
    try:
        with named(path):
            yield part_path
            os.replace(part_path, path)
    except BaseException:
        with suppress(OSError):  # a read-only disk refuses that as well: the cause is the other one
            remove(part_path)
        raise
    sync_folder(path.parent)


def write_durably(
    path: str | Path,
    write: Callable[[BinaryIO], None],
    *,
    verify: Callable[[Path], None] = lambda path: None,
) -> None:
    """Puts what `write` produces at `path`: after a crash the old file is there or the new one.

    A temporary file beside the target is written, synced and renamed, then the folder is synced. On
    any error the target is untouched and the temporary file is gone. `verify` reads the temporary
    file back, while the disk is busy with the sync, and raises if it is not right.
    """
    path = as_path(path)
    if path.exists() and not (path.is_file() or path.is_dir()):  # a rename would put an end to it
        raise OutputError(f"a device or a pipe, no file ({path}): choose another name")
    path.parent.mkdir(parents=True, exist_ok=True)
    with _in_place_of(path) as part_path:
        raw = _CandidFile(part_path, "wb")
        try:
            with io.BufferedWriter(raw) as file, ThreadPoolExecutor(1) as beside:
                write(file)
                file.flush()
                verdict = beside.submit(verify, part_path)
                os.fsync(file.fileno())
            verdict.result()
        except RuntimeError as error:
            raise raw.write_error or error from None


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill, which gets the name `path` when all that is in it is on the disk."""
    with _in_place_of(as_path(path)) as part_path:
        part_path.mkdir()
        yield part_path
        for file_path in part_path.iterdir():
            sync_file(file_path)
        sync_folder(part_path)


def part_path_of(path: Path) -> Path:
    """Where this process prepares what will be at `path`; `sweep_parts` knows the name."""
    return path.with_name(f".{path.name}.{_this_place()}.{os.getpid()}.gpt-part")


@cache
def _this_place() -> str:
    """Names where this process has its number: each machine, and each container, counts anew."""
    namespace = Path("/proc/self/ns/pid")
    counted_in = os.readlink(namespace) if namespace.is_symlink() else ""
    return hashlib.sha256(f"{platform.node()} {counted_in}".encode()).hexdigest()[:8]


class _CandidFile(io.FileIO):
    """Remembers why a write failed: torch.save turns a full disk into "unexpected pos 704"."""

    write_error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return os.write(self.fileno(), data)
        except OSError as error:
            self.write_error = error
            raise


def stamp_of(file: Path | int) -> list[int]:
    """[size, mtime, ctime (ns), inode]: an edit changes one of them, unless within a tick."""
    status = os.stat(file)
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def file_sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while block := file.read(BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sync_file(path: Path) -> None:
    with path.open("r+b") as file:  # Windows syncs no file that is only read
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Makes renames and deletions in the folder survive a power cut, where the disk can do that."""
    if not hasattr(os, "O_DIRECTORY"):  # Windows opens no folders
        return
    try:
        with named(folder):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:
            raise


def sweep_parts(folder: str | Path) -> list[Path]:
    """The temporary files and folders in `folder` whose process is gone; they are deleted.

    What another machine or container left stays: nobody here can tell whether it is in use.
    """
    found = [(path, PART_NAME.fullmatch(path.name)) for path in as_path(folder).iterdir()]
    ours = [(path, int(match[2])) for path, match in found if match and match[1] == _this_place()]
    stale = [path for path, process_id in ours if not psutil.pid_exists(process_id)]
    for path in stale:
        remove(path)
    return stale


def remove(path: Path) -> None:
    """Removes a file or a folder that may be there; a folder loses its name before its files."""
    if path.is_dir():
        if not PART_NAME.fullmatch(path.name):
            path = path.rename(part_path_of(path))
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def exclusive(lock_path: str | Path, *, is_waiting: bool = True) -> Iterator[bool]:
    """Waits for the lock and holds it; the system frees it when this process ends, however.

    Without waiting, filelock's Timeout says that another one holds it. Yields whether the lock is
    held: a disk without locks lets everybody in.
    """
    path, is_held = as_path(lock_path), True
    lock = FileLock(path, preserve_lock_file=FileLock is not SoftFileLock)  # it may not be ours
    try:
        with named(path):
            lock.acquire(blocking=is_waiting)
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        is_held = False
    try:
        yield is_held
    finally:
        lock.release()


@contextmanager
def only_writer(folder: str | Path) -> Iterator[None]:
    """Holds the folder for this process; FolderInUseError names the one that holds it already."""
    lock_path = as_path(folder) / LOCK_NAME
    with ExitStack() as stack:
        try:
            is_held = stack.enter_context(exclusive(lock_path, is_waiting=False))
        except Timeout as error:
            raise FolderInUseError(
                f"another run writes here ({folder}, process {_owner_in(lock_path) or 'unknown'}): "
                "wait for it, stop it, or choose another output_dir"
            ) from error
        if not is_held:
            warn(f"a second run could write here too ({lock_path}): it cannot be locked")
        elif _owner_in(lock_path) is not None:
            with named(lock_path), lock_path.open("r+b") as file:
                file.truncate(1)
                file.seek(1)
                file.write(f"{os.getpid()} on {platform.node()}\n".encode())
        yield


def _owner_in(lock_path: Path) -> str | None:
    """Who holds the lock or held it last; None if the file says something that is not ours."""
    with named(lock_path), lock_path.open("rb") as file:
        file.seek(1)  # Windows locks the first byte
        said = file.read().decode("utf-8", "replace")
    return said.strip() if OWNER.fullmatch(said) else None
