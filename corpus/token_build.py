"""How a token cache is made: on all cores, and after a kill from where the last process came to."""

import hashlib
import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from corpus.known_files import KnownFiles, file_sha256
from corpus.pieces import in_batches
from corpus.sources import Sources
from corpus.split import hash_documents
from corpus.token_shards import (
    DOCUMENTS_NAME,
    FIRST_SEEN_NAME,
    HASH_TYPE,
    ID_TYPE,
    MANIFEST_NAME,
    NEVER,
    POSITION_TYPE,
    joined,
    sealed,
)
from corpus.token_workers import encoded
from system.errors import DataError, OutputError
from system.files import sync_file, write_durably
from system.machine import num_cores
from tokenizer import END_OF_TEXT_ID, TABLE_SHA256

VERSION = 4
PROGRESS_NAME = "batches.json"
MAX_SHARD_TOKENS = 1 << 30
BATCHES_PER_SYNC = 64  # some 16 MB of text, the most that a kill costs
FEW_BATCHES = 32  # are done before workers are ready; the size of an archive does not tell
MAX_WORKERS = 8  # the one reader has no text for more
BYTES_PER_TOKEN = 5  # of text: more than usual, so that no text is refused that fits
BLOCK_IDS = 1 << 20


def build(folder: Path, sources: Sources, text_sha256: str, known: KnownFiles) -> None:
    """Fills the folder with the tokens of the sources, from where an earlier process came to.

    The text up to there is read again, not tokenized again. DataError if the text is blank.
    """
    check_room(folder, sources.num_bytes)
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(".*.gpt-part"):  # what a killed process was about to write
        path.unlink()
    num_batches, num_tokens = read_progress(folder)
    batches = in_batches(sources.pieces())
    is_blank = True
    for batch in islice(batches, num_batches):
        is_blank = is_blank and not batch.text.strip()
    first = list(islice(batches, FEW_BATCHES + 1))
    num_workers = min(num_cores(), MAX_WORKERS) if len(first) > FEW_BATCHES else 0
    with ShardWriter(folder, num_tokens) as writer, progress_bar(sources) as bar:
        for batch, ids in encoded(chain(first, batches), num_workers):
            is_blank = is_blank and not batch.text.strip()
            writer.write(ids)
            num_batches += 1
            if num_batches % BATCHES_PER_SYNC == 0:
                writer.sync(num_batches)
            bar.update(sources.found["num_read"] - bar.n)
        writer.sync(num_batches)
    if is_blank:
        raise DataError(f"the text is empty or blank ({sources.paths[0]}): put some stories in it")
    files = seal_shards(folder)
    if known.sha256_of(sources.paths) != text_sha256:
        raise DataError(f"the text changed while it was read ({sources.paths[0]}): start again")
    content = {
        "version": VERSION,
        "tokenizer_sha256": TABLE_SHA256,
        "text_sha256": text_sha256,
        "num_tokens": writer.num_tokens,
        "found": sources.found,
        "files": files,
    }
    write_durably(folder / MANIFEST_NAME, lambda file: file.write(sealed(content)))


def check_room(folder: Path, num_bytes: int) -> None:
    """OutputError if the disk of the folder cannot hold the tokens of so much text."""
    needed = num_bytes // BYTES_PER_TOKEN * ID_TYPE.itemsize
    place = next(place for place in folder.absolute().parents if place.exists())
    there = sum(path.stat().st_size for path in folder.glob("*.ids"))
    if needed > (free := shutil.disk_usage(place).free) + there:
        raise OutputError(
            f"the disk is too small for the tokens ({place}: they take {needed / 1e6:,.0f} MB or "
            f"more, {free / 1e6:,.0f} MB are free): free some"
        )


def progress_bar(sources: Sources) -> tqdm:
    """Shows the bytes read of all, and the time left, once that is more than a moment."""
    shown = {"unit": "B", "unit_scale": True, "delay": 2, "disable": None, "leave": False}
    done = sources.found.get("num_read", 0)
    return tqdm(desc="tokenizing", total=sources.num_bytes, initial=done, **shown)


def read_progress(folder: Path) -> tuple[int, int]:
    """Batches and tokens that are safely in the folder."""
    try:
        num_batches, num_tokens = json.loads((folder / PROGRESS_NAME).read_bytes())
    except (FileNotFoundError, ValueError):
        return 0, 0
    return num_batches, num_tokens


