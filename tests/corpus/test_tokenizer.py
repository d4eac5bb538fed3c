"""The tokenizer gives GPT-2's ids for any string, offline, and decodes a stream in characters."""

import base64
import inspect
import json
import math
import re
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import regex
import tiktoken
from hypothesis import given
from hypothesis import strategies as st

import tokenizer as tokenizer_module
from system.errors import VocabularyError
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID, TABLE_PATH, GPT2Tokenizer, StreamDecoder

# How GPT-2's published encoder.py cuts a text into words, before the pairs of bytes are merged.
WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+")
PUBLISHED_IDS = {
    "Hello world": [15496, 995],
    "Hello, I'm a language model,": [15496, 11, 314, 1101, 257, 3303, 2746, 11],
    "Once upon a time": [7454, 2402, 257, 640],
}
AWKWARD = [
    "I'm sure they'll say we've, it's, you'd, don't, he're: 'tis O'Neil'S 'LL",
    "\u2019s curly quote isn\u2019t a contraction",
    "   leading and      inner   runs ",
    "\ttabs\t\tand \t mixed \n\n\n lines\r\nof\rall\n\rkinds",
    "emoji 😀😀 family 👩\u200d👩\u200d👧\u200d👦 flag 🇧🇷 skin 👍🏽 heart ❤\ufe0f",
    "你好、世界。日本語のテキスト 한국어 ภาษาไทย",
    "é e\u0301 ñ ﬁ ß İ ǅ",
    "numbers 1234567890 ½ ² ٣٤٥ 3.14159e-10 0x1F",
    "\u00a0no-break\u3000ideographic\u2028line\x85next\x1cfile\ufeffmark\u200bzero",
    "almost <|endoftext|, |endoftext|> and < |endoftext| >",
]


@cache
def ranks():
    """Rank of each token, read from the table without the code under test."""
    lines = TABLE_PATH.read_text(encoding="ascii").splitlines()
    return {base64.b64decode(token): int(rank) for token, rank in map(str.split, lines)}


def naive_ids(text):
    """Ids by the definition: in each word, merge the pair of the lowest rank until none is left."""
    ids = []
    for word in WORDS.findall(text):
        parts = [bytes([byte]) for byte in word.encode()]
        while len(parts) > 1:
            pairs = [ranks().get(a + b, math.inf) for a, b in pairwise(parts)]
            first = pairs.index(min(pairs))
            if pairs[first] == math.inf:
                break
            parts[first : first + 2] = [parts[first] + parts[first + 1]]
        ids += [ranks()[part] for part in parts]
    return ids


def test_encoding_is_gpt2s_as_tiktoken_names_it(tokenizer):
    assert isinstance(tokenizer.encoding, tiktoken.Encoding)
    assert tokenizer.encoding.name == "gpt2"
    assert tokenizer.encoding.n_vocab == 50257
    assert tokenizer.encoding.eot_token == END_OF_TEXT_ID == 50256


def test_table_is_complete_and_every_token_is_made_of_two_earlier_ones():
    rank_of = ranks()
    assert sorted(rank_of.values()) == list(range(50256))
    assert {token for token in rank_of if len(token) == 1} == {bytes([i]) for i in range(256)}
    for token, rank in rank_of.items():
        halves = ((token[:i], token[i:]) for i in range(1, len(token)))
        earlier = (max(rank_of.get(a, rank), rank_of.get(b, rank)) < rank for a, b in halves)
        assert len(token) == 1 or any(earlier)


@pytest.mark.parametrize(("text", "ids"), PUBLISHED_IDS.items())
def test_known_texts_have_their_published_ids(tokenizer, text, ids):
    assert tokenizer.encode(text) == ids


@given(st.text() | st.lists(st.sampled_from([" ", "\n", "'", "'ll", " the", "7"])).map("".join))
def test_any_text_has_the_ids_of_naive_byte_pair_encoding(tokenizer, text):
    ids = naive_ids(text)
    assert tokenizer.encode(text) == tokenizer.encode_to_numpy(text).tolist() == ids
    assert tokenizer.decode(ids) == text


def test_awkward_strings_have_the_ids_of_naive_byte_pair_encoding(tokenizer):
    for text in AWKWARD:
        assert tokenizer.encode(text) == naive_ids(text)
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize("half", ["\ud83d", "a\udc80b", "\ude00\ud83d"], ids=ascii)
def test_half_a_surrogate_pair_counts_as_a_replacement_character(tokenizer, half):
    replaced = re.sub("[\ud800-\udfff]", "\ufffd", half)
    assert tokenizer.encode(half) == tokenizer.encode_to_numpy(half).tolist() == naive_ids(replaced)
    assert tokenizer.encode("\ud83d\ude00") == naive_ids("\U0001f600")  # the halves of one pair


@pytest.mark.parametrize("text", [END_OF_TEXT, f"a{END_OF_TEXT} b", f"{END_OF_TEXT * 2}\n"])
def test_end_of_text_is_plain_text_unless_allowed(tokenizer, text):
    plain = tokenizer.encode(text)
    assert END_OF_TEXT_ID not in plain
    assert plain == naive_ids(text)
    allowed = tokenizer.encode(text, allowed_special={END_OF_TEXT})
    assert allowed.count(END_OF_TEXT_ID) == text.count(END_OF_TEXT)
    assert tokenizer.encode(text, allowed_special="all") == allowed
    assert tokenizer.decode(plain) == tokenizer.decode(allowed) == text


