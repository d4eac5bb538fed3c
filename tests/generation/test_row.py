"""A text being written: whole characters, stop tokens, stop strings over token borders."""

import pytest

from generation.row import Row, longest_start
from tokenizer import END_OF_TEXT_ID

TEXT = "The end is near. END of it 😀雪."


def written(tokenizer, ids, **settings) -> tuple[Row, list[str]]:
    row = Row(tokenizer, "", 0, **settings)
    pieces = []
    for token in ids:
        if not row.is_over:
            pieces.append(row.push(token))
    pieces.append(row.finish())
    return row, pieces


@pytest.mark.parametrize("stop", [(), ["nowhere"], ["😀?", "The end was"]], ids=str)
def test_pieces_join_to_the_text_in_whole_characters(tokenizer, stop):
    row, pieces = written(tokenizer, tokenizer.encode(TEXT), stop=stop)
    assert "".join(pieces) == row.text == TEXT
    assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["END"], "The end is near. "),
        (["near. END of"], "The end is "),
        (["it", "END"], "The end is near. "),
        (["雪"], "The end is near. END of it 😀"),
        (["T"], ""),
    ],
    ids=str,
)
def test_a_text_ends_before_the_first_stop_string(tokenizer, stop, expected):
    row, pieces = written(tokenizer, tokenizer.encode(TEXT), stop=stop)
    assert row.is_over
    assert "".join(pieces) == row.text == expected


def test_a_text_ends_before_a_stop_token(tokenizer):
    ids = tokenizer.encode(TEXT)
    for settings in ({"stop_tokens": {ids[3]}}, {}):
        row, _ = written(
            tokenizer, [*ids[:3], ids[3] if settings else END_OF_TEXT_ID, 5], **settings
        )
        assert row.text == tokenizer.decode(ids[:3])


def test_what_was_held_back_for_a_stop_string_is_released_at_the_end(tokenizer):
    row, pieces = written(tokenizer, tokenizer.encode("so EN"), stop=["END"])
    assert row.text == "so EN"
    assert pieces[-1] == "EN"


def test_half_a_character_at_the_end_is_replaced(tokenizer):
    ids = tokenizer.encode("雪")[:-1]
    assert written(tokenizer, ids)[0].text == "\ufffd"


def test_longest_start():
    assert longest_start("an En", ["End"]) == 2
    assert longest_start("an End", ["End", "dot"]) == 1
    assert longest_start("", ["End"]) == longest_start("abc", []) == 0
    assert longest_start("a", ["aaaa"]) == 1
