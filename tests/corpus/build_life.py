"""Builds a token cache in the working folder, and is killed or stopped on the way.

build_life.py 40              in 40 processes, killed at a later event each; the last one ends
build_life.py workers [2]     with worker processes, stopped by signal 2 at its third write
build_life.py timed 0.2       with worker processes, killed after so many seconds of building
"""

import json
import os
import random
import signal
import sys
import threading
from pathlib import Path

from corpus import pieces, text, token_build, token_cache, token_workers
from corpus.sources import open_sources
from system.process import StopSignals, run_command
from tokenizer import END_OF_TEXT

TEXT_NAME = "data.txt"
CHANGES = [
    (token_build, "MAX_SHARD_TOKENS", 1500),
    (token_build, "BATCHES_PER_SYNC", 3),
    (pieces, "BATCH_CHARS", 400),
    (text, "BLOCK_BYTES", 400),
]


def write_text(folder: Path) -> str:
    """Puts a text of some 5,000 tokens there, always the same."""
    choose = random.Random(0).choices
    words = [
        "Once",
        "upon",
        "a",
        "time,",
        "the",
        "caf\xe9",
        "\u4f60\u597d",
        "\U0001f600",
        "12",
        "\n",
    ]
    stories = [" ".join(choose(words, k=30)) for _ in range(100)]
    content = END_OF_TEXT.join([*stories, "", "", "x" * 999])
    (folder / TEXT_NAME).write_text(content, encoding="utf-8")
    return content


def folder_of(place: Path) -> Path:
    """The only finished cache there."""
    (folder,) = (path for path in (place / ".tokens").iterdir() if len(path.name) == 32)
    return folder


def build() -> None:
    with StopSignals():
        token_cache.load_tokens(open_sources(TEXT_NAME), cache_parents=[Path()])


def before_each(module: object, name: str, act: callable) -> None:
    """Calls `act` before each call of a function."""
    original = getattr(module, name)

    def acting(*arguments: object, **options: object) -> object:
        act()
        return original(*arguments, **options)

    setattr(module, name, acting)


def die_at(event: int) -> None:
    """Builds, until the process kills itself before the event of that number."""
    left = iter(range(event))

    def count() -> None:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)

    for module, name in [
        (token_build, "append_ids"),
        (token_build, "seal"),
        (os, "fsync"),
        (os, "replace"),
        (os, "unlink"),
    ]:
        before_each(module, name, count)
    build()
    os._exit(0)


def lives() -> None:
    """Builds in processes that die one after the other, until one comes to the end."""
    encoded, num_kills, chance = Path("encoded.log"), 0, random.Random(0)
    num_batches = len(list(pieces.in_batches(open_sources(TEXT_NAME).pieces())))

    def note_batch() -> None:
        with encoded.open("a") as file:
            file.write("x")

    before_each(token_workers, "encode", note_batch)
    while True:
        event = chance.randint(4, 14) + num_kills // 2  # the end has to come, too
        if (child := os.fork()) == 0:
            die_at(event)
        if os.waitpid(child, 0)[1] == 0:
            break
        num_kills += 1
    num_encoded = encoded.stat().st_size
    print(json.dumps({"kills": num_kills, "encoded": num_encoded, "batches": num_batches}))


def main() -> None:
    for place, name, value in CHANGES:
        setattr(place, name, value)
    how, *values = sys.argv[1:]
    if how == "kills":
        lives()
        return
    if how != "calm":
        token_build.FEW_BATCHES, token_build.num_cores = 0, lambda: 2
    if how == "timed":
        kill = (os.getpid(), signal.SIGKILL)
        before_each(token_cache, "build", threading.Timer(float(values[0]), os.kill, kill).start)
    elif values:
        left = iter(range(2))

        def stop() -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), int(values[0]))

        before_each(token_build, "append_ids", stop)
    run_command(build)


if __name__ == "__main__":
    main()
