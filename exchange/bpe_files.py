"""GPT-2's vocabulary as it was published: letters for bytes, and the merges behind the ranks."""

from functools import cache
from itertools import count, pairwise
from typing import Any

from tokenizer import END_OF_TEXT, END_OF_TEXT_ID, GPT2Tokenizer


@cache
def vocabulary_and_merges() -> tuple[dict[str, int], list[str]]:
    """What OpenAI's encoder.json holds, and the lines of vocab.bpe below its first."""
    letters, tokenizer = byte_letters(), GPT2Tokenizer()
    tokens = [tokenizer.encoding.decode_single_token_bytes(i) for i in range(END_OF_TEXT_ID)]
    ranks = {token: rank for rank, token in enumerate(tokens)}

    def spelt(token: bytes) -> str:
        return "".join(letters[byte] for byte in token)

    vocabulary = {spelt(token): rank for token, rank in ranks.items()}
    longer = [token for token in tokens if len(token) > 1]
    merges = [" ".join(map(spelt, merged_parts(token, ranks))) for token in longer]
    return vocabulary | {END_OF_TEXT: END_OF_TEXT_ID}, merges


def fast_tokenizer(vocabulary: dict[str, int], merges: list[str]) -> dict[str, Any]:
    """The content of tokenizer.json, which Hugging Face's `tokenizers` reads."""
    special = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": [
            {"id": END_OF_TEXT_ID, "content": END_OF_TEXT, "special": True, **special}
        ],
        **dict.fromkeys(("pre_tokenizer", "post_processor", "decoder"), by_bytes),
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }


def byte_letters() -> list[str]:
    """The letter of each byte: its own in Latin-1 where that is visible, else from U+0100 on."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = count(256)
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def merged_parts(token: bytes, ranks: dict[bytes, int]) -> list[bytes]:
    """The two tokens that `token` is merged from: b" the" -> [b" t", b"he"].

    Byte-pair encoding always joins the pair of the lowest rank, so what is left before the last
    join of the token's own bytes is its merge.
    """
    parts = [bytes([byte]) for byte in token]
    while len(parts) > 2:
        pair_ranks = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        i = pair_ranks.index(min(pair_ranks))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts
