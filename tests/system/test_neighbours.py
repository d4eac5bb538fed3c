"""Processes that share processors: who has too few sleeps while it waits, and computes the same."""

import threading

import pytest
import torch
from waiting import wait_until

from system import neighbours
from system.neighbours import sharing_processors


@pytest.fixture
def clocks(monkeypatch):
    """Three clocks that go on as they are told, and a watcher that looks whenever it may."""
    now, rates = [0.0, 0.0, 0.0], [1.0, 2.0, 0.0]  # seconds, ours, idle
    looked = threading.Semaphore(0)

    def read() -> tuple[float, ...]:
        now[:] = [time + rate for time, rate in zip(now, rates, strict=True)]
        looked.release()
        return tuple(now)

    def look(count: int = 3) -> None:
        for _ in range(count):
            assert looked.acquire(timeout=60)

    monkeypatch.setattr(neighbours, "_clocks", read)
    monkeypatch.setattr(neighbours, "PERIOD_SECONDS", 0.01)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    return rates, look


@pytest.fixture
def holders(monkeypatch):
    """The threads that hold idle ones."""
    alive = []

    def hold(has_room: threading.Event) -> None:
        alive.append(has_room)
        has_room.wait()
        alive.remove(has_room)

    monkeypatch.setattr(neighbours, "_hold_threads", hold)
    return alive


def test_threads_are_held_while_there_is_too_little_room(clocks, holders):
    rates, look = clocks
    with sharing_processors():
        look()
        assert holders == []
        rates[:] = 1.0, 0.8, 1.1  # a pause of ours leaves processors idle
        look()
        assert holders == []
        rates[:] = 1.0, 1.0, 0.1
        wait_until(lambda: holders)
        look()
        assert len(set(map(id, holders))) == 1  # of one crowded time
        rates[:] = 1.0, 2.0, 0.0
        wait_until(lambda: not holders)
        rates[:] = 1.0, 0.5, 0.0
        wait_until(lambda: holders)
    wait_until(lambda: not holders)


def test_one_thread_waits_for_none(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    before = threading.active_count()
    with sharing_processors():
        assert threading.active_count() == before


def test_results_do_not_depend_on_it():
    torch.set_num_threads(2)
    try:
        x = torch.rand(300, 1000, generator=torch.Generator().manual_seed(0))
        before, has_room = (x @ x.T, x.softmax(-1)), threading.Event()
        holder = threading.Thread(target=neighbours._hold_threads, args=(has_room,))
        holder.start()
        after = x @ x.T, x.softmax(-1)
        has_room.set()
        holder.join()
        assert all(map(torch.equal, before, after))
    finally:
        torch.set_num_threads(1)
