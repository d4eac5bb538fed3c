"""A finished token cache as it lies on the disk: shards of ids, document ends, and a manifest."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property, reduce
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from corpus.known_files import KnownFiles
from corpus.split import Row, Runs, SplicedIds
from tokenizer import END_OF_TEXT_ID

MANIFEST_NAME = "manifest.json"
ID_TYPE, POSITION_TYPE, HASH_TYPE = np.dtype("<u2"), np.dtype("<i8"), np.dtype("<u8")
FIRST_SEEN_NAME = "first_seen.bin"
DOCUMENTS_NAME = "documents.bin"
NEVER = np.iinfo(POSITION_TYPE).max  # the first position of a token that does not occur


def joined(shards: Sequence[np.ndarray]) -> Row:
    """The shards as one row of ids: a single one is itself."""
    return shards[0] if len(shards) == 1 else SplicedIds([*map(Runs.all_of, shards)])


@dataclass(frozen=True)
class Tokens:
    """The ids of a whole text, mapped from disk, and what was found when they were made."""

    ids: Row  # (N,) uint16, read-only
    text_sha256: str
    found: dict[str, Any]  # plain counts: documents, replaced, ...
    first_seen: np.ndarray  # (V,) int64: where each token occurs first, NEVER if it does not
    shard_ends: list[np.ndarray]  # of each shard, int64: positions in it after a separator
    document_hashes: np.ndarray  # (D + 1,) uint64, the last of what no separator ends

    @cached_property
    def document_ends(self) -> np.ndarray:
        """Positions after a separator, in order, (D,) int64: documents start there."""
        sizes = [len(shard) for shard in getattr(self.ids, "rows", [self.ids])]
        starts = accumulate(sizes[:-1], initial=0)
        ends = [ends + start for ends, start in zip(self.shard_ends, starts, strict=True)]
        return np.concatenate(ends)

    def used_before(self, stop: int) -> np.ndarray:
        """The tokens that occur in ids[:stop], in rising order; no id is read for it."""
        return np.flatnonzero(self.first_seen < stop)


def chained(texts: Sequence[Tokens]) -> Tokens:
    """Texts one after the other as one, with a separator where a text does not end with one."""
    shards, ends, hashes, at = [], [], [], 0
    first_seen = np.full_like(texts[0].first_seen, NEVER)
    for text in texts:
        if shards and shards[-1][-1] != END_OF_TEXT_ID:
            shards.append(np.array([END_OF_TEXT_ID], ID_TYPE))
            ends.append(np.array([1], POSITION_TYPE))
            first_seen[END_OF_TEXT_ID] = min(first_seen[END_OF_TEXT_ID], at)
            at += 1
        elif hashes:
            hashes[-1] = hashes[-1][:-1]  # nothing follows the last separator
        is_seen = text.first_seen != NEVER
        first_seen[is_seen] = np.minimum(first_seen, text.first_seen + at)[is_seen]
        shards += getattr(text.ids, "rows", [text.ids])
        ends += text.shard_ends
        hashes.append(text.document_hashes)
        at += len(text.ids)
    names = "\n".join(text.text_sha256 for text in texts)
    return replace(
        texts[0],
        ids=joined(shards),
        text_sha256=hashlib.sha256(names.encode()).hexdigest(),
        found=reduce(added, (text.found for text in texts)),
        first_seen=first_seen,
        shard_ends=ends,
        document_hashes=np.concatenate(hashes),
    )


def added(found: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    """What was found in two texts: counts are added, lists joined."""
    sums = {
        key: added(found[key], value) if isinstance(value, dict) else found[key] + value
        for key, value in other.items()
        if key in found
    }
    return {**found, **other, **sums}


def read_cache(folder: Path, known: KnownFiles) -> Tokens | None:
    """The tokens of a finished cache; None where one is missing, torn or damaged.

    A file is read whole only if it is not known by its size, times and inode.
    """
    manifest = read_manifest(folder)
    try:
        hashes = {
            name: known.sha256(folder / name) for name in (manifest or {"files": ""})["files"]
        }
    except OSError:
        return None
    if not hashes or hashes != manifest["files"]:
        return None
    paths = [folder / name for name in manifest["files"] if name.endswith(".ids")]
    shards = [mapped(path, ID_TYPE) for path in paths]
    ends = [mapped(path.with_suffix(".ends"), POSITION_TYPE) for path in paths]
    first_seen = np.fromfile(folder / FIRST_SEEN_NAME, dtype=POSITION_TYPE)
    documents = mapped(folder / DOCUMENTS_NAME, HASH_TYPE)
    text_sha256, found = manifest["text_sha256"], manifest["found"]
    return Tokens(joined(shards), text_sha256, found, first_seen, ends, documents)


def mapped(path: Path, dtype: np.dtype) -> np.ndarray:
    """The file's numbers, mapped; an empty file has none, and no system maps it."""
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


def sealed(content: dict[str, Any]) -> bytes:
    """A manifest's bytes: the content as JSON, and after it a line with the SHA-256 of that."""
    text = json.dumps(content, indent=1, sort_keys=True).encode()
    return text + b"\n" + hashlib.sha256(text).hexdigest().encode() + b"\n"


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What a cache says of itself; None unless it is whole and of our making."""
    try:
        raw = (folder / MANIFEST_NAME).read_bytes()
        content = json.loads(raw[: raw.rindex(b"}") + 1])
    except (OSError, ValueError):
        return None
    return content if sealed(content) == raw else None
