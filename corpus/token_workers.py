"""Text to ids on all cores: processes that import nothing of ours but the tokenizer.

Each is `python -m corpus.token_workers` with pipes, for multiprocessing would run the caller's main
script again. One that has lost its caller meets the end of its pipe and ends.
"""

import os
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import BinaryIO

import numpy as np

from corpus.fast_tokenizer import FastTokenizer
from corpus.pieces import Piece
from system.errors import ProcessesError
from tokenizer import END_OF_TEXT, GPT2Tokenizer

PROJECT = Path(__file__).parent.parent
HEADER_BYTES = 9  # length, and whether END_OF_TEXT separates
QUEUED_PER_WORKER = 4  # so that none waits while another one has a slow batch


def encode(tokenizer: GPT2Tokenizer | FastTokenizer, batch: Piece) -> np.ndarray:
    """The ids of a batch, (N,) little-endian uint16."""
    special = {END_OF_TEXT} if batch.has_separators else frozenset()
    return tokenizer.encode_to_numpy(batch.text, special).astype("<u2")


def encoded(batches: Iterable[Piece], num_workers: int) -> Iterator[tuple[Piece, np.ndarray]]:
    """Each batch with its ids, in order; with no workers all is done here."""
    if not num_workers:
        tokenizer = GPT2Tokenizer()
        yield from ((batch, encode(tokenizer, batch)) for batch in batches)
        return
    with ExitStack() as stack:
        threads = stack.enter_context(ThreadPoolExecutor(num_workers))
        stack.callback(threads.shutdown, wait=False, cancel_futures=True)
        idle: queue.SimpleQueue[Worker] = queue.SimpleQueue()
        for _ in range(num_workers):
            idle.put(worker := Worker())
            stack.callback(worker.end)
        pending = deque()
        for batch in batches:
            pending.append((batch, threads.submit(encode_in_one, idle, batch)))
            if len(pending) > QUEUED_PER_WORKER * num_workers:
                done, ids = pending.popleft()
                yield done, ids.result()
        yield from ((done, ids.result()) for done, ids in pending)


def encode_in_one(idle: "queue.SimpleQueue[Worker]", batch: Piece) -> np.ndarray:
    """The ids of a batch, made by a worker that has nothing else to do."""
    worker = idle.get()
    try:
        return worker.encode(batch)
    finally:
        idle.put(worker)


class Worker:
    """A process that tokenizes, and the pipes to it."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "corpus.token_workers"],
            cwd=PROJECT,  # where `-m` looks first, and not where the caller's files are
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the one that waits for it
        )

    def encode(self, batch: Piece) -> np.ndarray:
        """The ids of a batch; ProcessesError if the process is gone."""
        text = batch.text.encode("utf-8", "surrogatepass")
        header = len(text).to_bytes(8, "little") + bytes([batch.has_separators])
        with suppress(OSError):  # what the process is worth shows in the answer
            self.process.stdin.write(header + text)
            self.process.stdin.flush()
        num_bytes = int.from_bytes(answer := self.process.stdout.read(8), "little")
        ids = self.process.stdout.read(num_bytes)
        if len(answer) < 8 or len(ids) < num_bytes:
            raise ProcessesError(
                f"a process that tokenizes is gone (exit code {self.process.wait()}): "
                "start again, and it goes on from there; if memory was short, free some"
            )
        return np.frombuffer(ids, "<u2")

    def end(self) -> None:
        """Ends the process at once, whatever it does."""
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # what the pipe still held
                pipe.close()


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers batches with ids until no more come."""
    tokenizer = FastTokenizer()
    for header in iter(partial(requests.read, HEADER_BYTES), b""):
        text = requests.read(int.from_bytes(header[:8], "little"))
        batch = Piece(text.decode("utf-8", "surrogatepass"), bool(header[8]))
        ids = encode(tokenizer, batch)
        answers.write(ids.nbytes.to_bytes(8, "little") + ids.tobytes())
        answers.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # on Windows Ctrl-C reaches all processes
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except BrokenPipeError:  # nobody is there for the answer
        os._exit(0)
