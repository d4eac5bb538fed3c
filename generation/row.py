"""One text being written: tokens in, whole characters out, up to the first stop."""

import re
from collections.abc import Sequence

from generation.settings import Settings
from tokenizer import END_OF_TEXT_ID, GPT2Tokenizer, StreamDecoder

CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f"  # all but tab and newline
TURNS = r"\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # the direction of writing
NOT_SHOWN = re.compile(rf"[{CONTROLS}{TURNS}\ud800-\udfff]")  # and halves of pairs


class Row:
    """A prompt and the text that follows it, which ends before a stop token or a stop string."""

    def __init__(
        self, tokenizer: GPT2Tokenizer, prompt: str, seed: int, settings: Settings
    ) -> None:
        self.prompt, self.seed = prompt, seed
        self.prompt_ids = prompt_ids(tokenizer, prompt)
        self.ids: list[int] = []
        self.text = ""
        self.is_over = False
        self._decoder = StreamDecoder(tokenizer)
        self._held = ""  # text that may be the start of a stop string
        self._stop = settings.stop
        self._stop_tokens = {END_OF_TEXT_ID, *settings.stop_tokens}

    def push(self, token_id: int) -> str:
        """The text that this token makes certain, possibly none; a row that is over takes none."""
        if self.is_over:
            return ""
        self.ids.append(token_id)
        if token_id in self._stop_tokens:
            return self.finish()
        return self._release(self._decoder.push(token_id))

    def finish(self) -> str:
        """The text that was held back, when no token follows."""
        if self.is_over:
            return ""
        piece = self._release(self._decoder.finish())
        self.is_over = True
        self.text += self._held
        return piece + self._held

    def _release(self, piece: str) -> str:
        held = self._held + piece
        found = [held.index(stop) for stop in self._stop if stop in held]
        end = min(found, default=len(held) - longest_start(held, self._stop))
        self.is_over, self._held = bool(found), "" if found else held[end:]
        self.text += held[:end]
        return held[:end]


def prompt_ids(tokenizer: GPT2Tokenizer, prompt: str) -> list[int]:
    """Ids that a model can start from: an empty prompt is the start of a document."""
    return tokenizer.encode(prompt) or [END_OF_TEXT_ID]


def longest_start(text: str, stops: Sequence[str]) -> int:
    """How many last characters may begin a stop: longest_start("an En", ["End"]) -> 2."""
    lengths = ((stop, length) for stop in stops for length in range(1, len(stop)))
    return max((length for stop, length in lengths if text.endswith(stop[:length])), default=0)


def printable(text: str) -> str:
    """The text with what would command a terminal or turn the writing round spelt out."""
    return NOT_SHOWN.sub(lambda match: spelt_out(ord(match[0])), text)


def spelt_out(number: int) -> str:
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}"
