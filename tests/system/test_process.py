"""How a command ends and what it says: signals, streams, exit codes."""

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from system.errors import ConfigError, UserError
from system.process import Stopped, StopSignals, log, run_command, warn

ROOT = Path(__file__).parent.parent.parent
SIGNALS = """
import os, signal, sys
from system.process import Stopped, StopSignals
number = getattr(signal, sys.argv[1])
before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
try:
    with StopSignals() as signals:
        signals.check()
        if "held" in sys.argv:
            signals.hold()
        os.kill(os.getpid(), number)
        print("went on", flush=True)
        if "twice" in sys.argv:
            os.kill(os.getpid(), number)
        signals.check()
except Stopped as stopped:
    print("stopped", stopped, stopped.exit_code)
after = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
print("restored" if after == before else "changed")
"""
MANY_LINES = """
from system import process
def main():
    for number in range(100_000):
        print(number)
process.run_command(main)
"""
FAILS = """
from system import errors, process
def main():
    raise errors.ConfigError("nobody reads why")
process.run_command(main)
"""
LOG_THEN_WORK = """
from system import process
from pathlib import Path
def main():
    for number in range(10):
        process.log("a report")
    Path("work is done").touch()
process.run_command(main)
"""


@pytest.mark.parametrize(
    ("arguments", "code", "printed"),
    [
        (["SIGTERM"], 0, ["stopped by SIGTERM 143", "restored"]),
        (["SIGINT", "held"], 0, ["went on", "stopped by Ctrl-C 130", "restored"]),
        (["SIGHUP", "held", "twice"], 143, ["went on"]),
    ],
    ids=["at once", "held until asked for", "the second ends the process"],
)
def test_a_signal_stops_the_process(tmp_path, run_python, arguments, code, printed):
    result = run_python("-c", SIGNALS, *arguments, folder=tmp_path)
    assert (result.stdout.splitlines(), result.returncode) == (printed, code), result.stderr


def test_in_another_thread_the_signals_stay_as_they_are():
    numbers = (signal.SIGINT, signal.SIGTERM)
    handlers = [signal.getsignal(number) for number in numbers]
    seen = []

    def work() -> None:
        with StopSignals() as signals, signals.interruptible():
            seen.extend(signal.getsignal(number) for number in numbers)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == handlers


def test_at_a_prompt_the_second_signal_ends_the_call_and_not_the_process(monkeypatch):
    monkeypatch.setattr(sys, "ps1", ">>> ", raising=False)
    with StopSignals() as signals:
        signals.hold()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_notebooks_stream_takes_a_command_and_a_closed_one_is_no_error(monkeypatch):
    stream = io.StringIO()  # it has no `reconfigure` and no file
    monkeypatch.setattr(sys, "stdout", stream)
    for _ in range(2):
        run_command(lambda: log("雪"))
    assert stream.getvalue() == "雪\n雪\n"
    with pytest.raises(SystemExit) as left:
        run_command(lambda: print(1, file=NoReader()))
    assert left.value.code == 0
    stream.close()
    log("nobody hears it")
    run_command(lambda: print("nor this"))
    sys.stdout.close()  # what stands in for the closed one


class NoReader(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError


def test_a_line_reaches_a_stream_that_lacks_its_letters():
    written = io.BytesIO()
    with contextlib.redirect_stderr(io.TextIOWrapper(written, encoding="ascii")):
        warn("no 雪")
        assert written.getvalue() == b"warning: no \\u96ea\n"


def outcome_of(error: BaseException, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """Exit code and stderr of a command that raises the error."""

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as exit_:
        run_command(main)
    return exit_.value.code, capsys.readouterr().err


@pytest.mark.parametrize("kind", UserError.__subclasses__())
def test_a_foreseen_error_is_one_line_and_its_code_and_its_traceback_comes_on_request(
    monkeypatch, capsys, kind
):
    assert outcome_of(kind("why"), capsys) == (kind.exit_code, "error: why\n")
    monkeypatch.setenv("TRACEBACK", "1")
    assert re.fullmatch("Traceback.*\nerror: why\n", outcome_of(kind("why"), capsys)[1], re.DOTALL)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (Stopped(2, " after step 3"), 130, "stopped: by Ctrl-C after step 3\n"),
        (Stopped(15), 143, "stopped: by SIGTERM\n"),
        (KeyboardInterrupt(), 130, "stopped: by Ctrl-C\n"),
        (MemoryError(), 8, "error: out of memory (RAM): lower batch_size or seq_len\n"),
        (
            torch.OutOfMemoryError("tried 9 GiB"),
            8,
            "error: out of memory (tried 9 GiB): lower batch_size or seq_len\n",
        ),
        (ConfigError("two\n  lines"), 2, "error: two lines\n"),
        (
            PermissionError(13, "Permission denied", "a file"),
            6,
            "error: Permission denied (a file): check the disk and the permissions\n",
        ),
        (FileNotFoundError(2, "No such file", "a"), 6, "error: No such file (a): check the name\n"),
    ],
    ids=["Ctrl-C", "SIGTERM", "early Ctrl-C", "RAM", "card", "lines", "system", "missing"],
)
def test_each_end_is_said_in_one_line(capsys, error, code, line):
    assert outcome_of(error, capsys) == (code, line)
    with pytest.raises(ZeroDivisionError):  # a bug keeps its traceback
        run_command(lambda: 1 / 0)


@pytest.mark.parametrize(
    ("script", "stream", "code"),
    [(MANY_LINES, "stdout", 0), (LOG_THEN_WORK, "stdout", 0), (FAILS, "stderr", 2)],
    ids=["print", "log", "error"],
)
def test_a_reader_that_left_changes_no_exit_code(tmp_path, script, stream, code):
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        **{"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, stream: write_end},
    )
    os.close(write_end)
    assert (result.returncode, result.stderr or b"") == (code, b"")
    assert (tmp_path / "work is done").exists() == (script == LOG_THEN_WORK)


def test_nohup_keeps_its_promise(tmp_path, run_python):
    code = (
        "import os, signal; from system.process import StopSignals; "
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with StopSignals() as signals: os.kill(os.getpid(), signal.SIGHUP); signals.check()\n"
        "print('went on')"
    )
    assert run_python("-c", code, folder=tmp_path).stdout == "went on\n"
