"""What a run reads: numbered training batches and validation tokens, made from the text found."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from corpus.baselines import baselines
from corpus.notes import remembered
from corpus.order import NOW, Batches
from corpus.sources import lines_about, open_sources
from corpus.token_cache import load_tokens
from corpus.vocabulary import Vocabulary
from data import GPTDatasetV1, split_at_document
from system.files import as_path
from tokenizer import END_OF_TEXT_ID, GPT2Tokenizer


@dataclass(frozen=True)
class Corpus:
    """The parts of a text that a run needs; ids are GPT-2's."""

    path: Path
    why: str  # this one
    text_sha256: str
    notes: list[str]  # on what was found in it
    num_replaced: int  # invalid sequences and NULs, read as U+FFFD
    train_ids: np.ndarray  # all of them, mapped from disk
    batches: Batches
    vocabulary: Vocabulary
    val_ids: Tensor  # (N,) int64
    masks_documents: bool
    cache_folders: list[Path]  # where notes about the text may be kept

    @property
    def is_predicted(self) -> np.ndarray:
        """Which of val_ids[1:] an evaluation is about, (N - 1,)."""
        return (self.val_ids[:-1].numpy() != END_OF_TEXT_ID) | (not self.masks_documents)

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

    def __str__(self) -> str:
        is_here = self.path.is_relative_to(Path.cwd())
        path = self.path.relative_to(Path.cwd()) if is_here else self.path
        lines = [
            f"text      {path}, {self.why}",
            f"{len(self.train_ids):,} tokens to train on, {len(self.val_ids):,} to validate on",
            *self.notes,
        ]
        if self.num_replaced:
            lines.append(f"{self.num_replaced:,} invalid sequences read as U+FFFD")
        if (num_shared := self.vocabulary.num_shared) > 1:
            lines.append(f"{num_shared:,} of GPT-2's tokens do not occur in it: they share one row")
        return "\n          ".join(lines)


def read_corpus(
    config: dict[str, Any], tokenizer: GPT2Tokenizer, *, share_rows: bool, order: str = NOW
) -> Corpus:
    """The corpus that the config asks for; `share_rows` allows a vocabulary that shares a row.

    The `order` of the batches is the one that a run began with.
    """
    sources = open_sources(
        config["data"],
        field=config["data_field"],
        errors=config["data_errors"],
        replace_invalid=config["replace_invalid_utf8"],
    )
    path = sources.paths[0]
    parents = [path.parent, as_path(config["output_dir"])]
    text = load_tokens(sources, cache_parents=parents)
    seq_len = config["seq_len"]
    train_ids, val_ids = split_at_document(text.ids, config["val_fraction"], seq_len=seq_len)
    val_ids = val_ids[: config["eval_tokens"]].astype(np.int64)
    return Corpus(
        path=path,
        why=sources.why,
        text_sha256=text.text_sha256,
        notes=lines_about(text.found, config["data_field"]),
        num_replaced=text.found["replaced"],
        train_ids=train_ids,
        batches=Batches(
            GPTDatasetV1(train_ids, None, seq_len, config["stride"]),
            config["batch_size"] * config["grad_accum_steps"],
            seed=config["seed"],
            order=order,
        ),
        vocabulary=choose_vocabulary(
            text.used_before(len(train_ids)), tokenizer.encoding.n_vocab, share_rows=share_rows
        ),
        val_ids=torch.from_numpy(val_ids),
        masks_documents=config.get("mask_documents", False),  # not in earlier files
        cache_folders=[parent / ".tokens" for parent in parents],
    )


def choose_vocabulary(used: np.ndarray, full_size: int, *, share_rows: bool) -> Vocabulary:
    """The compact vocabulary of the used tokens where that saves at least half of the rows."""
    compact = Vocabulary.of(used, full_size, also_used=[END_OF_TEXT_ID])
    return compact if share_rows and compact.size < full_size / 2 else Vocabulary.full(full_size)
