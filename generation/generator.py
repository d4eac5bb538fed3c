"""Text from a trained model: `TextGenerator`."""

import secrets
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from generation.beam import beam_search
from generation.comparison import STRATEGIES
from generation.decoding import continue_rows
from generation.row import Row, prompt_ids
from generation.sampling import Sampling
from generation.scoring import Score, score_document
from model import Transformer
from system.errors import SamplingError
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID, GPT2Tokenizer


def check_sampling(*, max_new_tokens: int, seed: int | None = None, **settings: Any) -> Sampling:
    """The settings of a sampler; SamplingError with every one that is out of range."""
    problems = []
    if max_new_tokens < 0:
        problems.append(f"max_new_tokens={max_new_tokens} is below 0")
    if seed is not None and not 0 <= seed < 2**63:
        problems.append(f"seed={seed} is not in [0, 2**63)")
    try:
        sampling = Sampling(**settings)
    except SamplingError as error:
        problems.append(str(error).removeprefix("sampling: "))
    if problems:
        raise SamplingError("sampling: " + "; ".join(problems))
    return sampling


def new_seed() -> int:
    return secrets.randbelow(2**31)


class TextGenerator:
    """Continues text with a model: `TextGenerator(model, tokenizer).generate("Once upon")`.

    Settings of its methods: `max_new_tokens`; `temperature` (0 is greedy), `top_k`, `top_p`,
    `min_p`, `typical_p`, `repetition_penalty`, `no_repeat_ngram` (see sampling.py); `seed` (None
    draws one); `stop`, strings at which a text ends, and `stop_tokens`, ids that end it too; none
    of them is shown. In a prompt, `<|endoftext|>` is plain text; an empty one starts a document.
    """

    def __init__(self, model: Transformer, tokenizer: GPT2Tokenizer) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer

    def generate(
        self, prompt: str | Sequence[str], max_new_tokens: int = 100, **settings: Any
    ) -> str | list[str]:
        """The prompt and its continuation; for several prompts or `num_samples` a list of them.

        The samples of a prompt have the seeds `seed`, `seed + 1`, ... Each text is the one that its
        prompt and seed give alone. With `num_beams` it is the likeliest that beam search finds, by
        log-probability / length ** `length_penalty`; the sampling settings then do not matter.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        rows = self.write(prompts, max_new_tokens, **settings)
        texts = [row.prompt + row.text for row in rows]
        return texts[0] if isinstance(prompt, str) and len(texts) == 1 else texts

    def stream(self, prompt: str, max_new_tokens: int = 100, **settings: Any) -> Iterator[str]:
        """The continuation piece by piece, never half a character nor part of a stop string."""
        named = {
            key: settings.pop(key) for key in ("seed", "stop", "stop_tokens") & settings.keys()
        }
        for pieces in self.steps(self.rows([prompt], **named), max_new_tokens, **settings):
            yield pieces[0]

    def write(
        self,
        prompts: Sequence[str],
        max_new_tokens: int,
        *,
        num_samples: int = 1,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        stop_tokens: Collection[int] = (),
        **settings: Any,
    ) -> list[Row]:
        """The finished rows: each prompt's samples one after the other."""
        rows = self.rows(
            prompts, num_samples=num_samples, seed=seed, stop=stop, stop_tokens=stop_tokens
        )
        if num_beams == 1:
            for _ in self.steps(rows, max_new_tokens, **settings):
                pass
            return rows
        found = beam_search(
            self.model,
            [row.prompt_ids for row in rows],
            max_new_tokens,
            num_beams=num_beams,
            length_penalty=length_penalty,
            stop_tokens={END_OF_TEXT_ID, *stop_tokens},
            poll=settings.get("poll", lambda: None),
        )
        for row, ids in zip(rows, found, strict=True):
            row.extend(ids)
        return rows

    def rows(
        self,
        prompts: Sequence[str],
        *,
        num_samples: int = 1,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        stop_tokens: Collection[int] = (),
    ) -> list[Row]:
        """Rows to write: `num_samples` of each prompt, with the seeds seed, seed + 1, ..."""
        first_seed = new_seed() if seed is None else seed
        return [
            Row(self.tokenizer, prompt, first_seed + sample, stop=stop, stop_tokens=stop_tokens)
            for prompt in prompts
            for sample in range(num_samples)
        ]

    def steps(
        self,
        rows: Sequence[Row],
        max_new_tokens: int,
        poll: Callable[[], None] = lambda: None,
        **settings: Any,
    ) -> Iterator[dict[int, str]]:
        """Writes the rows token by token; yields the new text of each that goes on, by number.

        `poll` is called before each step and may raise to give up.
        """
        sampling = check_sampling(max_new_tokens=max_new_tokens, **settings)
        steps = continue_rows(
            self.model,
            [row.prompt_ids for row in rows],
            max_new_tokens,
            sampling=sampling,
            seeds=[row.seed for row in rows],
            is_over=lambda number: rows[number].is_over,
            poll=poll,
        )
        for tokens in steps:
            yield {number: rows[number].push(token) for number, token in tokens.items()}
        yield {number: row.finish() for number, row in enumerate(rows)}

    def stream_tokens(
        self,
        tokens: Tensor,
        max_new_tokens: int,
        *,
        seed: int | None = None,
        poll: Callable[[], None] = lambda: None,
        **settings: Any,
    ) -> Iterator[Tensor]:
        """The next ids (B,) after tokens (B, T), one step at a time; row b has the seed `seed + b`.

        A row that has ended repeats `<|endoftext|>`; the stream ends when all have.
        """
        sampling = check_sampling(max_new_tokens=max_new_tokens, seed=seed, **settings)
        latest = torch.zeros(len(tokens), dtype=torch.long)
        first_seed = new_seed() if seed is None else seed
        steps = continue_rows(
            self.model,
            tokens.tolist(),
            max_new_tokens,
            sampling=sampling,
            seeds=range(first_seed, first_seed + len(tokens)),
            is_over=lambda number: latest[number] == END_OF_TEXT_ID,
            poll=poll,
        )
        for new in steps:
            latest = torch.tensor([new.get(row, END_OF_TEXT_ID) for row in range(len(tokens))])
            yield latest.to(self.model.device)

    def prompt_ids(self, prompt: str) -> list[int]:
        """Ids that the model can start from: an empty prompt is the start of a document."""
        return prompt_ids(self.tokenizer, prompt)

    def compare(
        self, prompt: str, strategies: dict[str, dict[str, Any]] = STRATEGIES, **settings: Any
    ) -> dict[str, str]:
        """The text of each strategy from the same prompt."""
        return {
            name: self.generate(prompt, **{**settings, **strategy})
            for name, strategy in strategies.items()
        }

    def score(self, text: str) -> list[Score]:
        """Log-probability, perplexity and bits per byte of each document of the text."""
        documents = (part.strip("\n") for part in text.split(END_OF_TEXT))
        return [score_document(self.model, self.tokenizer, part) for part in documents if part]
