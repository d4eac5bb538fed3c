"""One text being written: tokens in, whole characters out, up to the first stop."""

import re
from collections.abc import Collection, Iterable, Sequence

from tokenizer import END_OF_TEXT_ID, GPT2Tokenizer, StreamDecoder

TERMINAL_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


class Row:
    """A prompt and the text that follows it, which ends before a stop token or a stop string."""

    def __init__(
        self,
        tokenizer: GPT2Tokenizer,
        prompt: str,
        seed: int,
        *,
        stop: Sequence[str] = (),
        stop_tokens: Collection[int] = (),
    ) -> None:
        self.prompt, self.seed = prompt, seed
        self.prompt_ids = prompt_ids(tokenizer, prompt)
        self.ids: list[int] = []
        self.text = ""
        self.is_over = False
        self._decoder = StreamDecoder(tokenizer)
        self._held = ""  # text that may be the start of a stop string
        self._stop = stop
        self._stop_tokens = {END_OF_TEXT_ID, *stop_tokens}

    def push(self, token_id: int) -> str:
        """The text that this token makes certain, possibly none."""
        self.ids.append(token_id)
        if token_id in self._stop_tokens:
            return self.finish()
        return self._release(self._decoder.push(token_id))

    def extend(self, token_ids: Iterable[int]) -> None:
        """Takes the tokens up to the first stop, and finishes."""
        for token_id in token_ids:
            if not self.is_over:
                self.push(token_id)
        self.finish()

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
        if found:
            self.is_over, self._held = True, ""
            released = held[: min(found)]
        else:
            num_held = longest_start(held, self._stop)
            released, self._held = held[: len(held) - num_held], held[len(held) - num_held :]
        self.text += released
        return released


def prompt_ids(tokenizer: GPT2Tokenizer, prompt: str) -> list[int]:
    """Ids that a model can start from: an empty prompt is the start of a document."""
    return tokenizer.encode(prompt) or [END_OF_TEXT_ID]


def longest_start(text: str, stops: Sequence[str]) -> int:
    """How many last characters may begin a stop: longest_start("an En", ["End"]) -> 2."""
    lengths = range(max(map(len, stops), default=1) - 1, 0, -1)
    starts = (length for length in lengths if any(s.startswith(text[-length:]) for s in stops))
    return next((length for length in starts if length <= len(text)), 0)


def printable(text: str) -> str:
    """The text with control characters spelt out, so that no model commands a terminal."""
    return TERMINAL_CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)
