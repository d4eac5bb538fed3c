"""How options are read, whichever command they are for."""

import pytest

from generation.options import parse_arguments
from system.command_line import Parser
from system.errors import ConfigError


@pytest.mark.parametrize("option", ["--most_words", "--most-words"])
@pytest.mark.parametrize("given", ["--most_words", "--most-words", "--most-words=7"])
def test_words_of_a_name_may_have_dashes_or_underscores_between(option, given):
    parser = Parser()
    parser.add_argument(option, type=int)
    parser.add_argument("--text")
    words = [given] if "=" in given else [given, "7"]
    found = parser.parse_args([*words, "--text=--most-words"])
    assert vars(found) == {"most_words": 7, "text": "--most-words"}


def test_so_it_is_for_generate_and_what_is_unknown_is_shown_as_it_was_typed():
    assert parse_arguments(["--max_new_tokens", "5"]).max_new_tokens == 5
    with pytest.raises(ConfigError, match="unrecognized arguments: --max_newtokens 5"):
        parse_arguments(["--max_newtokens", "5"])
