"""Which part of a text is for training and which for validation: whole documents, none in both.

A document ends with its separator. It is known by a hash of its ids, blank ones left out: a story
is the same wherever it stands in a file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from tokenizer import END_OF_TEXT_ID

BLOCK_IDS = 1 << 16
ALL_IDS = np.arange(1 << 16, dtype=np.uint64)
IS_BLANK = np.isin(ALL_IDS, (197, 198, 199, 200, 201, 220, 628))  # \t \n \v \f \r, space, \n\n
BLANK = 0  # the hash of a document without a word, which is no copy of another
BY_PLACE, MIX, HALF = np.uint64(0xD1B54A32D192ED03), np.uint64(0xBF58476D1CE4E5B9), np.uint64(32)
OF_ID = (ALL_IDS + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)


class Row(Protocol):
    """Ids in a row, such as an array or the shards of a cache: a slice of it is an array."""

    def __len__(self) -> int: ...
    def __getitem__(self, wanted: slice) -> np.ndarray: ...


@dataclass(frozen=True, eq=False)
class Documents:
    """A text's ids, and each document's first one, the one after its last, and its hash, (D,)."""

    ids: Row
    starts: np.ndarray
    stops: np.ndarray
    hashes: np.ndarray

    @classmethod
    def of(cls, ids: Row, ends: np.ndarray, hashes: np.ndarray | None = None) -> "Documents":
        """Documents with these ends; without hashes none is the same as another."""
        rest = [len(ids)] if len(ids) > (ends[-1] if len(ends) else 0) else []
        bounds = np.concatenate([[0], ends, rest]).astype(np.int64)
        if hashes is None:
            hashes = np.full(len(bounds), BLANK, np.uint64)
        return cls(ids, bounds[:-1], bounds[1:], hashes[: len(bounds) - 1])

    @property
    def lengths(self) -> np.ndarray:
        return self.stops - self.starts


@dataclass(frozen=True, eq=False)
class Runs:
    """A part of a row: its ids from each start up to the stop, (R,), in rising order."""

    row: Row
    starts: np.ndarray
    stops: np.ndarray

    @classmethod
    def of(cls, row: Row, starts: np.ndarray, stops: np.ndarray) -> "Runs":
        """The same with as few runs as can be: of([0, 3, 5], [3, 5, 5]) is 0 to 5."""
        has_ids = stops > starts
        starts, stops = starts[has_ids], stops[has_ids]
        is_apart = starts[1:] != stops[:-1]
        return cls(
            row,
            starts[np.append(True, is_apart)[: len(starts)]],
            stops[np.append(is_apart, True)[: len(stops)]],
        )

    @classmethod
    def all_of(cls, row: Row) -> "Runs":
        return cls.of(row, np.zeros(1, np.int64), np.full(1, len(row)))

    def __len__(self) -> int:
        return int((self.stops - self.starts).sum())


class SplicedIds:
    """Runs of ids as one row, a separator between two texts; a slice of it is an array."""

    ndim, dtype = 1, np.dtype(np.uint16)

    def __init__(self, parts: Sequence[Runs]) -> None:
        separator = Runs(np.array([END_OF_TEXT_ID], self.dtype), np.array([0]), np.array([1]))
        joined: list[Runs] = []
        for part in filter(len, parts):
            last = int(joined[-1].stops[-1]) if joined else 0
            if joined and joined[-1].row[last - 1 : last] != END_OF_TEXT_ID:
                joined.append(separator)
            joined.append(part)
        self.rows = [part.row for part in joined]
        self.row_of_run = np.repeat(np.arange(len(joined)), [len(part.stops) for part in joined])
        none = np.empty(0, np.int64)
        self.stops = np.concatenate([none, *(part.stops for part in joined)])
        starts = np.concatenate([none, *(part.starts for part in joined)])
        self.ends = np.cumsum(self.stops - starts)  # of the runs, in this row

    def __len__(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def __getitem__(self, wanted: slice) -> np.ndarray:
        at, stop, step = wanted.indices(len(self))
        found = [np.empty(0, self.dtype)]
        run = int(np.searchsorted(self.ends, at, side="right"))
        while at < stop:
            ahead = int(self.stops[run] - self.ends[run])  # of the place in this row
            upto = min(stop, int(self.ends[run]))
            found.append(self.rows[self.row_of_run[run]][at + ahead : upto + ahead])
            at, run = upto, run + 1
        return np.concatenate(found)[::step]


def split(
    texts: Sequence[Documents], val_fraction: float, *, seq_len: int
) -> list[tuple[Runs, Runs]]:
    """Each text's part to train on and part to validate on; of each text its share.

    The validation part is the end of the text, from the nearest end of a document; where that would
    change the part by more than half, a document is split. All copies of a document count where the
    first one stands, and are treated alike.
    """
    hashes = np.concatenate([text.hashes for text in texts])
    hashes = np.where(hashes == BLANK, np.arange(len(hashes), dtype=np.uint64), hashes)
    lengths = np.concatenate([text.lengths for text in texts])
    together = np.argsort(hashes)
    is_other = np.diff(hashes[together], prepend=~hashes[together[:1]]) != 0
    groups = np.flatnonzero(is_other)  # where the copies of each document begin in `together`
    home = np.minimum.reduceat(together, groups)
    sizes = np.add.reduceat(lengths[together], groups)  # of all the copies
    trained = np.zeros_like(sizes)  # tokens of these
    by_home = np.argsort(home)
    first_documents = np.cumsum([len(text.starts) for text in texts[:-1]], dtype=np.int64)
    for members in np.split(by_home, np.searchsorted(home[by_home], first_documents)):
        ends = np.cumsum(sizes[members])
        cut = cut_of(ends, val_fraction, seq_len=seq_len)
        trained[members] = np.clip(cut - ends + sizes[members], 0, sizes[members])
    num_copies = np.diff(np.append(groups, len(together)))
    of_each = np.where(trained == sizes, sizes, trained // num_copies)
    of_document = np.empty_like(lengths)
    of_document[together] = np.repeat(of_each, num_copies)
    return parted(texts, np.minimum(of_document, lengths))


def cut_of(ends: np.ndarray, val_fraction: float, *, seq_len: int) -> int:
    """How many tokens to train on in a text whose documents have these ends.

    A text that is too short for a window and a prediction is not cut.
    """
    num_tokens = int(ends[-1]) if len(ends) else 0
    first, last = seq_len + 1, num_tokens - 2  # a window to train on, a prediction to validate
    if first > last:
        return num_tokens
    wanted = num_tokens - round(num_tokens * val_fraction)
    slack = int(num_tokens * val_fraction / 2)
    near = ends[(ends >= max(first, wanted - slack)) & (ends <= min(last, wanted + slack))]
    nearest = near[np.abs(near - wanted).argmin()] if len(near) else wanted
    return int(np.clip(nearest, first, last))


def apart_from(texts: Sequence[Documents], val_texts: Sequence[Documents]) -> list[Runs]:
    """Each text without the documents of the validation texts."""
    theirs = np.concatenate([text.hashes for text in val_texts])
    is_theirs = [np.isin(text.hashes, theirs[theirs != BLANK]) for text in texts]
    lengths = np.concatenate([text.lengths for text in texts])
    parts = parted(texts, np.where(np.concatenate(is_theirs), 0, lengths))
    return [train for train, _ in parts]


def parted(texts: Sequence[Documents], trained: np.ndarray) -> list[tuple[Runs, Runs]]:
    """Each text's parts, by how many tokens of each document are for training."""
    parts = []
    for text in texts:
        cuts = text.starts + trained[: len(text.starts)]
        trained = trained[len(text.starts) :]
        parts.append((Runs.of(text.ids, text.starts, cuts), Runs.of(text.ids, cuts, text.stops)))
    return parts


