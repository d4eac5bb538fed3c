"""tiktoken's ids of large texts, in two thirds of its time."""

import numpy as np
import tiktoken

from tokenizer import END_OF_TEXT, END_OF_TEXT_ID, TABLE_PATH, GPT2Tokenizer, Specials, load_ranks

WORDS = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+"
SEPARATOR, CUT = "\0", "\uffff"  # stand for END_OF_TEXT, and for a place between two tokens
CUT_ID = END_OF_TEXT_ID + 1
SPACES = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008"
    "\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)


class FastTokenizer:
    """GPT-2's tokenizer, for ids alone.

    Its pattern for words looks ahead in one case: of several spaces the last belongs to the word
    that follows. Where these places are marked beforehand, a pattern without that will do, and
    tiktoken runs such a one as an automaton.
    """

    def __init__(self) -> None:
        self.encoding = tiktoken.Encoding(
            "gpt2-fast",
            pat_str=WORDS,
            mergeable_ranks=load_ranks(TABLE_PATH),
            special_tokens={SEPARATOR: END_OF_TEXT_ID, CUT: CUT_ID},
        )
        codes = [ord(space) for space in SPACES]
        self.is_space = np.isin(np.arange(codes[-1] + 2), codes)  # the last: of all that follow

    def encode_to_numpy(self, text: str, allowed_special: Specials = frozenset()) -> np.ndarray:
        """What GPT2Tokenizer gives: ids, (N,) uint32."""
        try:
            marked = self._marked(text, bool(allowed_special))
        except ValueError:  # it holds marks of its own, or half a surrogate pair
            return GPT2Tokenizer().encode_to_numpy(text, allowed_special)
        ids = self.encoding.encode_to_numpy(marked, allowed_special="all")
        return ids[ids != CUT_ID]

    def _marked(self, text: str, has_separators: bool) -> str:
        if SEPARATOR in text or CUT in text:
            raise ValueError(text)
        if has_separators:
            text = text.replace(END_OF_TEXT, SEPARATOR)
        codes = np.frombuffer(text.encode("utf-32-le"), "<u4")
        is_space = self.is_space[np.minimum(codes, len(self.is_space) - 1)]
        is_end = is_space | (codes == ord(SEPARATOR))
        cuts = np.flatnonzero(is_space[:-2] & is_space[1:-1] & ~is_end[2:]) + 1
        return np.insert(codes, cuts, ord(CUT)).tobytes().decode("utf-32-le")