class ShardWriter:
    """Appends ids to the shards in a folder that holds `num_tokens` of them for sure.

    What lies behind these is cut off: nobody knows how it ended.
    """

    def __init__(self, folder: Path, num_tokens: int) -> None:
        self.folder, self.num_tokens = folder, num_tokens
        for path in folder.glob("*.ids"):
            if int(path.stem) * MAX_SHARD_TOKENS >= num_tokens:
                path.unlink()
        self._open_shard()

    def _open_shard(self) -> None:
        number, num_tokens = divmod(self.num_tokens, MAX_SHARD_TOKENS)
        self._file = (self.folder / f"{number:05}.ids").open("ab", buffering=0)
        self._file.truncate(num_tokens * ID_TYPE.itemsize)

    def write(self, ids: np.ndarray) -> None:
        while len(ids):
            room = MAX_SHARD_TOKENS - self.num_tokens % MAX_SHARD_TOKENS
            self._file.write(ids[:room])
            self.num_tokens += len(ids[:room])
            if room <= len(ids):
                os.fsync(self._file.fileno())
                self._file.close()
                self._open_shard()
            ids = ids[room:]

    def sync(self, num_batches: int) -> None:
        """Makes sure of what was written: the ids of so many batches."""
        os.fsync(self._file.fileno())
        progress = json.dumps([num_batches, self.num_tokens]).encode()
        write_durably(self.folder / PROGRESS_NAME, lambda file: file.write(progress))

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def seal_shards(folder: Path) -> dict[str, str]:
    """Writes what readers look up, and returns the SHA-256 of each file of the cache by name."""
    first_seen = np.full(END_OF_TEXT_ID + 1, NEVER, POSITION_TYPE)
    hashes, start = {}, 0
    with ThreadPoolExecutor(1) as beside:  # as much work as the rest
        documents = beside.submit(write_document_hashes, folder)
        for path in sorted(folder.glob("*.ids")):
            hashes[path.name] = seal(path, first_seen, start)
            start += path.stat().st_size // ID_TYPE.itemsize
        documents.result()
    first_seen.tofile(folder / FIRST_SEEN_NAME)
    ends_names = [f"{Path(name).stem}.ends" for name in hashes]
    for name in [*ends_names, FIRST_SEEN_NAME, DOCUMENTS_NAME]:
        hashes[name] = file_sha256(folder / name)
    for name in hashes:
        sync_file(folder / name)
    return hashes


class UnmappedIds:
    """The ids in a file, a slice read at a time: mapped ones would stay in memory as they pass."""

    dtype = ID_TYPE

    def __init__(self, path: Path) -> None:
        self.path, self.num_ids = path, path.stat().st_size // ID_TYPE.itemsize

    def __len__(self) -> int:
        return self.num_ids

    def __getitem__(self, wanted: slice) -> np.ndarray:
        start, stop, _ = wanted.indices(self.num_ids)
        offset = start * ID_TYPE.itemsize
        return np.fromfile(self.path, ID_TYPE, max(0, stop - start), offset=offset)


def write_document_hashes(folder: Path) -> None:
    shards = joined([UnmappedIds(path) for path in sorted(folder.glob("*.ids"))])
    with (folder / DOCUMENTS_NAME).open("wb") as file:
        file.writelines(block.astype(HASH_TYPE) for block in hash_documents(shards))


def seal(path: Path, first_seen: np.ndarray, start: int) -> str:
    """Looks through a shard: its document ends go beside it, `first_seen` learns its new tokens.

    Returns the shard's SHA-256; `start` is its place among all tokens.
    """
    digest = hashlib.sha256()
    with path.open("rb") as shard, path.with_suffix(".ends").open("wb") as ends:
        at = 0
        while len(ids := np.fromfile(shard, ID_TYPE, BLOCK_IDS)):
            digest.update(ids)
            found = np.flatnonzero(ids == END_OF_TEXT_ID) + at + 1
            ends.write(found.astype(POSITION_TYPE))
            places = np.flatnonzero((first_seen == NEVER)[ids])
            tokens, index = np.unique(ids[places], return_index=True)
            first_seen[tokens] = start + at + places[index]
            at += len(ids)
    return digest.hexdigest()
