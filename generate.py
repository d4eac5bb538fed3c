"""Text from a trained model: sampling filters, `TextGenerator`, and the command.

python generate.py --prompt "Once upon a time"

Shapes: B batch, T time in tokens, V vocabulary.
"""

import argparse
import math
import re
import secrets
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import checkpoint
import runtime
from model import Transformer
from settings import Parser
from tokenizer import END_OF_TEXT_ID, GPT2Tokenizer, StreamDecoder

# Settings of `TextGenerator.generate` whose texts are shown side by side.
STRATEGIES: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "temperature 0.5": {"temperature": 0.5},
    "temperature 1.0": {"temperature": 1.0},
    "temperature 1.5": {"temperature": 1.5},
    "top-k 10": {"top_k": 10},
    "top-k 50": {"top_k": 50},
    "top-k 100": {"top_k": 100},
    "top-p 0.9": {"top_p": 0.9},
}
TERMINAL_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # all but tab and newline


class SamplingError(ValueError):
    """A sampling setting that means nothing."""

    exit_code = 2


# ---------------------------------------------------------------- one token


def keep_top_k(logits: Tensor, k: int) -> Tensor:
    """(B, V) with all but the k highest logits of each row at -inf; ties with the k-th stay."""
    lowest_kept = logits.topk(min(k, logits.size(-1))).values[:, -1:]  # (B, 1)
    return logits.masked_fill(logits < lowest_kept, -math.inf)


def keep_top_p(logits: Tensor, p: float) -> Tensor:
    """(B, V) with the nucleus kept: the fewest tokens whose probabilities reach p, others -inf.

    The token that crosses p belongs to it (Holtzman et al. 2020), so at least one is kept.
    """
    if p == 1:  # rounded sums may reach 1 before the last token
        return logits
    ordered, indices = logits.sort(descending=True, stable=True)
    probabilities = ordered.softmax(-1)
    is_beyond = probabilities.cumsum(-1) - probabilities >= p
    is_beyond[:, 0] = False
    return logits.masked_fill(is_beyond.scatter(-1, indices, is_beyond), -math.inf)


def next_tokens(
    logits: Tensor,
    *,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator,
) -> Tensor:
    """One token id a row, (B,), from logits (B, V): temperature first, then top-k, then top-p."""
    highest = logits.amax(-1, keepdim=True)  # NaN where any is
    if not highest.isfinite().all():
        raise runtime.NonFiniteError(
            "the model's logits are not finite: its weights are broken, train anew"
        )
    if temperature == 0:
        return logits.argmax(-1)
    # Relative to the highest, so that a tiny temperature cannot overflow; 1e-30 is float32's own.
    logits = (logits.float() - highest) / max(temperature, 1e-30)
    if top_k is not None:
        logits = keep_top_k(logits, top_k)
    if top_p is not None:
        logits = keep_top_p(logits, top_p)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]


def check_sampling(
    *, max_new_tokens: int, temperature: float, top_k: int | None, top_p: float | None
) -> None:
    """SamplingError with every setting that is out of range."""
    is_right = {
        f"max_new_tokens={max_new_tokens} is below 0": max_new_tokens >= 0,
        f"temperature={temperature} is not a number >= 0": 0 <= temperature < math.inf,
        f"top_k={top_k} is below 1": top_k is None or top_k >= 1,
        f"top_p={top_p} is not in (0, 1]": top_p is None or 0 < top_p <= 1,
    }
    problems = [problem for problem, is_fine in is_right.items() if not is_fine]
    if problems:
        raise SamplingError("sampling: " + "; ".join(problems))


# ---------------------------------------------------------------- many tokens


