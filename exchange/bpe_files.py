"""GPT-2's vocabulary as it was published: letters for bytes, and the merges behind the ranks."""

from functools import cache
from itertools import count, pairwise
from typing import Any

from tokenizer import END_OF_TEXT, END_OF_TEXT_ID, GPT2Tokenizer


@cache
def vocabulary_and_merges() -> tuple[dict[str, int], list[str]]:
    """What OpenAI's encoder.json holds, and the lines of vocab.bpe below its first.

    The letter of a byte is its own in Latin-1 where that is visible, else one from U+0100 on.
    """
    visible, others = {*range(33, 127), *range(161, 173), *range(174, 256)}, count(256)
    letters = [chr(byte if byte in visible else next(others)) for byte in range(256)]
    encoding = GPT2Tokenizer().encoding
    ranks = {encoding.decode_single_token_bytes(i): i for i in range(END_OF_TEXT_ID)}
    spelt = {token: "".join(letters[byte] for byte in token) for token in ranks}
    longer = (token for token in ranks if len(token) > 1)
    merges = [" ".join(spelt[part] for part in merged_parts(token, ranks)) for token in longer]
    vocabulary = {spelt[token]: rank for token, rank in ranks.items()}
    return vocabulary | {END_OF_TEXT: END_OF_TEXT_ID}, merges


def fast_tokenizer(vocabulary: dict[str, int], merges: list[str]) -> dict[str, Any]:
    """The content of tokenizer.json, which Hugging Face's `tokenizers` reads."""
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    by_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    return {
        "version": "1.0",
        "added_tokens": [{"id": END_OF_TEXT_ID, "content": END_OF_TEXT, "special": True, **flags}],
        **dict.fromkeys(("pre_tokenizer", "post_processor", "decoder"), by_bytes),
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges},
    }


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
