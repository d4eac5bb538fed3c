"""How a token cache is made: on all cores, and after a kill from where the last process came to."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

from corpus.known_files import KnownFiles
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
    sealed,
)
from corpus.token_workers import encoded
from system.errors import DataError, OutputError
from system.files import file_sha256, sync_file, write_durably
from system.machine import num_cores
from tokenizer import END_OF_TEXT_ID, TABLE_SHA256

VERSION = 4
PROGRESS_NAME = "batches.json"
MAX_SHARD_TOKENS = 1 << 30
BATCHES_PER_SYNC = 32  # some 16 MB of text, the most that a kill costs
FEW_BATCHES = 16  # are done before workers are ready; the size of an archive does not tell
MAX_WORKERS = 8  # the one reader has no text for more
BYTES_PER_TOKEN = 5  # of text: more than usual, so that no text is refused that fits
KEPT_BYTES = 1 << 24  # glibc keeps blocks as large as one that was freed, and so their pages
BLOCK_IDS = 1 << 15  # what is computed of them stays in the processor's cache


def build(folder: Path, sources: Sources, text_sha256: str, known: KnownFiles) -> None:
    """Fills the folder with the tokens of the sources, from where an earlier process came to.

    The text up to there is read again, not tokenized again. DataError if the text is blank.
    """
    check_room(folder, sources.num_bytes)
    np.empty(KEPT_BYTES, np.uint8)  # freed at once, see there
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(".*.gpt-part"):  # what a killed process was about to write
        path.unlink()
    num_batches, num_tokens = read_progress(folder)
    batches = in_batches(sources.pieces(scratch=folder))
    is_blank = True
    for batch in islice(batches, num_batches):
        is_blank = is_blank and not batch.text.strip()
    first = list(islice(batches, FEW_BATCHES + 1))
    num_workers = min(num_cores(), MAX_WORKERS) if len(first) > FEW_BATCHES else 0
    with progress_bar(sources) as bar:
        for batch, ids in encoded(chain(first, batches), num_workers):
            is_blank = is_blank and not batch.text.strip()
            num_tokens = append_ids(folder, ids, num_tokens=num_tokens)
            num_batches += 1
            if num_batches % BATCHES_PER_SYNC == 0:
                write_progress(folder, num_batches, num_tokens)
            bar.update(sources.found["num_read"] - bar.n)
    write_progress(folder, num_batches, num_tokens)
    if is_blank:
        raise DataError(f"the text is empty or blank ({sources.paths[0]}): put some stories in it")
    files = seal_shards(folder)
    if known.sha256_of(sources.paths) != text_sha256:
        raise DataError(f"the text changed while it was read ({sources.paths[0]}): start again")
    content = {
        "version": VERSION,
        "tokenizer_sha256": TABLE_SHA256,
        "text_sha256": text_sha256,
        "num_tokens": num_tokens,
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
    """Batches and tokens that are surely in the folder; ids behind these are cut off."""
    try:
        num_batches, num_tokens = json.loads((folder / PROGRESS_NAME).read_bytes())
    except (FileNotFoundError, ValueError):
        num_batches, num_tokens = 0, 0
    for path in folder.glob("*.ids"):
        num_sure = num_tokens - int(path.stem) * MAX_SHARD_TOKENS
        if num_sure > 0:
            os.truncate(path, min(num_sure, MAX_SHARD_TOKENS) * ID_TYPE.itemsize)
        else:
            path.unlink()
    return num_batches, num_tokens


def append_ids(folder: Path, ids: np.ndarray, *, num_tokens: int) -> int:
    """Writes ids behind the first `num_tokens`, and returns how many are in the shards now."""
    while len(ids):
        number, num_there = divmod(num_tokens, MAX_SHARD_TOKENS)
        part, ids = np.split(ids, [MAX_SHARD_TOKENS - num_there])
        with (folder / f"{number:05}.ids").open("ab") as shard:
            shard.write(part)
        num_tokens += len(part)
    return num_tokens


def write_progress(folder: Path, num_batches: int, num_tokens: int) -> None:
    """Makes sure of the ids of so many batches."""
    for path in sorted(folder.glob("*.ids"))[-2:]:  # no more were written to since the last time
        sync_file(path)
    progress = json.dumps([num_batches, num_tokens]).encode()
    write_durably(folder / PROGRESS_NAME, lambda file: file.write(progress))


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


def blocks_in(path: Path) -> Iterator[np.ndarray]:
    """The ids in a file, read and not mapped: mapped ones would stay in memory as they pass."""
    with path.open("rb") as file:
        while len(ids := np.fromfile(file, ID_TYPE, BLOCK_IDS)):
            yield ids


def write_document_hashes(folder: Path) -> None:
    blocks = chain.from_iterable(map(blocks_in, sorted(folder.glob("*.ids"))))
    with (folder / DOCUMENTS_NAME).open("wb") as file:
        file.writelines(hashes.astype(HASH_TYPE) for hashes in hash_documents(blocks))


def seal(path: Path, first_seen: np.ndarray, start: int) -> str:
    """Looks through a shard: its document ends go beside it, `first_seen` learns its new tokens.

    Returns the shard's SHA-256; `start` is its place among all tokens.
    """
    digest, at = hashlib.sha256(), 0
    with path.with_suffix(".ends").open("wb") as ends:
        for ids in blocks_in(path):
            digest.update(ids)
            found = np.flatnonzero(ids == END_OF_TEXT_ID) + at + 1
            ends.write(found.astype(POSITION_TYPE))
            places = np.flatnonzero((first_seen == NEVER)[ids])
            tokens, index = np.unique(ids[places], return_index=True)
            first_seen[tokens] = start + at + places[index]
            at += len(ids)
    return digest.hexdigest()
