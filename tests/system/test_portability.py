"""A system without POSIX's modules, signals and calls, as Windows: training and writing work."""

import json

from tiny_run import CONFIG, REPOSITORY, prepare

WITHOUT_POSIX = """
import json, os, signal, sys
sys.path.insert(0, sys.argv[1])
import numpy, psutil, torch, tiktoken, tqdm, matplotlib.pyplot, requests  # have their own ways
import concurrent.futures, multiprocessing, subprocess, uuid
for name in ("fcntl", "resource", "termios", "pwd", "grp", "readline"):
    sys.modules[name] = None  # an import of it fails from here on
for name in ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGALRM", "SIGQUIT", "pthread_sigmask"):
    vars(signal).pop(name, None)
for name in (
    "pread", "pwrite", "sysconf", "confstr", "confstr_names", "getuid", "geteuid", "fork",
    "sched_getaffinity", "O_DIRECTORY", "O_NONBLOCK", "fchmod", "mkfifo", "getpgid", "killpg",
):
    vars(os).pop(name, None)  # paths stay as they are
from train import config, train
import export, generate
path = train({**config, **json.loads(sys.argv[2])})
generate.main(["--prompt=The", "--max-new-tokens=3", f"--checkpoint={path}"])
"""


def test_training_and_writing_need_no_modules_signals_and_calls_of_posix(tmp_path, run_python):
    prepare(tmp_path)
    config = json.dumps({**CONFIG, "num_epochs": 1})
    done = run_python("-c", WITHOUT_POSIX, REPOSITORY, config, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "final_trained_model.pt").exists()
    assert (tmp_path / "training_losses.png").exists()
