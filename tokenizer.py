"""Text to token ids and back: GPT-2's byte-pair encoding, from the table in this repository."""

import base64
import codecs
import hashlib
import re
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import tiktoken
from tiktoken_ext.openai_public import r50k_pat_str

from system.errors import VocabularyError

TABLE_PATH = Path(__file__).parent / "assets" / "r50k_base.tiktoken"
TABLE_SHA256 = "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"
END_OF_TEXT = "<|endoftext|>"
END_OF_TEXT_ID = 50256
MANY_SPACES = 900_000  # at a million before a word, the pattern's engine gives up
SPACE, OTHER = r"[^\S\x1c-\x1f]", r"[\S\x1c-\x1f]"  # as that engine sees them
Specials = AbstractSet[str] | Literal["all"]


class GPT2Tokenizer:
    """GPT-2's tokenizer, offline: `encode("Hello world") -> [15496, 995]`, `decode` inverts it.

    `encoding` is the `tiktoken.Encoding` behind it: 50,256 byte pairs and `<|endoftext|>`.
    """

    def __init__(self) -> None:
        self.encoding = load_encoding(TABLE_PATH)

    def encode(self, text: str, allowed_special: Specials = frozenset()) -> list[int]:
        """Ids: specials not in `allowed_special` are text, half a surrogate pair is U+FFFD."""
        return self.encode_to_numpy(text, allowed_special).tolist()

    def encode_to_numpy(self, text: str, allowed_special: Specials = frozenset()) -> np.ndarray:
        """The same ids as an array, (N,) uint32."""
        is_long = len(text) >= MANY_SPACES
        pieces = cut_long_spaces(text, bool(allowed_special)) if is_long else [text]
        special = {"allowed_special": allowed_special, "disallowed_special": ()}
        try:
            ids = [self.encoding.encode_to_numpy(piece, **special) for piece in pieces]
        except UnicodeEncodeError:
            whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return self.encode_to_numpy(whole, allowed_special)
        return np.concatenate(ids) if is_long else ids[0]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of the ids; bytes that are not UTF-8 become U+FFFD."""
        return self.encoding.decode(list(ids))


def cut_long_spaces(text: str, has_special: bool) -> Iterator[str]:
    """Pieces whose tokens are the text's: the last of many spaces belongs to the word after it."""
    follower = f"(?!{re.escape(END_OF_TEXT)})" * has_special + OTHER  # a special takes no space
    start = 0
    for spaces in re.finditer(f"(?<!{SPACE}){SPACE}{{{MANY_SPACES},}}(?={follower})", text):
        yield text[start : spaces.end() - 1]
        start = spaces.end() - 1
    yield text[start:]


class StreamDecoder:
    """Text of tokens that arrive one by one, in whole characters; the pieces join to `decode`."""

    def __init__(self, tokenizer: GPT2Tokenizer) -> None:
        self._encoding = tokenizer.encoding
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The characters that this token completes, possibly none."""
        return self._utf8.decode(self._encoding.decode_single_token_bytes(token_id))

    def finish(self) -> str:
        """What is left when no token follows: U+FFFD for a character that stayed incomplete."""
        return self._utf8.decode(b"", final=True)


@cache
def load_encoding(table_path: Path) -> tiktoken.Encoding:
    return tiktoken.Encoding(
        "gpt2",
        pat_str=r50k_pat_str,
        mergeable_ranks=load_ranks(table_path),
        special_tokens={END_OF_TEXT: END_OF_TEXT_ID},
    )


def load_ranks(table_path: Path) -> dict[bytes, int]:
    """The ranks in a table of tiktoken's format, lines `<base64 token> <rank>`; hash checked."""
    restore = "restore it from the repository"
    try:
        table = table_path.read_bytes()
    except OSError as error:
        reason = f"cannot read the vocabulary ({table_path}: {error.strerror}): {restore}"
        raise VocabularyError(reason) from error
    if hashlib.sha256(table).hexdigest() != TABLE_SHA256:
        raise VocabularyError(f"damaged vocabulary ({table_path}: wrong SHA-256): {restore}")
    pairs = (line.split() for line in table.splitlines())
    return {base64.b64decode(token): int(rank) for token, rank in pairs}
