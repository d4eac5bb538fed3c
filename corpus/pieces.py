"""A text in pieces of bounded size, cut where no token spans the cut."""

import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from tokenizer import END_OF_TEXT

MAX_PIECE_CHARS = 1 << 19  # a piece with a block more stays below tiktoken's limit: 999,998 spaces
SEARCHED_CHARS = 10_000
# GPT-2's pre-tokenizer never joins a word to the space after it, nor a letter to the sign or the
# digit after it. Both sets are small: no version of Unicode disagrees on them.
LETTERS = r"[A-Za-z\u0430-\u044f\u3041-\u3096\u30a1-\u30fa\u4e00-\u9fa5\uac00-\ud7a3]"
SIGNS = r"[!-@\[-`{-~\u3001\u3002\uff01\uff0c\uff1f]"
SAFE_CUTS = [re.compile(r"(?<=\S)[ \n]"), re.compile(f"(?<={LETTERS}){SIGNS}")]


class Piece(NamedTuple):
    """Ordinary text, in which `<|endoftext|>` means nothing; the ids of pieces join to the text's.

    Shapes: at most MAX_PIECE_CHARS and a block of characters.
    """

    text: str
    ends_document: bool  # a separator (token 50256) follows


def text_pieces(blocks: Iterable[str]) -> Iterator[Piece]:
    """The pieces of a text file: `a<|endoftext|>b` has ("a", True), ("b", False)."""
    pending, is_one_document = "", True
    for block in blocks:
        *documents, pending = (pending + block).split(END_OF_TEXT)
        for document in documents:
            yield Piece(document, True)
        is_one_document = is_one_document and not documents
        while len(pending) > MAX_PIECE_CHARS:
            cut = cut_of(pending)
            yield Piece(pending[:cut], False)
            pending = pending[cut:]
    if pending or is_one_document:
        yield Piece(pending, False)


def pieces_of(text: str, *, ends_document: bool) -> Iterator[Piece]:
    """The pieces of a whole document, in which a separator is ordinary text."""
    start = 0
    while len(text) - start > MAX_PIECE_CHARS:
        part = text[start : start + MAX_PIECE_CHARS]
        cut = cut_of(part)
        yield Piece(part[:cut], False)
        start += cut
    yield Piece(text[start:] if start else text, ends_document)


def cut_of(text: str) -> int:
    """Where to cut a long text: the last place where no token can span the cut.

    The last characters stay together, for they may be the beginning of a separator. A text without
    such a place is cut before them.
    """
    end = len(text) - len(END_OF_TEXT)
    for start in (max(0, end - SEARCHED_CHARS), 0):
        for pattern in SAFE_CUTS:
            if cut := max(
                (found.start() for found in pattern.finditer(text, start, end)), default=0
            ):
                return cut
    return end
