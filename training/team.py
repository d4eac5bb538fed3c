"""Several processes that train together: how they meet, agree, divide the rows, and end.

Numbers travel through torch.distributed. Words travel through its store: what each process has
before the first step, who has failed and with which line, and that the first process is done.
"""

import atexit
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import timedelta
from itertools import count
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from system.errors import ProcessesError
from system.process import STOP_SIGNALS, Stopped, exit_code_of, last_words, note
from training.processes import Processes

TIMEOUT = timedelta(minutes=4)  # of one exchange: a process that is silent for longer is lost
WATCH_SECONDS = 0.25
GRACE_SECONDS = 3.0  # that the first process has to say how it ends
MEETINGS = count()
CHANNELS: list[dist.ProcessGroup] = []  # that were closed
LOST = "another process has ended, or does not answer: python train.py --resume goes on"


class Team(Processes):
    """The processes of one training, seen from one of them, which is number `rank` of `size`."""

    is_launched = True

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self.rank, self.size, self.is_first = rank, size, rank == 0
        self.local_rank = int(os.environ.get("LOCAL_RANK", rank))
        self.num_local = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        start = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.is_started_again = start != "0"
        self.may_start_again = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
        # A launcher's store outlives the processes, and a process may train more than once.
        meeting = f"start {start}, meeting {next(MEETINGS)}, "
        self._numbers = dist.PrefixStore(meeting + "numbers", store)
        self._words = dist.PrefixStore(meeting + "words", store.clone())
        self._num_gathered, self._trainings = 0, count()
        self._ending, self._is_done = threading.Lock(), threading.Event()

    def __str__(self) -> str:
        return f"{self.size} processes, this one " * (self.size > 1)

    @classmethod
    @contextmanager
    def met(cls) -> Iterator["Team"]:
        """The team, once all have come. The first process alone prints; its exit ends the rest."""
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        try:
            team = cls(*next(dist.rendezvous("env://", timeout=TIMEOUT)))
        except (RuntimeError, ValueError, OSError) as error:
            cause = " ".join(str(error).split())[:200]
            raise ProcessesError(
                f"the processes cannot meet ({place}: {cause}): choose a free MASTER_PORT, and "
                "start all of them with torchrun"
            ) from error
        streams = sys.stdout, sys.stderr
        if not team.is_first:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 until the end
        watcher = threading.Thread(target=team._watch, daemon=True)
        watcher.start()
        try:
            yield team
            team._is_done.set()
            watcher.join()  # Python must not end while a thread is inside torch
        except (Exception, Stopped, KeyboardInterrupt) as error:
            sys.stdout, sys.stderr = streams
            error = ProcessesError(LOST) if is_channel_error(error) else error
            team._leave(error)
            raise error
        finally:
            sys.stdout, sys.stderr = streams

    def by_first(self, context: AbstractContextManager) -> AbstractContextManager:
        return context if self.is_first else nullcontext()

    def start(self, device: str) -> str:
        is_cuda = device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())
        device = f"cuda:{self.local_rank}" if is_cuda else "cpu"  # there are no channels of MPS
        if is_cuda and self.local_rank >= torch.cuda.device_count():
            raise ProcessesError(
                f"more processes than GPUs ({self.num_local} here, "
                f"{torch.cuda.device_count()} GPUs): lower --nproc_per_node"
            )
        if is_cuda:
            torch.cuda.set_device(device)
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if is_cuda else "gloo",
            store=dist.PrefixStore(f"training {next(self._trainings)}", self._numbers),
            rank=self.rank,
            world_size=self.size,
            timeout=TIMEOUT,
            device_id=torch.device(device) if is_cuda else None,
        )
        return device

    def sum(self, value: Tensor) -> Tensor:
        dist.all_reduce(value := value.clone())
        return value

    def highest(self, number: int) -> int:
        value = torch.tensor(number)
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return int(value)

    agree = highest

    def gather(self, value: Any) -> list[Any]:
        self._num_gathered += 1
        keys = [f"gather {self._num_gathered} {rank}" for rank in range(self.size)]
        self._words.set(keys[self.rank], json.dumps(value))
        end = time.monotonic() + TIMEOUT.total_seconds()
        while not self._words.check(keys):
            if time.monotonic() > end:
                raise ProcessesError(LOST)
            time.sleep(0.01)
        return [json.loads(self._words.get(key)) for key in keys]

    def part(self) -> None:
        # Were DDP's the last reference, it would wait for gloo's thread, which waits for Python.
        CHANNELS.append(dist.group.WORLD)
        dist.destroy_process_group()

    def _watch(self) -> None:
        """Ends this process when another one has failed: to wait for it would be in vain."""
        with suppress(RuntimeError):  # whoever kept the store is gone
            while not self._is_done.wait(WATCH_SECONDS):
                if not self.is_first and self._words.check(["over"]):
                    os._exit(int(self._words.get("over")))
                if self.is_first and self._words.check(["failure"]):
                    code, line = json.loads(self._words.get("failure"))
                    self._ending.acquire()  # for good: there is one end
                    note(line)
                    self._end(code)

    def _end(self, code: int) -> None:
        """Ends all processes."""
        self._words.set("over", str(code))
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)

    def _leave(self, error: BaseException) -> None:
        """Sees to it that one line says how the processes end, whichever of them fails."""
        code = exit_code_of(error) or 1  # a bug has none
        if self.is_first:  # its line comes as that of any command, and then the end
            self._ending.acquire()
            atexit.register(self._end, code)
            return
        for number in STOP_SIGNALS:  # a launcher sends one as soon as the first of them is gone
            signal.signal(number, signal.SIG_IGN)
        is_common = isinstance(error, Stopped) and error.is_held  # the first process is saving
        with suppress(RuntimeError):
            if not is_common:
                kind = f" {type(error).__name__}" * (code == 1)
                line = f"{last_words(error)} (process {self.rank} of {self.size}{kind})"
                failure = json.dumps([code, line])
                is_ours = self._words.compare_set("failure", "", failure) == failure.encode()
            time.sleep(TIMEOUT.total_seconds() if is_common else GRACE_SECONDS)
            if is_common or not is_ours:
                os._exit(code)


def is_channel_error(error: BaseException) -> bool:
    """Whether an exchange has failed, for which gloo has no type of its own."""
    said = str(error)
    is_named = isinstance(error, RuntimeError) and ("gloo" in said or "NCCL" in said)
    return is_named or isinstance(error, dist.DistError)