class DocumentHasher:
    """Hashes of the documents in a row of ids that comes in blocks, 8 bytes for each document."""

    def __init__(self) -> None:
        self.rest = np.zeros(1, np.uint64)  # the hash of what comes after the last separator
        self.num_ids = 0  # of that

    def add(self, block: np.ndarray) -> np.ndarray:
        """Hashes of the documents that end in the block, (D,) uint64."""
        ids = block[~IS_BLANK[block]]
        ends = np.flatnonzero(ids == END_OF_TEXT_ID)
        firsts = np.concatenate([[-self.num_ids], ends + 1])
        sizes = np.diff(np.concatenate([[0], ends + 1, [len(ids)]]))
        mixed = np.arange(len(ids), dtype=np.uint64)
        mixed -= np.repeat(firsts.astype(np.uint64), sizes)
        mixed *= BY_PLACE
        mixed += OF_ID[ids]
        mixed ^= mixed >> HALF
        mixed *= MIX
        mixed ^= mixed >> HALF
        mixed[ends] = 0
        sums = np.concatenate([self.rest, mixed]).cumsum()  # wraps around, as hashes may
        hashes = np.diff(sums[np.append(ends + 1, len(ids))], prepend=np.uint64(0))
        self.rest, self.num_ids = hashes[-1:], len(ids) - int(firsts[-1])
        return hashes[:-1]


def hash_documents(ids: Row) -> Iterator[np.ndarray]:
    """In blocks the hash of each document, at last that of what follows the last separator."""
    hasher = DocumentHasher()
    for start in range(0, len(ids), BLOCK_IDS):
        yield hasher.add(ids[start : start + BLOCK_IDS])
    yield hasher.rest