def test_words_beside_end_of_text_have_the_ids_they_have_alone(tokenizer):
    before, after = "the end  ", "  Once"
    ids = tokenizer.encode(f"{before}{END_OF_TEXT}{after}", allowed_special={END_OF_TEXT})
    assert ids == [*naive_ids(before), END_OF_TEXT_ID, *naive_ids(after)]


def test_allowed_special_is_the_second_argument_and_empty_by_default(tokenizer):
    parameters = inspect.signature(tokenizer.encode).parameters
    assert list(parameters) == ["text", "allowed_special"]
    assert not parameters["allowed_special"].default


@given(
    st.lists(
        st.sampled_from([" ", "    ", "\n", "\t", "\x1c", "\u3000", "\xa0", "a", "'s", END_OF_TEXT])
    ).map("".join),
    st.sampled_from([frozenset(), {END_OF_TEXT}, "all"]),
)
def test_texts_cut_at_long_spaces_have_the_ids_of_the_whole(tokenizer, text, allowed):
    expected = tokenizer.encoding.encode(text, allowed_special=allowed, disallowed_special=())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "MANY_SPACES", 3)
        assert tokenizer.encode(text, allowed_special=allowed) == expected


@pytest.mark.parametrize("end", ["a", END_OF_TEXT])
def test_a_million_spaces_are_tokens_and_come_back(tokenizer, end):
    text = "start" + 1_000_001 * " " + end
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode(text, allowed_special="all")) == text


@pytest.mark.parametrize("collect", [list, tuple, iter, np.array, lambda ids: np.uint16(ids)])
def test_decode_takes_ids_from_anything_iterable(tokenizer, collect):
    assert tokenizer.decode(collect([15496, 995])) == "Hello world"


# the ids below 256 are single bytes, mostly invalid UTF-8 in a random order
@given(st.lists(st.integers(0, 255) | st.integers(0, END_OF_TEXT_ID)))
def test_streamed_text_joins_to_decode_for_any_ids(tokenizer, ids):
    stream = StreamDecoder(tokenizer)
    assert "".join([*map(stream.push, ids), stream.finish()]) == tokenizer.decode(ids)


def test_stream_gives_each_character_whole_and_with_its_last_token(tokenizer):
    text = "".join(AWKWARD)
    ids, stream, shown = tokenizer.encode(text), StreamDecoder(tokenizer), ""
    for count, token_id in enumerate(ids, start=1):
        shown += stream.push(token_id)
        assert shown == tokenizer.encoding.decode_bytes(ids[:count]).decode(errors="ignore")
    assert shown == text
    assert stream.finish() == ""


def test_tokenizer_needs_no_network_no_torch_and_writes_no_cache(tmp_path, run_python):
    program = (
        "import json, socket, sys\n"
        "def refuse(*args, **kwargs): raise AssertionError('network used')\n"
        "socket.socket = socket.create_connection = socket.getaddrinfo = refuse\n"
        "from tokenizer import GPT2Tokenizer\n"
        "assert 'torch' not in sys.modules, 'slow to import'\n"
        "print(json.dumps(GPT2Tokenizer().encode('Hello world')))\n"
    )
    places = ("HOME", "TMPDIR", "TIKTOKEN_CACHE_DIR", "DATA_GYM_CACHE_DIR", "XDG_CACHE_HOME")
    result = run_python("-c", program, folder=tmp_path, **dict.fromkeys(places, str(tmp_path)))
    assert json.loads(result.stdout) == [15496, 995], result.stderr
    assert list(tmp_path.iterdir()) == []


def swap_two_ranks(table):
    lines = table.splitlines(keepends=True)
    return b"".join([lines[1][:-2] + b"0\n", lines[0][:-2] + b"1\n", *lines[2:]])


DAMAGES = {
    "empty": lambda table: b"",
    "cut short": lambda table: table[:-5],
    "one line gone": lambda table: table[table.index(b"\n") + 1 :],
    "still well formed": swap_two_ranks,
    "a web page": lambda table: b"<html>not found</html>\n",
    "line ends changed": lambda table: table.replace(b"\n", b"\r\n"),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_table_is_refused_by_name(damage, tmp_path, monkeypatch):
    path = tmp_path / "damaged.tiktoken"
    path.write_bytes(damage(TABLE_PATH.read_bytes()))
    monkeypatch.setattr("tokenizer.TABLE_PATH", path)
    with pytest.raises(VocabularyError, match="damaged vocabulary") as caught:
        GPT2Tokenizer()
    assert str(path) in str(caught.value)
    assert caught.value.exit_code == 3


def test_missing_table_is_named_and_read_once_it_is_there(tmp_path, monkeypatch):
    path = tmp_path / "table.tiktoken"
    monkeypatch.setattr("tokenizer.TABLE_PATH", path)
    with pytest.raises(VocabularyError, match="cannot read the vocabulary") as caught:
        GPT2Tokenizer()
    assert str(path) in str(caught.value)
    path.write_bytes(TABLE_PATH.read_bytes())
    assert GPT2Tokenizer().encode("Hello world") == [15496, 995]
