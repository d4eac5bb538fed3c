"""A text as HTML in which each token tells how likely it was, and what else might have come."""

import math
from collections.abc import Sequence

from generation.generator import TextGenerator
from generation.scoring import likeliest
from reports.html import text
from tokenizer import StreamDecoder

NUM_LIKELIEST = 5
MOST_NATS = 8.0  # of surprise: where the colour is strongest
MOST_SHOWN = 2000  # tokens, which a browser shows without a pause


def colored(writer: TextGenerator, ids: Sequence[int], *, first: int = 0) -> str:
    """The tokens of ids[first:], the stronger their colour the less likely the model found them."""
    decoder, kept = StreamDecoder(writer.tokenizer), ids[: first + MOST_SHOWN]
    known = [None, *likeliest(writer.model, kept, NUM_LIKELIEST)]  # nothing precedes the first
    spans = []
    for token, found in list(zip(kept, known, strict=True))[first:]:
        piece = text(decoder.push(token)) or "·"  # the last of a character's tokens has it
        shown = piece.replace("\n", "↵\n")  # there is something to click at
        if found:
            share, others = found
            surprise = min(1.0, -math.log(max(share, 1e-9)) / MOST_NATS)
            rows = [(share, token), *others]
            title = "\n".join(f"{p:6.1%} {quoted(writer, other)}" for p, other in rows)
            look = f'style="--surprise:{surprise:.0%}" title="{title}"'
            shown = f'<span role="button" tabindex="0" {look}>{shown}</span>'
        spans.append(shown)
    return f"<pre>{''.join(spans)}{' …' * (len(kept) < len(ids))}</pre><output></output>"


def quoted(writer: TextGenerator, token: int) -> str:
    """A token on a line of its own; bytes that are no character as numbers."""
    raw = writer.tokenizer.encoding.decode_single_token_bytes(token)
    return text(repr(raw.decode("utf-8", "backslashreplace")))
