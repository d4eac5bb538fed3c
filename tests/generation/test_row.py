"""A text being written: whole characters, stop tokens, stop strings over token borders."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from generation.row import Row, longest_start, printable
from generation.settings import Settings
from tokenizer import END_OF_TEXT_ID


def written(tokenizer, ids, **settings) -> tuple[Row, list[str]]:
    row = Row(tokenizer, "", 0, Settings(**settings))
    pieces = [row.push(token) for token in ids]
    return row, [*pieces, row.finish()]


@given(st.text("aEND. 😀雪", max_size=30), st.text("aEND. 😀雪", min_size=1, max_size=3))
def test_pieces_join_to_the_text_before_the_stop_string_in_whole_characters(tokenizer, text, stop):
    row, pieces = written(tokenizer, tokenizer.encode(text), stop=stop)
    assert "".join(pieces) == row.text == text.partition(stop)[0]
    assert not any("\ufffd" in piece for piece in pieces)


def test_the_first_of_several_stop_strings_ends_a_text(tokenizer):
    ids = tokenizer.encode("The end is near. END of it")
    assert written(tokenizer, ids, stop=["it", "END", "END of"])[0].text == "The end is near. "


@pytest.mark.parametrize("stop", [5, END_OF_TEXT_ID])
def test_a_text_ends_before_a_stop_token(tokenizer, stop):
    ids = tokenizer.encode("The end is near.")
    assert written(tokenizer, [*ids, stop, *ids], stop_tokens={5})[0].text == "The end is near."


def test_half_a_character_at_the_end_is_replaced(tokenizer):
    assert written(tokenizer, tokenizer.encode("雪")[:-1])[0].text == "\ufffd"


def test_longest_start():
    assert longest_start("an En", ["End"]) == 2
    assert longest_start("an End", ["End", "dot"]) == 1
    assert longest_start("", ["End"]) == longest_start("abc", []) == 0


def test_control_characters_are_spelt_out():
    assert printable("a\x07\tb\nc\r\x9b2Jé😀") == "a\\x07\tb\nc\\x0d\\x9b2Jé😀"
    assert printable("\u202eexe.\u2066 \udcff אב") == "\\u202eexe.\\u2066 \\udcff אב"