class TextGenerator:
    """Continues text with a model: `TextGenerator(model, tokenizer).generate("Once upon")`.

    Settings of all its methods: `max_new_tokens`; `temperature` (0 is greedy, the likeliest token
    each time); `top_k`, `top_p` (None is off); `seed` (None draws one). A text ends early at
    `<|endoftext|>`, which is not shown. In a prompt, `<|endoftext|>` is plain text.
    """

    def __init__(self, model: Transformer, tokenizer: GPT2Tokenizer) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    def generate(self, prompt: str, max_new_tokens: int = 100, **settings: Any) -> str:
        """The prompt and its continuation."""
        return prompt + "".join(self.stream(prompt, max_new_tokens, **settings))

    def stream(self, prompt: str, max_new_tokens: int = 100, **settings: Any) -> Iterator[str]:
        """The continuation piece by piece, never half a character."""
        decoder = StreamDecoder(self.tokenizer)
        tokens = torch.tensor([self.prompt_ids(prompt)])
        for token in self.stream_tokens(tokens, max_new_tokens, **settings):
            if token.item() == END_OF_TEXT_ID:
                break
            yield decoder.push(token.item())
        yield decoder.finish()

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids that the model can start from: an empty prompt is the start of a document."""
        return self.tokenizer.encode(prompt) or [END_OF_TEXT_ID]

    @torch.no_grad()
    def stream_tokens(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        poll: Callable[[], None] = lambda: None,
    ) -> Iterator[Tensor]:
        """The next ids (B,) after tokens (B, T), one step at a time; at most the context is read.

        A row that has ended repeats `<|endoftext|>`; the stream ends when all have. `poll` is
        called before each step and may raise to give up.
        """
        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        check_sampling(max_new_tokens=max_new_tokens, **sampling)
        device = self.model.device
        generator = torch.Generator(device).manual_seed(new_seed() if seed is None else seed)
        window = tokens.to(device)
        is_done = torch.zeros(len(tokens), dtype=torch.bool, device=device)
        for _ in range(max_new_tokens):
            poll()
            window = window[:, -self.model.seq_len :]
            logits = self.model.head(self.model.hidden_states(window)[:, -1])
            token = next_tokens(logits, generator=generator, **sampling)
            token = token.masked_fill(is_done, END_OF_TEXT_ID)
            is_done |= token == END_OF_TEXT_ID
            yield token
            if is_done.all():
                return
            window = torch.cat([window, token[:, None]], dim=1)

    def compare(
        self, prompt: str, strategies: dict[str, dict[str, Any]] = STRATEGIES, **settings: Any
    ) -> dict[str, str]:
        """The text of each strategy from the same prompt."""
        return {
            name: self.generate(prompt, **{**settings, **strategy})
            for name, strategy in strategies.items()
        }


def new_seed() -> int:
    return secrets.randbelow(2**31)


# ---------------------------------------------------------------- the command


def printable(text: str) -> str:
    """The text with control characters spelt out, so that no model commands a terminal."""
    return TERMINAL_CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def side_by_side(texts: dict[str, str], *, width: int = 100) -> str:
    """A table of names and wrapped texts."""
    margin = max(map(len, texts)) + 2
    rows = []
    for name, text in texts.items():
        lines = textwrap.wrap(printable(text), width - margin) or [""]
        rows.append(f"{name:<{margin}}" + ("\n" + " " * margin).join(lines))
    return "\n\n".join(rows)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(description="Continues a prompt with a trained model.", allow_abbrev=False)
    add = parser.add_argument
    add("--prompt", required=True, help="text to continue; may be empty")
    add("--checkpoint", type=Path, default=Path(checkpoint.FINAL_NAME), help="model file")
    add("--max-new-tokens", type=int, default=200, help="the longest continuation (%(default)s)")
    add("--temperature", type=float, default=0.8, help="0 is greedy, 1 as trained (%(default)s)")
    add("--top-k", type=int, help="draw from the k likeliest tokens only")
    add("--top-p", type=float, help="draw from the fewest tokens that make up this probability")
    add("--seed", type=int, help="same seed, same text; drawn and printed where not given")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(sys.argv[1:] if arguments is None else arguments)
    sampling = {
        key: getattr(options, key) for key in ("max_new_tokens", "temperature", "top_k", "top_p")
    }
    check_sampling(**sampling)
    seed = new_seed() if options.seed is None else options.seed
    device, _ = runtime.choose_device("auto")
    generator = TextGenerator(checkpoint.load_model(options.checkpoint).to(device), GPT2Tokenizer())
    num_prompt_tokens = len(generator.prompt_ids(options.prompt))
    if num_prompt_tokens > generator.model.seq_len:
        print(
            f"notice: the prompt has {num_prompt_tokens} tokens, the model reads the last "
            f"{generator.model.seq_len}",
            file=sys.stderr,
        )
    print(printable(options.prompt), end="", flush=True)
    for piece in generator.stream(options.prompt, seed=seed, **sampling):
        print(printable(piece), end="", flush=True)
    print()
    print(f"(seed {seed})", file=sys.stderr)


if __name__ == "__main__":
    runtime.run_command(main)
