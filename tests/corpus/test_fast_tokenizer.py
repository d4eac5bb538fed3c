"""The tokenizer of the workers gives tiktoken's ids, whatever the text."""

import sys
from random import Random

import pytest
from test_pieces import AWKWARD

from corpus.fast_tokenizer import FastTokenizer
from corpus.text import PROJECT
from tokenizer import END_OF_TEXT

NUM_TEXTS = 3000
SPACES = [chr(code) for code in range(sys.maxunicode) if chr(code).isspace()]  # four more than Rust


@pytest.fixture(scope="module")
def fast():
    return FastTokenizer()


def check(fast, tokenizer, text):
    for special in (frozenset(), {END_OF_TEXT}):
        ids = fast.encode_to_numpy(text, special)
        assert ids.tolist() == tokenizer.encode_to_numpy(text, special).tolist(), (text, special)


def test_ids_are_tiktokens_on_random_texts(fast, tokenizer):
    random = Random(0)
    words = [*AWKWARD, *SPACES, "\uffff", "\0", "\ud83d", "\U0010ffff", "a", "b", "'re", "'S"]
    for _ in range(NUM_TEXTS):
        kinds = random.choices(words, k=random.randint(1, 6))
        check(fast, tokenizer, "".join(random.choices(kinds, k=random.randrange(30))))


@pytest.mark.parametrize(
    "after", ["", "a", "7", "!", "é", "你", "'s", END_OF_TEXT, "\x01"], ids=ascii
)
def test_ids_are_tiktokens_around_any_two_spaces(fast, tokenizer, after):
    for first in SPACES:
        for second in SPACES:
            check(fast, tokenizer, f"a{first}{second}{after}")


def test_ids_are_tiktokens_on_a_text_and_on_every_character(fast, tokenizer):
    check(fast, tokenizer, (PROJECT / "example.txt").read_text(encoding="utf-8"))
    codes = [*range(1, 0xD800), *range(0xE000, 0xFFFF), *range(0x10000, 0x32000)]
    check(fast, tokenizer, "".join(f" \n{chr(code)} " for code in codes))
