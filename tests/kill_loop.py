"""Kills real trainings with SIGKILL at random times, resumes them, and compares the last bit.

PYTHONPATH=. python tests/kill_loop.py --kills 10000

Torch is imported once; each life of a training is a fork of this process, which itself never
computes anything. The log of batches is appended to by every life, so it shows what each step read,
how often it was repeated, and how much work a kill has cost. At last, a process ends ahead of each
single file operation of a save.
"""

import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # what an optimizer imports late would be imported by every life
from faulty_disk import counted_operations, newest_step, next_generation
from tiny_run import CONFIG, fingerprint, prepare, train_quickly, without_plots

from system import files
from tokenizer import GPT2Tokenizer
from training.run import Run

LOG_NAME = "batches.log"
CHANGES: dict[str, Any] = {}  # of the tiny config


def get_ready() -> None:
    """Prepares this process for its forks: each update first notes its step and its windows."""
    torch.set_num_threads(1)  # before anything is computed, so that a fork can compute
    GPT2Tokenizer()
    without_plots()
    update = Run.update

    def logged(run: Run) -> None:
        indices = ",".join(map(str, run.corpus.batches.window_indices(run.step)))
        descriptor = os.open(LOG_NAME, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.write(descriptor, f"{run.step} {indices}\n".encode())
        os.close(descriptor)
        update(run)

    Run.update = logged


def fork(life: Callable[[], Any]) -> int:
    """The process id of a child that does `life` in silence, and exits with 0 if it could."""
    child = os.fork()
    if child:
        return child
    output = os.open("output.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    code = 1
    try:
        life()
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException as error:
        print(f"life ended: {error!r}", flush=True)
    finally:
        os._exit(code)


def resumable_life() -> None:
    train_quickly(resume=any(Path().glob("model_checkpoint_step_*.pt")), **CHANGES)


def one_life(deadline: float = 600) -> bool:
    """Whether a life came to its end before it was killed."""
    child = fork(resumable_life)
    end = time.monotonic() + deadline
    while time.monotonic() < end:
        finished, status = os.waitpid(child, os.WNOHANG)
        if finished:
            assert status == 0, Path("output.log").read_text()[-2000:]
            return True
        time.sleep(0.001)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def batches_read(reference: dict[int, str] | None = None) -> tuple[dict[int, str], int]:
    """What each step read, and the most updates that a kill has cost; repeats must agree."""
    read: dict[int, str] = {}
    most_lost, previous = 0, -1
    for line in Path(LOG_NAME).read_text().splitlines():
        step, indices = line.split()
        assert read.setdefault(int(step), indices) == indices, f"step {step} read other windows"
        most_lost = max(most_lost, previous + 1 - int(step))
        previous = int(step)
    assert reference in (None, read), "other batches than the run that nobody killed"
    return read, most_lost


def end_of_run() -> dict[str, str]:
    """What a finished run leaves: the lines of its history, hashes of models and checkpoints."""
    assert not list(Path().glob(".*part")), "temporary files are left"
    paths = sorted(Path().glob("*.pt"))
    assert len(paths) == CONFIG["keep_checkpoints"] + 2, paths
    _, *rows = map(json.loads, Path("history.jsonl").read_text().splitlines())
    history = {"lines": str([(row["step"], row["tokens"], row["val_loss"]) for row in rows])}
    adapters = {str(path): path.read_bytes() for path in Path().glob("adapter/*.json")}
    return history | adapters | {path.name: fingerprint(path) for path in paths}


def random_kills(num_kills: int, seed: int) -> dict[str, int]:
    """Kills so many lives; AssertionError at the first run that ends differently."""
    chance, home = random.Random(seed), Path(tempfile.mkdtemp())
    prepare(home / "reference")
    start = time.monotonic()
    assert one_life()
    seconds = time.monotonic() - start
    expected, (batches, _) = end_of_run(), batches_read()
    kills, lost = 0, 0
    while kills < num_kills:
        prepare(home / "killed")
        longest = 0.5 * seconds
        while not one_life(chance.uniform(0, longest)):
            kills += 1
            longest *= 1.05  # so that a run ends on a machine that has become slower, too
        found = end_of_run()
        assert found == expected, f"another end after {kills} kills: {found}"
        lost = max(lost, batches_read(batches)[1])
        os.chdir(home)
        shutil.rmtree(home / "killed")
    shutil.rmtree(home)
    assert lost <= CONFIG["save_freq"], f"a kill has cost {lost} updates"
    return {"kills": kills, "most_updates_lost": lost}


def kills_within_a_save() -> dict[str, int]:
    """The step that is found after an end before each operation of a save of step 2."""
    found: dict[str, int] = {"old": 0, "new": 0}
    number, is_finished = 0, False
    while not is_finished:
        os.chdir(tempfile.mkdtemp())
        next_generation(Path(), 1)

        def save(last: int = number) -> None:
            with counted_operations(lambda n: os._exit(1) if n == last else None):
                next_generation(Path(), 2)

        is_finished = os.waitpid(fork(save), 0)[1] == 0
        if not is_finished:
            found["old" if newest_step(Path()) == 1 else "new"] += 1
            files.sweep_parts(Path())
            assert not list(Path().glob(".*part"))
            number += 1
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--changes", type=json.loads, default={})
    options = parser.parse_args()
    CHANGES.update(options.changes)
    get_ready()
    within = {} if CHANGES else kills_within_a_save()
    print(json.dumps(random_kills(options.kills, options.seed) | within))


if __name__ == "__main__":
    main()
