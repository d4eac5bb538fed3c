"""Text from a trained model: `TextGenerator`."""

from collections.abc import Iterator, Sequence
from typing import Any

from generation.beam import beam_search
from generation.decoding import Context, continue_rows
from generation.row import Row
from generation.scoring import Score, score_document
from generation.settings import Settings
from model import Transformer
from system.errors import CheckpointError, SamplingError
from tokenizer import END_OF_TEXT, END_OF_TEXT_ID, GPT2Tokenizer


class TextGenerator:
    """Continues text with a model: `TextGenerator(model, tokenizer).generate("Once upon")`.

    settings.py has the settings of its methods. In a prompt, `<|endoftext|>` is plain text; an
    empty one starts a document. The model may be in training: it is left in the mode that it had.
    """

    def __init__(self, model: Transformer, tokenizer: GPT2Tokenizer) -> None:
        num_rows = model.input_embedding.embedding.num_embeddings
        if num_rows < tokenizer.encoding.n_vocab:
            raise CheckpointError(
                f"the model has too few tokens ({num_rows:,} of the tokenizer's "
                f"{tokenizer.encoding.n_vocab:,}): choose a model of GPT-2's vocabulary"
            )
        self.model = model
        self.tokenizer = tokenizer

    def generate(
        self, prompt: str | Sequence[str], max_new_tokens: int = 100, **settings: Any
    ) -> str | list[str]:
        """The prompt and its continuation; for several prompts or `num_samples` a list of them.

        Each text is the one that its prompt and seed give alone. With `num_beams` it is the
        likeliest that beam search finds, by log-probability / length ** `length_penalty`.
        """
        prompts = [prompt] if isinstance(prompt, str) else prompt
        rows = self.write(prompts, Settings(max_new_tokens=max_new_tokens, **settings))
        texts = [row.prompt + row.text for row in rows]
        return texts[0] if isinstance(prompt, str) and len(texts) == 1 else texts

    def stream(self, prompt: str, max_new_tokens: int = 100, **settings: Any) -> Iterator[str]:
        """The continuation piece by piece, never half a character nor part of a stop string."""
        wanted = Settings(max_new_tokens=max_new_tokens, **settings)
        if wanted.num_samples > 1:
            raise SamplingError(
                f"a stream is one text (num_samples={wanted.num_samples}): leave it out"
            )
        for pieces in self.steps(self.rows([prompt], wanted), wanted):
            yield pieces[0]

    def write(self, prompts: Sequence[str], settings: Settings) -> list[Row]:
        """The finished rows: each prompt's samples one after the other."""
        rows = self.rows(prompts, settings)
        for _ in self.steps(rows, settings):
            pass
        return rows

    def rows(self, prompts: Sequence[str], settings: Settings) -> list[Row]:
        """Rows to write: `num_samples` of each prompt, with the seeds seed, seed + 1, ..."""
        ends = {"stop": settings.stop, "stop_tokens": settings.stop_tokens}
        seeds = range(settings.seed, settings.seed + settings.num_samples)
        return [Row(self.tokenizer, prompt, seed, **ends) for prompt in prompts for seed in seeds]

    def steps(self, rows: Sequence[Row], settings: Settings) -> Iterator[dict[int, str]]:
        """Writes the rows token by token; yields the new text of each that goes on, by number.

        Beams are known at the end only: theirs is one step.
        """
        if rows and settings.num_beams > 1:
            yield self._searched(rows, settings)
        elif rows:
            steps = continue_rows(
                self._context(rows, settings),
                settings,
                seeds=[row.seed for row in rows],
                is_over=lambda number: rows[number].is_over,
            )
            for tokens in steps:
                yield {number: rows[number].push(token) for number, token in tokens.items()}
            yield {number: row.finish() for number, row in enumerate(rows)}

    def _searched(self, rows: Sequence[Row], settings: Settings) -> dict[int, str]:
        found = beam_search(
            self._context([row for row in rows for _ in range(settings.num_beams)], settings),
            num_beams=settings.num_beams,
            length_penalty=settings.length_penalty,
            stop_tokens={END_OF_TEXT_ID, *settings.stop_tokens},
        )
        for row, ids in zip(rows, found, strict=True):
            row.extend(ids)
        return {number: row.text for number, row in enumerate(rows)}

    def score(self, text: str) -> list[Score]:
        """Log-probability, perplexity and bits per byte of each document of the text."""
        documents = (part.strip("\n") for part in text.split(END_OF_TEXT))
        return [score_document(self.model, self.tokenizer, part) for part in documents if part]

    def _context(self, rows: Sequence[Row], settings: Settings) -> Context:
        return Context(
            self.model,
            [row.prompt_ids for row in rows],
            max_new_tokens=settings.max_new_tokens,
            vocab_size=self.tokenizer.encoding.n_vocab,
        )
