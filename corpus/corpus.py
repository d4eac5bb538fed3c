"""What a run reads: numbered training batches and validation tokens, made from the text found."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from corpus.baselines import baselines, in_background
from corpus.notes import remembered
from corpus.order import EARLIER, NOW, Batches
from corpus.parts import Parts, cache_folders, read_parts
from corpus.rare import rare_rows, read_as_unused
from corpus.report import FORM, MAX_SAMPLED, Facts, facts_of
from corpus.split import SplicedIds
from corpus.text import shown_path
from corpus.vocabulary import Vocabulary
from data import GPTDatasetV1
from system.errors import DataError
from tokenizer import END_OF_TEXT_ID, GPT2Tokenizer

FACTS_SECONDS = 1.0  # that a start waits for them


@dataclass(frozen=True)
class Corpus:
    """The parts of a text that a run needs; ids are GPT-2's."""

    parts: Parts
    notes: list[str]  # on its sources and its validation text
    train_ids: SplicedIds  # all of them, mapped from disk
    batches: Batches
    vocabulary: Vocabulary
    val_ids: Tensor  # (N,) int64
    masks_documents: bool
    cache_folders: list[Path]  # where notes about the text may be kept

    @property
    def path(self) -> Path:
        """Of its first file."""
        return self.parts.texts[0].path

    @cached_property
    def text_sha256(self) -> str:
        return self.parts.sha256

    @cached_property
    def num_used(self) -> int:
        """How many different tokens there are to train on."""
        return len(np.unique(self.parts.used_tokens()))

    @property
    def is_predicted(self) -> np.ndarray:
        """Which of val_ids[1:] an evaluation is about, (N - 1,)."""
        return (self.val_ids[:-1].numpy() != END_OF_TEXT_ID) | (not self.masks_documents)

    @cached_property
    def is_rare(self) -> Tensor:
        """Whether a row of the model's table is that of a token which comes once, (K + 1,)."""
        return rare_rows(self.train_ids, self.vocabulary)

    def batch(self, step: int, *, rare_as_unused: float) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) of a step as rows of the model's table."""
        inputs, targets = map(self.vocabulary.compact, self.batches[step])
        key = self.batches.seed, step
        return read_as_unused((inputs, targets), self.is_rare, chance=rare_as_unused, key=key)

    @cached_property
    def num_val_bytes(self) -> int:
        """Of the text that the predicted tokens stand for."""
        predicted = self.val_ids[1:].numpy()[self.is_predicted]
        return max(1, len(GPT2Tokenizer().encoding.decode_bytes(predicted.tolist())))

    @property
    def key(self) -> str:
        """Names the text and its parts."""
        val_sha256 = hashlib.sha256(self.val_ids.numpy().tobytes()).hexdigest()
        return f"{self.text_sha256} {len(self.train_ids)} {val_sha256} {self.is_predicted.sum()}"

    def baselines(self) -> dict[str, float]:
        """Bits a byte of predictors without a network, noted beside the tokens."""
        paths = [folder / "baselines.json" for folder in self.cache_folders]
        parts = self.train_ids, self.val_ids.numpy(), self.is_predicted
        return remembered(paths, self.key, lambda: baselines(*parts, GPT2Tokenizer()))

    @cached_property
    def facts(self) -> Facts:
        """What its tokens are like, noted beside them."""
        paths = [folder / "facts.json" for folder in self.cache_folders]
        key = f"{self.key} form {FORM}"
        return remembered(paths, key, lambda: facts_of(self.parts, GPT2Tokenizer()))

    def facts_soon(self) -> Facts:
        """The facts; {} where the first look at a large text takes longer: it goes on meanwhile."""
        if len(self.train_ids) <= MAX_SAMPLED:
            return self.facts
        return in_background(lambda: self.facts)(FACTS_SECONDS)

    def __str__(self) -> str:
        lines = [
            f"{shown_path(self.path)}, {self.parts.texts[0].sources.why}",
            f"{len(self.train_ids):,} tokens to train on, {len(self.val_ids):,} to validate on",
            *self.notes,
        ]
        if num_replaced := sum(text.tokens.found["replaced"] for text in self.parts.texts):
            lines.append(f"{num_replaced:,} invalid sequences read as U+FFFD")
        if (num_shared := self.vocabulary.num_shared) > 1:
            lines.append(f"{num_shared:,} of GPT-2's tokens do not occur in it: they share one row")
        return "\n".join(lines)


def read_corpus(
    config: dict[str, Any], tokenizer: GPT2Tokenizer, *, share_rows: bool, order: str = NOW
) -> Corpus:
    """The corpus that the config asks for; `share_rows` allows a vocabulary that shares a row.

    The `order` of the batches is the one that a run began with, and stands for its split as well.
    """
    parts = read_parts(config, is_earlier=order == EARLIER)
    seq_len = config["seq_len"]
    rows = parts.training_rows()
    val_ids = parts.validation_ids(config["eval_tokens"]).astype(np.int64)
    for row, text in zip(rows, parts.texts, strict=False):
        check_length(text.path, len(row), len(val_ids), seq_len)
    datasets = [GPTDatasetV1(row, None, seq_len, config["stride"]) for row in rows]
    return Corpus(
        parts=parts,
        notes=parts.notes(config["data_field"]),
        train_ids=SplicedIds.of_texts(parts.train),
        batches=Batches(
            ConcatDataset(datasets),
            config["batch_size"] * config["grad_accum_steps"],
            seed=config["seed"],
            weights=parts.weights or [1],
            order=order,
        ),
        vocabulary=choose_vocabulary(
            parts.used_tokens(), tokenizer.encoding.n_vocab, share_rows=share_rows
        ),
        val_ids=torch.from_numpy(val_ids),
        masks_documents=config.get("mask_documents", False),  # not in earlier files
        cache_folders=cache_folders(parts.texts[0].path, config),
    )


def check_length(path: Path, num_train: int, num_val: int, seq_len: int) -> None:
    """DataError unless there is a window to train on and a prediction to validate."""
    if num_train <= seq_len or num_val < 2:
        raise DataError(
            f"the text is too short ({path}: {num_train} tokens to train on, {num_val} to validate "
            f"on): seq_len={seq_len} needs {seq_len + 1} and 2; add text or lower seq_len"
        )


def choose_vocabulary(used: np.ndarray, full_size: int, *, share_rows: bool) -> Vocabulary:
    """The compact vocabulary of the used tokens where that saves at least half of the rows."""
    compact = Vocabulary.of(used, full_size, also_used=[END_OF_TEXT_ID])
    return compact if share_rows and compact.size < full_size / 2 else Vocabulary.full(full_size)
