"""Tokens that several machines have made, each of a part of the files, as those of one text."""

import re
from contextlib import suppress
from pathlib import Path

from corpus.known_files import KNOWN_NAME, KnownFiles
from corpus.token_shards import Tokens, chained, read_cache
from system.errors import DataError

PART_NAME = re.compile(r"part-\d{5}-of-(\d{5})")


def is_in_parts(folder: Path) -> bool:
    """Whether `token_cache.build_part` has filled the folder."""
    return folder.is_dir() and any(PART_NAME.fullmatch(path.name) for path in folder.iterdir())


def read_parts(folder: Path) -> Tokens:
    """The tokens of all parts, as if they had been made at once; DataError if one is missing."""
    names = sorted(path.name for path in folder.iterdir() if PART_NAME.fullmatch(path.name))
    total = int(PART_NAME.fullmatch(names[-1])[1])
    wanted = [f"part-{number:05}-of-{total:05}" for number in range(1, total + 1)]
    found = {name: finished_in(folder / name / ".tokens") for name in wanted}
    missing = [name for name, tokens in found.items() if tokens is None]
    if missing or names != wanted:
        first = ", ".join([*missing, *sorted({*names} - {*wanted})][:3])
        raise DataError(
            f"parts that are not finished, or of another number ({folder}: {first}): "
            "make them, or remove the others"
        )
    return chained(list(found.values()))


def finished_in(folder: Path) -> Tokens | None:
    """The tokens of a part: the cache there that was used last."""
    known = KnownFiles([folder / KNOWN_NAME])
    paths = [path for path in folder.glob("*/manifest.json") if not path.parent.suffix]
    paths.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    tokens = next(filter(None, (read_cache(path.parent, known) for path in paths)), None)
    with suppress(OSError):
        known.save(folder / KNOWN_NAME)
    return tokens
