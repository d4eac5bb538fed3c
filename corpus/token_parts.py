"""Tokens that several machines make, each of a part of the files, and their use as one text's."""

import re
from argparse import ArgumentTypeError
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from corpus.known_files import KNOWN_NAME, KnownFiles
from corpus.listing import PART_NAME
from corpus.sources import Sources, opened
from corpus.token_cache import load_tokens
from corpus.token_shards import MANIFEST_NAME, Tokens, chained, read_cache
from system.command_line import Parser
from system.errors import DataError
from system.files import as_path
from system.process import StopSignals, log


def main(arguments: Sequence[str], config: dict[str, Any]) -> None:
    """What `data.py build` does; the config says how texts are read."""
    parser = Parser(
        prog="data.py build",
        description="Makes the tokens of a large text in parts, which several machines can share.",
    )
    parser.add_argument("data", metavar="PATH", nargs="+", help="what train.py takes as --data")
    parser.add_argument(
        "--part",
        metavar="NUMBER/TOTAL",
        type=part_of,
        default=(1, 1),
        help="which part of how many: 3/8",
    )
    parser.add_argument(
        "--into",
        metavar="FOLDER",
        type=as_path,
        default="tokens",
        help="where the parts lie: train.py takes it as --data",
    )
    options = parser.parse_args(arguments)
    number, total = options.part
    with StopSignals():
        tokens = build_part(opened(options.data, config), options.into, number=number, total=total)
    log(f"part {number} of {total}: {len(tokens.ids):,} tokens")
    log(f"next, when all are there: python train.py --data {options.into}")


def part_of(text: str) -> tuple[int, int]:
    """part_of("3/8") -> (3, 8)."""
    if not re.fullmatch(r"\d+/\d+", text):
        raise ArgumentTypeError(f"{text!r} is no part such as 3/8")
    number, total = map(int, text.split("/"))
    return number, total


def build_part(sources: Sources, folder: Path, *, number: int, total: int) -> Tokens:
    """Makes part `number`, from 1 on, of `total` in the folder; goes on with it, or finds it.

    The files of the sources are shared out in their order. Parts know nothing of each other.
    """
    if not 1 <= number <= total <= len(sources.paths):
        raise DataError(
            f"no part {number} of {total} ({len(sources.paths)} files): each part needs a file"
        )
    part = sources.part(number - 1, total)
    return load_tokens(part, cache_parents=[folder / name_of(number, total)])


def name_of(number: int, total: int) -> str:
    return f"part-{number:05}-of-{total:05}"


def read_parts(folder: Path) -> Tokens:
    """The tokens of all parts, as if they had been made at once; DataError if one is missing."""
    names = {path.name for path in folder.iterdir() if PART_NAME.fullmatch(path.name)}
    total = int(PART_NAME.fullmatch(max(names))[1])
    found = {
        name: finished_in(folder / name / ".tokens")
        for name in (name_of(number, total) for number in range(1, total + 1))
    }
    missing = [name for name, tokens in found.items() if tokens is None]
    if odd := [*missing, *sorted(names - {*found})]:
        raise DataError(
            f"parts that are not finished, or of another number ({folder}: {', '.join(odd[:3])}): "
            "make them with data.py build, or remove the others"
        )
    return chained(list(found.values()))


def finished_in(folder: Path) -> Tokens | None:
    """The tokens of a part: the cache there that was used last."""
    known = KnownFiles([folder / KNOWN_NAME])
    paths = [path for path in folder.glob(f"*/{MANIFEST_NAME}") if not path.parent.suffix]
    paths.sort(key=lambda path: path.stat().st_mtime_ns, reverse=True)
    tokens = next(filter(None, (read_cache(path.parent, known) for path in paths)), None)
    with suppress(OSError):
        known.save(folder / KNOWN_NAME)
    return tokens
