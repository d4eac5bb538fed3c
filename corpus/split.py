"""Which part of a text is for training and which for validation: whole documents, none in both.

A document ends with its separator. It is known by a hash of its ids, blank ones left out: a story
is the same wherever it stands in a file.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tokenizer import END_OF_TEXT_ID

ALL_IDS = np.arange(1 << 16, dtype=np.uint64)
IS_BLANK = np.isin(ALL_IDS, (197, 198, 199, 200, 201, 220, 628))  # \t \n \v \f \r, space, \n\n
BLANK = 0  # the hash of a document without a word, which is no copy of another
BY_PLACE, MIX, HALF = np.uint64(0xD1B54A32D192ED03), np.uint64(0xBF58476D1CE4E5B9), np.uint64(32)
OF_ID = (ALL_IDS + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
Row = np.ndarray | Sequence[int]  # of ids: an array, or what is sliced like one


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

    @property
    def rest(self) -> "Runs":
        """What the part leaves of its row."""
        return Runs.of(self.row, np.append(0, self.stops), np.append(self.starts, len(self.row)))


class SplicedIds:
    """Runs of ids as one row: it has a length, and slices that are arrays.

    A slice is a copy only where it crosses the border of two runs.
    """

    ndim, dtype = 1, np.dtype(np.uint16)

    def __init__(self, parts: Sequence[Runs]) -> None:
        self.rows = [part.row for part in parts]
        self.row_of_run = np.repeat(np.arange(len(parts)), [len(part.stops) for part in parts])
        none = np.empty(0, np.int64)
        self.stops = np.concatenate([none, *(part.stops for part in parts)])
        starts = np.concatenate([none, *(part.starts for part in parts)])
        self.ends = np.cumsum(self.stops - starts)  # of the runs, in this row

    @classmethod
    def of_texts(cls, parts: Sequence[Runs]) -> "SplicedIds":
        """The same with a separator between two texts, where the first does not end with one."""
        separator = Runs.all_of(np.array([END_OF_TEXT_ID], cls.dtype))
        joined: list[Runs] = []
        for part in filter(len, parts):
            last = int(joined[-1].stops[-1]) if joined else 0
            if joined and joined[-1].row[last - 1 : last] != END_OF_TEXT_ID:
                joined.append(separator)
            joined.append(part)
        return cls(joined)

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
        return (found[1] if len(found) == 2 else np.concatenate(found))[::step]


def split(texts: Sequence[Documents], val_fraction: float, *, seq_len: int) -> list[Runs]:
    """Each text's part to train on, all but its share of the validation part.

    The validation part is the end of the text, from the nearest end of a document; where that would
    change the part by more than half, a document is split. All copies of a document count where the
    first one stands, and are treated alike.
    """
    hashes = np.concatenate([text.hashes for text in texts])
    hashes = np.where(hashes == BLANK, np.arange(len(hashes), dtype=np.uint64), hashes)
    lengths = np.concatenate([text.lengths for text in texts])
    together = np.argsort(hashes, kind="stable")
    groups = np.flatnonzero(np.diff(hashes[together], prepend=~hashes[together[:1]]))
    firsts, num_copies = together[groups], np.diff(np.append(groups, len(together)))
    sizes = np.zeros_like(lengths)  # tokens of all the copies, where the first one stands
    sizes[firsts] = np.add.reduceat(lengths[together], groups)
    trained = []
    for part in np.split(sizes, np.cumsum([len(text.starts) for text in texts[:-1]], dtype=int)):
        ends = np.cumsum(part)
        cut = cut_of(ends, val_fraction, seq_len=seq_len)
        trained.append(np.clip(cut - ends + part, 0, part))
    of_all = np.concatenate(trained)[firsts]
    of_each = np.where(of_all == sizes[firsts], of_all, of_all // num_copies)
    of_document = np.empty_like(lengths)
    of_document[together] = np.repeat(of_each, num_copies)
    return first_tokens(texts, np.minimum(of_document, lengths))


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
    hashes = np.concatenate([text.hashes for text in texts])
    lengths = np.concatenate([text.lengths for text in texts])
    return first_tokens(texts, np.where(np.isin(hashes, theirs[theirs != BLANK]), 0, lengths))


def first_tokens(texts: Sequence[Documents], counts: np.ndarray) -> list[Runs]:
    """Of each text so many tokens of each document."""
    parts = []
    for text in texts:
        of_text, counts = np.split(counts, [len(text.starts)])
        parts.append(Runs.of(text.ids, text.starts, text.starts + of_text))
    return parts


def as_bounds(parts: Sequence[Runs]) -> np.ndarray:
    """The runs' starts and stops, (2, R), as if the rows stood one after the other."""
    before = np.cumsum([0, *(len(part.row) for part in parts)])
    bounds = [np.stack([part.starts, part.stops]) for part in parts]
    return np.concatenate([of + at for of, at in zip(bounds, before, strict=False)], axis=1)


def from_bounds(bounds: np.ndarray, rows: Sequence[Row]) -> list[Runs]:
    """The runs of each row: the inverse of `as_bounds`."""
    before = np.cumsum([0, *map(len, rows)])
    of_rows = np.split(bounds, np.searchsorted(bounds[0], before[1:-1]), axis=1)
    return [Runs(row, *(of - at)) for row, of, at in zip(rows, of_rows, before, strict=False)]


def hash_documents(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """For each block of ids the hashes of the documents that end in it, (D,) uint64.

    At last comes that of what no separator ends.
    """
    rest, num_before = np.zeros(1, np.uint64), 0  # of the document that goes on: hash, ids
    for block in blocks:
        block = block[~IS_BLANK[block]]
        ends = np.flatnonzero(block == END_OF_TEXT_ID)
        firsts = np.concatenate([[-num_before], ends + 1])
        sizes = np.diff(np.concatenate([[0], ends + 1, [len(block)]]))
        mixed = np.arange(len(block), dtype=np.uint64)
        mixed -= np.repeat(firsts.astype(np.uint64), sizes)  # the place in the document
        mixed *= BY_PLACE
        mixed += OF_ID[block]
        mixed ^= mixed >> HALF
        mixed *= MIX
        mixed ^= mixed >> HALF
        mixed[ends] = 0
        sums = np.concatenate([rest, mixed]).cumsum()  # wraps around, as hashes may
        hashes = np.diff(sums[np.append(ends + 1, len(block))], prepend=np.uint64(0))
        rest, num_before = hashes[-1:], len(block) - int(firsts[-1])
        yield hashes[:-1]
    yield rest
