"""The texts that a config names, each in a part to train on and a part to validate on."""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from corpus import token_parts
from corpus.listing import is_in_parts
from corpus.notes import remembered
from corpus.sources import Sources, lines_about, opened
from corpus.split import Documents, Runs, SplicedIds, apart_from, as_bounds, from_bounds, split
from corpus.text import shown_path, validation_text_of
from corpus.token_build import VERSION
from corpus.token_cache import Tokens, load_tokens
from system.files import as_path


@dataclass(frozen=True, eq=False)
class Text:
    """A text that a config names: where it lies, its tokens and its documents."""

    sources: Sources
    tokens: Tokens
    has_hashes: bool

    @cached_property
    def documents(self) -> Documents:
        hashes = self.tokens.document_hashes if self.has_hashes else None
        return Documents.of(self.tokens.ids, self.tokens.document_ends, hashes)

    @property
    def identity(self) -> list[Any]:
        """What its tokens and documents depend on."""
        tokens = self.tokens.text_sha256, len(self.tokens.ids)
        return [VERSION, self.has_hashes, *tokens, *self.sources.recipe()]

    @property
    def path(self) -> Path:
        """Of its first file."""
        return self.sources.paths[0]

    def __str__(self) -> str:
        others = len(self.sources.paths) - 1
        return shown_path(self.path) + (f" and {others:,} more" if others else "")


@dataclass(frozen=True, eq=False)
class Parts:
    """What a run trains on and what it validates on."""

    texts: list[Text]
    weights: list[float]  # of the texts of a mixture; none: they are joined to one
    val_texts: list[Text]  # none: the texts are split
    train: list[Runs]  # of each text
    val: list[Runs]

    def training_rows(self) -> list[SplicedIds]:
        """The ids of each text of a mixture, or of all joined to one."""
        groups = [[part] for part in self.train] if self.weights else [self.train]
        return [SplicedIds.of_texts(group) for group in groups]

    def validation_ids(self, num_tokens: int) -> np.ndarray:
        """So many ids at most: the first ones of each part, by the weights or by the sizes."""
        is_weighted = self.weights and not self.val_texts
        shares = self.weights if is_weighted else [len(part) for part in self.val]
        wanted = [round(num_tokens * share / (sum(shares) or 1)) for share in shares]
        firsts = [
            SplicedIds.of_texts([part])[:count]
            for part, count in zip(self.val, wanted, strict=True)
        ]
        return SplicedIds.of_texts([Runs.all_of(ids) for ids in firsts])[:]

    @property
    def sha256(self) -> str:
        """Of a single text its own, else a hash of all that decides on the batches."""
        if len(self.texts) == 1 and not self.val_texts:
            return self.texts[0].tokens.text_sha256
        shares = [weight / sum(self.weights) for weight in self.weights]
        named = [
            [text.tokens.text_sha256 for text in texts] for texts in (self.texts, self.val_texts)
        ]
        return hashlib.sha256(json.dumps([*named, shares]).encode()).hexdigest()

    def used_tokens(self) -> np.ndarray:
        """The tokens that occur up to where training ends in each text; no id is read for it."""
        ends = [int(part.stops[-1]) if len(part) else 0 for part in self.train]
        used = [text.tokens.used_before(end) for text, end in zip(self.texts, ends, strict=True)]
        return np.concatenate(used)

    def notes(self, field: str) -> list[str]:
        """What was found and what becomes of it, line by line."""
        lines = lines_about(self.texts[0].tokens.found, field)
        for text in self.texts[1:]:
            lines += [f"{text}: {line}" for line in lines_about(text.tokens.found, field)]
        if self.weights:
            of_each = zip(self.weights, self.texts, strict=True)
            shares = [f"{weight / sum(self.weights):.1%} {text}" for weight, text in of_each]
            lines.append(f"mixture of {', '.join(shares)}: an epoch is as long as all of them")
        elif len(self.texts) > 1:
            lines.append(f"joined with {', '.join(map(str, self.texts[1:]))}")
        if self.val_texts:
            num_left_out = sum(len(text.tokens.ids) for text in self.texts)
            num_left_out -= sum(map(len, self.train))
            lines.append(
                f"validation on {', '.join(map(str, self.val_texts))}; {num_left_out:,} tokens not "
                "trained on: the same documents"
            )
        return lines


def read_parts(config: dict[str, Any], *, is_earlier: bool) -> Parts:
    """The parts of the texts that the config names.

    `is_earlier`: as versions read them that took no copies of a document for the same.
    """
    data, val_data = config["data"], config.get("val_data", "")
    named = list(data) if isinstance(data, dict | list) else [data]
    sources, val_sources = [opened(name, config) for name in named], []
    if val_data:
        val_sources = [opened(val_data, config)]
    elif len(named) == len(sources[0].paths) == 1 and not is_earlier:
        val_sources = [opened(name, config) for name in validation_text_of(sources[0].paths[0])]
    num_texts = len(sources) + len(val_sources)
    texts, val_texts = (
        [read_text(each, config, num_texts=num_texts, is_earlier=is_earlier) for each in group]
        for group in (sources, val_sources)
    )
    train = from_bounds(training_bounds(texts, val_texts, config), [of.tokens.ids for of in texts])
    val = [part.rest for part in train]
    if val_texts:
        val = [Runs.all_of(text.tokens.ids) for text in val_texts]
    return Parts(texts, [*data.values()] if isinstance(data, dict) else [], val_texts, train, val)


def training_bounds(texts: list[Text], val_texts: list[Text], config: dict[str, Any]) -> np.ndarray:
    """What of the texts is trained on, as `as_bounds` has it, noted beside the tokens."""

    def bounds() -> np.ndarray:
        documents, held_out = ([text.documents for text in of] for of in (texts, val_texts))
        if held_out:
            return as_bounds(apart_from(documents, held_out))
        return as_bounds(split(documents, config["val_fraction"], seq_len=config["seq_len"]))

    named = [[text.identity for text in of] for of in (texts, val_texts)]
    key = json.dumps([*named, config["val_fraction"], config["seq_len"]])
    paths = [folder / "splits.bin" for folder in cache_folders(texts[0].path, config)]
    return remembered(paths, hashlib.sha256(key.encode()).hexdigest(), bounds)


def read_text(
    sources: Sources, config: dict[str, Any], *, num_texts: int, is_earlier: bool
) -> Text:
    """The text with its documents, one of so many that are read in turn."""
    path = sources.paths[0]
    if is_in_parts(path):
        tokens = token_parts.read_parts(path)
    else:
        parents = [folder.parent for folder in cache_folders(path, config)]
        tokens = load_tokens(sources, cache_parents=parents, num_texts=num_texts)
    return Text(sources, tokens, has_hashes=not is_earlier)


def cache_folders(path: Path, config: dict[str, Any]) -> list[Path]:
    """Where what is found out about a text may be kept, the best place first."""
    return [parent / ".tokens" for parent in (path.parent, as_path(config["output_dir"]))]
