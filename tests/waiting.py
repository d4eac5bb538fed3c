"""Waits for what other threads and processes do, however long a loaded machine takes for it."""

import time
from collections.abc import Callable


def wait_until(is_true: Callable[[], bool]) -> None:
    for _ in range(6000):
        if is_true():
            return
        time.sleep(0.01)
    raise AssertionError("it never came")
