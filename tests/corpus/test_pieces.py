"""A text comes in pieces of bounded size whose ids join to tiktoken's on the whole text."""

import tracemalloc
from itertools import pairwise
from random import Random

import pytest

from corpus import pieces
from corpus.pieces import SAFE_CUTS, Piece, cut_of, text_pieces
from tokenizer import END_OF_TEXT

NUM_PATTERNS = 2000  # a third has no good place for some cut
AWKWARD = [
    *("a", "the", "Once", "'s", "don't", "'", "'ll", "1", "42", "é", "e\u0301", "_", "ß", "ﬁ"),
    *("你", "好。", "\uff0c", "こんにちは", "カ", "한국어", "😀", "👩\u200d👧", "🇩🇪", "\u0904"),
    *("def f(x):\n    return x[1:]\n", "{};", "//", "\\n", "==", ".", ",", "\ufeff", "--"),
    *("\x01", "\x1c", "\x1f", "\x7f", "\x85", "\u200b", "\u2028", "\ufffd"),
    *(" ", "  ", " " * 40, "\n", "\n\n", " \n", "\t", "\u00a0", "\u3000", "\r"),
    *("<|", "|>", "<|endof", "<", END_OF_TEXT),
]  # fmt: skip


def ids_of(tokenizer, parts):
    """The ids that pieces stand for, each tokenized alone."""
    ids = []
    for text, has_separators in parts:
        special = {END_OF_TEXT} if has_separators else set()
        ids += tokenizer.encoding.encode(text, allowed_special=special, disallowed_special=())
    return ids


def test_ids_of_the_pieces_join_to_the_ids_of_the_text_however_it_is_cut(tokenizer, monkeypatch):
    random, are_good = Random(0), []

    def noticed(text, **options):
        if (cut := cut_of(text, **options)) and not text[:cut].endswith(END_OF_TEXT):
            end = len(text) - len(END_OF_TEXT)
            are_good.append(any(pattern.search(text, 1, end) for pattern in SAFE_CUTS))
        return cut

    monkeypatch.setattr(pieces, "cut_of", noticed)
    for _ in range(NUM_PATTERNS):
        content = "".join(random.choices(AWKWARD, k=random.randrange(40)))
        most = random.randrange(13, 60)
        monkeypatch.setattr(pieces, "MAX_PIECE_CHARS", most)
        monkeypatch.setattr(pieces, "SEARCHED_CHARS", most // 2)
        cuts = sorted(random.randint(0, len(content)) for _ in range(random.randrange(12)))
        blocks = [content[a:b] for a, b in pairwise([0, *cuts, len(content)])]
        are_good.clear()
        parts = list(text_pieces(blocks))
        assert "".join(part.text for part in parts) == content
        assert max(len(text) for text, _ in parts) <= most + max(map(len, blocks))
        if all(are_good):
            whole = tokenizer.encoding.encode(content, allowed_special="all")
            assert ids_of(tokenizer, parts) == whole


def test_a_separator_at_the_end_is_kept_and_an_empty_text_is_one_document():
    parts = list(text_pieces(["a<|endof", "text|>b"]))
    assert parts == [Piece(f"a{END_OF_TEXT}"), Piece("b")]
    assert [part.is_ended for part in parts] == [True, False]
    assert list(text_pieces([END_OF_TEXT * 2])) == [Piece(END_OF_TEXT * 2)]
    assert list(text_pieces([])) == list(text_pieces(["", ""])) == [Piece("")]


@pytest.mark.parametrize("char", ["a", " ", "é", "😀"], ids=ascii)
def test_an_endless_line_comes_in_pieces_of_bounded_size(char):
    block, num_blocks = char * (1 << 16), 33
    parts = list(text_pieces(block for _ in range(num_blocks)))
    assert "".join(part.text for part in parts) == block * num_blocks
    assert max(len(part.text) for part in parts) <= pieces.MAX_PIECE_CHARS + len(block)


@pytest.mark.slow
def test_a_document_of_two_to_the_31_characters_needs_little_memory():
    block = "abc def " * (1 << 15)
    tracemalloc.start()
    num_chars = sum(len(part.text) for part in text_pieces(block for _ in range(1 << 13)))
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num_chars == 1 << 31
    assert peak_bytes < 10_000_000
