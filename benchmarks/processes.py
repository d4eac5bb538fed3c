"""Training by several processes of one thread each, beside one process with all the threads."""

import json
import os
import socket
import subprocess
import sys
from dataclasses import asdict, replace
from functools import partial

import torch

from benchmarks.train_peers import CONFIG, learned, our_model, ours
from benchmarks.turns import Contestant, Rows, Steps, Task, take_turns
from corpus.text import PROJECT
from system.machine import Machine, num_cores
from training.learner import Learner
from training.parallel import joined
from training.processes import Processes


class Apart(Processes):
    """Processes that compute their shares of the rows and exchange nothing."""

    def __init__(self, size: int) -> None:
        self.size = size


def rows_of(task: Task) -> Rows:
    """A row for one process and for as many as there are cores, with and without exchange."""
    size = num_cores()
    task = replace(task, is_shared=True)
    together, apart = (f"{size} processes, 1 thread each{rest}" for rest in ("", ", no exchange"))
    contestants = [
        Contestant(f"1 process, {size} threads", task, ours),
        Contestant(together, task, partial(first_of, size=size, is_joined=True)),
        Contestant(apart, task, partial(first_of, size=size, is_joined=False)),
    ]
    rows = {result.name: result.numbers() for result in take_turns(contestants)}
    speeds = {name: row["tokens/s"] for name, row in rows.items()}
    for name in rows:
        rows[name]["of one process"] = speeds[name] / speeds[contestants[0].name]
    if speeds.keys() >= {together, apart}:
        rows[together]["communication"] = 1 - speeds[together] / speeds[apart]
    return rows


def first_of(task: Task, machine: Machine, *, size: int, is_joined: bool) -> Steps:
    """The steps of the first process; the others make each step with it."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    options = asdict(task) | {"nanogpt": None}
    others = [
        subprocess.Popen(
            [sys.executable, "-m", __name__, json.dumps([options, rank, size, port, is_joined])],
            stdin=subprocess.PIPE,
            cwd=PROJECT,
            text=True,
        )
        for rank in range(1, size)
    ]
    steps = steps_of(task, machine, [0, size, port], is_joined=is_joined)
    while True:
        for other in others:
            print(file=other.stdin, flush=True)
        yield next(steps)


def steps_of(task: Task, machine: Machine, place: list[int], *, is_joined: bool) -> Steps:
    """The steps of one process: rank, number of processes and port are its place."""
    torch.set_num_threads(1)
    names = ("RANK", "WORLD_SIZE", "MASTER_PORT")
    environment = dict(zip(names, map(str, place), strict=True)) | {"MASTER_ADDR": "127.0.0.1"}
    os.environ.update(environment if is_joined else {})
    config = {**CONFIG, **asdict(task), "compile": "off"}
    num_shared = task.vocab_size - task.num_rows + 1
    with joined() as team:
        team.start("cpu")
        team = team if is_joined else Apart(place[1])
        learner = Learner(our_model(task), machine, config, num_shared=num_shared, team=team)
        yield from learned(learner, task, task.batch)


def main() -> None:
    options, *place, is_joined = json.loads(sys.argv[1])
    task = Task(**options)
    steps = steps_of(task, task.machine(), place, is_joined=is_joined)
    try:
        for _ in sys.stdin:
            next(steps)
    finally:
        os._exit(0)  # the first process has ended, and nobody is there to say goodbye to


if __name__ == "__main__":
    main()
