"""Text from a trained model: `TextGenerator`."""

from collections.abc import Iterator, Sequence
from typing import Any

from generation.beam import beam_search
from generation.decoding import Context, continue_rows
from generation.row import Row
from generation.settings import Settings
from model import Transformer
from system.errors import CheckpointError, SamplingError
from tokenizer import GPT2Tokenizer


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
        wanted = Settings(max_new_tokens=max_new_tokens, **settings)
        rows = self.write(self.rows(prompts, wanted), wanted)
        texts = [row.prompt + row.text for row in rows]
        return texts[0] if isinstance(prompt, str) and len(texts) == 1 else texts

    def stream(self, prompt: str, max_new_tokens: int = 100, **settings: Any) -> Iterator[str]:
        """The continuation piece by piece, never half a character nor part of a stop string."""
        wanted = Settings(max_new_tokens=max_new_tokens, num_samples=1, **settings)
        for pieces in self.steps(self.rows([prompt], wanted), wanted):
            yield pieces[0]

    def write(self, rows: list[Row], settings: Settings) -> list[Row]:
        """The same rows, finished."""
        for _ in self.steps(rows, settings):
            pass
        return rows

    def rows(self, prompts: Sequence[str], settings: Settings) -> list[Row]:
        """Rows to write: `num_samples` of each prompt, with the seeds seed, seed + 1, ..."""
        if not isinstance(prompts, Sequence) or not all(isinstance(p, str) for p in prompts):
            raise SamplingError(f"prompt={prompts!r:.60} is neither a text nor a list of texts")
        seeds = range(settings.seed, settings.seed + settings.num_samples)
        return [Row(self.tokenizer, text, seed, settings) for text in prompts for seed in seeds]

    def steps(self, rows: Sequence[Row], settings: Settings) -> Iterator[dict[int, str]]:
        """Writes the rows token by token; yields the new text of each that goes on, by number.

        Beams are known at the end only: theirs is one step.
        """
        if not rows:
            return
        context = Context(
            self.model,
            [row.prompt_ids for row in rows for _ in range(settings.num_beams)],
            max_new_tokens=settings.max_new_tokens,
            vocab_size=self.tokenizer.encoding.n_vocab,
        )
        if settings.num_beams > 1:
            found = enumerate(beam_search(context, settings))
            yield {n: "".join(map(rows[n].push, ids)) + rows[n].finish() for n, ids in found}
            return
        steps = continue_rows(
            context,
            settings,
            seeds=[row.seed for row in rows],
            is_over=lambda number: rows[number].is_over,
        )
        for tokens in steps:
            yield {number: rows[number].push(token) for number, token in tokens.items()}
        yield {number: row.finish() for number, row in enumerate(rows)}
