"""The tokens of a text, kept on disk and mapped from there."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
from filelock import Timeout

from corpus.known_files import KNOWN_NAME, KnownFiles
from corpus.sources import Sources
from corpus.token_build import VERSION, build
from corpus.token_shards import MANIFEST_NAME, Tokens, read_cache, read_manifest
from system.errors import DataError
from system.files import exclusive, part_path_of, sweep_parts, sync_folder
from system.process import note
from tokenizer import TABLE_SHA256

CACHE_NAME = re.compile(r"[0-9a-f]{32}(\.bin|\.building)?")  # .bin: of earlier versions
DIGEST_BYTES = hashlib.sha256().digest_size
FILE_NAME = re.compile(
    r"\d{5}\.(ids|ends)|(first_seen|documents)\.bin|(manifest|progress|batches)\.json|.+gpt-part"
)
NUM_KEPT = 3


def load_tokens(sources: Sources, *, cache_parents: Sequence[Path], num_texts: int = 1) -> Tokens:
    """The tokens of the sources, from or into `.tokens/<key>` in the first usable of the folders.

    The key is a hash of the content, of how it is read and of the tokenizer: no cache is stale. A
    finished one is found and mapped without reading text or tokens whole (see `KnownFiles`). It is
    one of `num_texts` of a run, none of which takes another one's place.
    """
    folders = [parent / ".tokens" for parent in cache_parents]
    known = KnownFiles(folder / KNOWN_NAME for folder in folders)
    text_sha256 = known.sha256_of(sources.paths)
    recipe = json.dumps([VERSION, TABLE_SHA256, text_sha256, sources.recipe()])
    name = hashlib.sha256(recipe.encode()).hexdigest()[:32]
    for folder in folders:
        if tokens := read_cache(folder / name, known):
            with suppress(OSError):  # of a folder that cannot be written
                os.utime(folder / name / MANIFEST_NAME)  # used now: `remove_old_caches` keeps it
                known.save(folder / KNOWN_NAME)
            return tokens
    for folder in folders[:-1]:
        with suppress(OSError):  # read-only, or full
            return _build_cache_at(folder / name, sources, text_sha256, known, num_texts)
    return _build_cache_at(folders[-1] / name, sources, text_sha256, known, num_texts)


def _build_cache_at(
    path: Path, sources: Sources, text_sha256: str, known: KnownFiles, num_texts: int
) -> Tokens:
    folder = path.parent
    folder.mkdir(parents=True, exist_ok=True)
    with _turn_in(folder) as is_alone:
        tokens = read_cache(path, known)  # built by another process while we waited?
        if tokens is None:
            sweep_parts(folder)
            building = path.with_suffix(".building") if is_alone else part_path_of(path)
            try:
                build(building, sources, text_sha256, known)
                shutil.rmtree(path, ignore_errors=True)  # a damaged one
                os.replace(building, path)
            except (OSError, DataError):  # no kill, after which it is continued
                shutil.rmtree(building, ignore_errors=True)
                raise
            sync_folder(folder)
            for name, sha256 in read_manifest(path)["files"].items():
                known.record(path / name, sha256)
            tokens = read_cache(path, known)
            remove_old_caches(folder, NUM_KEPT * num_texts)
        known.save(folder / KNOWN_NAME)
    if tokens is None:
        raise DataError(f"the token cache changed while written ({path}): start again")
    return tokens


@contextmanager
def _turn_in(folder: Path) -> Iterator[bool]:
    """Waits until no other process makes tokens in the folder, and says so.

    Yields whether nobody else can: some disks have no locks.
    """
    with ExitStack() as stack:
        try:
            is_alone = stack.enter_context(exclusive(folder / "lock", is_waiting=False))
        except Timeout:
            note(f"another process makes tokens ({folder}): waiting for it")
            is_alone = stack.enter_context(exclusive(folder / "lock"))
        yield is_alone


def remove_old_caches(folder: Path, num_kept: int) -> None:
    """Removes all but so many caches, those used last; only what is surely a cache of ours."""
    paths = [path for path in folder.iterdir() if CACHE_NAME.fullmatch(path.name)]
    for path in sorted(paths, key=_last_use)[:-num_kept]:
        files = files_of_cache(path)
        num_bytes = sum(file.stat().st_size for file in files)
        with suppress(OSError):  # Windows removes no file that is in use
            for file in files:
                file.unlink()
            if files and path.is_dir():
                path.rmdir()
        if not path.exists():
            note(f"removed the tokens of an earlier text ({path}, {num_bytes / 1e6:.1f} MB)")


def _last_use(path: Path) -> int:
    manifest = path / MANIFEST_NAME
    return (manifest if manifest.exists() else path).stat().st_mtime_ns


def files_of_cache(path: Path) -> list[Path]:
    """The files of a cache, finished or not; none if anything in it is not ours."""
    if path.is_file():  # of an earlier version: it ends with the digest of the rest
        raw = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.empty(0, np.uint8)
        digest = hashlib.sha256(raw[:-DIGEST_BYTES]).digest()
        return [path] if digest == raw[-DIGEST_BYTES:].tobytes() else []
    files = list(path.iterdir())
    is_ours = path.suffix == ".building" or read_manifest(path) is not None
    return files if is_ours and all(FILE_NAME.fullmatch(file.name) for file in files) else []
