"""How a run shares processors with others: while there are too few, its idle threads sleep.

Between two parallel parts of a step, threads wait for each other by looking, which is fastest as
long as each has a processor. With too few of them, who looks keeps away who is looked for, and two
runs at once take longer than one after the other (docs/speed.md). GNU's OpenMP lets the waiting
sleep as soon as a process has more threads than there are processors, so some are started that do
nothing, and ended when there is room. No result depends on it; other OpenMPs take no notice.
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread

import psutil
import torch

PERIOD_SECONDS = 1.0
ENOUGH = 0.75  # of a processor for each thread
PARALLEL = 1 << 17  # numbers: an operation on so many is done in several threads


@contextmanager
def sharing_processors() -> Iterator[None]:
    """Inside, the threads of this process make room for others where there is too little."""
    num_threads, is_over = torch.get_num_threads(), Event()
    if num_threads > 1:  # one waits for none
        Thread(target=_watch, args=(num_threads, is_over), daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


def _watch(num_threads: int, is_over: Event) -> None:
    has_room, before = Event(), _clocks()
    has_room.set()
    while not is_over.wait(PERIOD_SECONDS):
        now = _clocks()
        seconds, ours, idle = (new - old for new, old in zip(now, before, strict=True))
        before = now
        if ours + idle >= ENOUGH * num_threads * seconds:
            has_room.set()
        elif has_room.is_set():
            has_room = Event()
            for _ in range((os.cpu_count() or 1) // num_threads + 1):
                Thread(target=_hold_threads, args=(has_room,), daemon=True).start()
    has_room.set()


def _clocks() -> tuple[float, float, float]:
    """Seconds that passed, that processors worked for this process, and that they had no work."""
    return time.monotonic(), time.process_time(), psutil.cpu_times().idle


def _hold_threads(has_room: Event) -> None:
    """Has OpenMP's threads of its own, which do nothing, until there is room again."""
    torch.zeros(PARALLEL).add_(1)
    has_room.wait()
