"""A text in pieces of bounded size, cut where no token spans the cut."""

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import NamedTuple

from tokenizer import END_OF_TEXT

BATCH_CHARS = 1 << 19  # small texts together are four times as fast as one by one
MAX_PIECE_CHARS = 1 << 18  # a piece with a block more stays below tiktoken's limit: 999,998 spaces
SEARCHED_CHARS = 10_000
# GPT-2's pre-tokenizer never joins a word to the space after it, nor a letter to the sign or the
# digit after it. Both sets are small: no version of Unicode disagrees on them.
LETTERS = r"[A-Za-z\u0430-\u044f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3]"
SIGNS = r"[!-@\[-`{-~\u3001\u3002\uff01\uff0c\uff1f]"
SAFE_CUTS = [re.compile(r"(?<=\S)[ \n]"), re.compile(f"(?<={LETTERS}){SIGNS}")]


class Piece(NamedTuple):
    """Text of many documents or of a part of one; the ids of pieces join to the text's.

    Shapes: at most MAX_PIECE_CHARS and a block of characters.
    """

    text: str
    has_separators: bool = True  # END_OF_TEXT in it is token 50256, or else plain text

    @property
    def num_separators(self) -> int:
        return self.text.count(END_OF_TEXT) if self.has_separators else 0

    @property
    def is_ended(self) -> bool:
        """Whether its last document has its separator."""
        return self.has_separators and self.text.endswith(END_OF_TEXT)


def text_pieces(blocks: Iterable[str], *, has_separators: bool = True) -> Iterator[Piece]:
    """The pieces of a text that comes in blocks; of an empty one there is one, empty."""
    pending, is_empty = "", True
    for block in blocks:
        pending += block
        while cut := cut_of(pending, has_separators=has_separators):
            yield Piece(pending[:cut], has_separators)
            pending, is_empty = pending[cut:], False
    if pending or is_empty:
        yield Piece(pending, has_separators)


def document_pieces(documents: Iterable[str]) -> Iterator[Piece]:
    """Documents with a separator after each but the last; END_OF_TEXT in them is plain text."""
    held = None
    for document in chain(documents, [None]):
        if held is None:
            pass
        elif document is None or len(held) > BATCH_CHARS or END_OF_TEXT in held:
            starts = range(0, max(1, len(held)), BATCH_CHARS)
            blocks = (held[start : start + BATCH_CHARS] for start in starts)
            yield from text_pieces(blocks, has_separators=False)
            yield from [Piece(END_OF_TEXT)] * (document is not None)
        else:
            yield Piece(held + END_OF_TEXT)
        held = document


def in_batches(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same text in fewer pieces: small ones together."""
    texts, num_chars = [], 0
    for piece in pieces:
        if texts and not (piece.has_separators and num_chars + len(piece.text) <= BATCH_CHARS):
            yield Piece("".join(texts))
            texts, num_chars = [], 0
        if piece.has_separators:
            texts.append(piece.text)
            num_chars += len(piece.text)
        else:
            yield piece
    if texts:
        yield Piece("".join(texts))


def cut_of(text: str, *, has_separators: bool) -> int:
    """Where to cut a text that goes on: after the last separator, or 0 as long as it is short.

    A long one is cut at the last place where no token can span the cut. The last characters stay
    together, for they may be the beginning of a separator; a text without such a place is cut
    before them.
    """
    if has_separators and (last := text.rfind(END_OF_TEXT)) >= 0:
        return last + len(END_OF_TEXT)
    if len(text) <= MAX_PIECE_CHARS:
        return 0
    end = len(text) - len(END_OF_TEXT)
    for start in (max(0, end - SEARCHED_CHARS), 0):
        for pattern in SAFE_CUTS:
            if cut := max(
                (found.start() for found in pattern.finditer(text, start, end)), default=0
            ):
                return cut
    return end
