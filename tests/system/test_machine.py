"""Where a command runs and how it ends: device, precision, signals, exit codes, seeds."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from system import machine
from system.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DeviceError,
    FolderInUseError,
    NonFiniteError,
    OutputError,
    SamplingError,
    VocabularyError,
)
from system.machine import Machine, seed_step
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
LOG_THEN_WORK = """
from system import process
from pathlib import Path
def main():
    for number in range(10):
        process.log("a report")
    Path("work is done").touch()
process.run_command(main)
"""


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


# ---------------------------------------------------------------- the machine


def test_without_a_gpu_the_cpu_is_chosen_and_said_why(no_gpu):
    machine = Machine.choose(precision="float32")
    assert (machine.device, machine.dtype) == (torch.device("cpu"), torch.float32)
    threads = torch.get_num_threads()
    assert str(machine) == f"cpu (no GPU found, {threads} threads), float32 (as configured)"


@pytest.mark.parametrize(
    ("has_cuda", "has_mps", "expected"), [(1, 1, "cuda"), (1, 0, "cuda"), (0, 1, "mps")]
)
def test_auto_takes_cuda_before_mps_before_the_cpu(monkeypatch, has_cuda, has_mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(has_cuda))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A Fine Card")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(has_mps))
    device, reason = machine.choose_device("auto")
    assert device.type == expected
    assert reason == ("A Fine Card" if has_cuda else "no CUDA device found")
    assert machine.choose_device("cpu") == (torch.device("cpu"), "as configured")


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps"])
def test_a_device_that_is_not_here_is_refused_by_name(no_gpu, name):
    with pytest.raises(DeviceError, match=rf"\(device={name}\): set it to auto"):
        Machine.choose(name)


def test_a_card_beyond_the_last_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert machine.choose_device("cuda:1")[0] == torch.device("cuda:1")
    with pytest.raises(DeviceError, match=r"\(device=cuda:2\)"):
        machine.choose_device("cuda:2")


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), "bfloat16"), ((8, 0), "bfloat16"), ((7, 5), "float16")]
)
def test_auto_precision_is_what_the_card_computes_natively(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    dtype, _ = machine.choose_precision(torch.device("cuda"), "auto")
    assert dtype == getattr(torch, expected)


@pytest.mark.parametrize(("has_bfloat16", "expected"), [(True, "bfloat16"), (False, "float32")])
def test_auto_precision_on_a_cpu_asks_the_processor(monkeypatch, has_bfloat16, expected):
    monkeypatch.setattr(machine, "has_native_bfloat16", lambda: has_bfloat16)
    assert Machine.choose("cpu").dtype == getattr(torch, expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_products_run_in_the_machines_type_and_only_float16_is_scaled(precision):
    machine = Machine.choose("cpu", precision)
    x = torch.ones(2, 2)
    with machine.autocast():
        assert (x @ x).dtype == getattr(torch, precision)
    assert machine.gradient_scaler().is_enabled() == (precision == "float16")


def test_memory_in_use_is_at_least_what_torch_needs():
    assert 50e6 < Machine.choose("cpu").memory_in_use() < 1e12


def test_a_step_draws_the_same_numbers_whenever_it_is_seeded():
    def draws(seed: int, step: int) -> list[float]:
        seed_step(seed, step)
        return torch.rand(4).tolist()

    cases = [(0, 0), (0, 1), (1, 0), (1, 1), (2**31 - 1, 10**6)]
    first = [draws(*case) for case in cases]
    assert [draws(*case) for case in reversed(cases)] == first[::-1]
    assert len({tuple(numbers) for numbers in first}) == len(cases)


# ---------------------------------------------------------------- signals


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


# ---------------------------------------------------------------- odd streams


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


# ---------------------------------------------------------------- the door for errors

ERRORS = [
    (ConfigError("why"), 2),
    (SamplingError("why"), 2),
    (DeviceError("why"), 2),
    (FolderInUseError("why"), 2),
    (DataError("why"), 3),
    (VocabularyError("why"), 3),
    (CheckpointError("why"), 4),
    (OutputError("why"), 6),
    (OSError("why"), 6),
    (NonFiniteError("why"), 7),
]


def outcome_of(error: BaseException, capsys: pytest.CaptureFixture) -> tuple[int, str]:
    """Exit code and stderr of a command that raises the error."""

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as exit_:
        run_command(main)
    return exit_.value.code, capsys.readouterr().err


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda value: type(value).__name__)
def test_a_foreseen_error_is_one_line_and_its_code(capsys, error, code):
    assert outcome_of(error, capsys) == (code, "error: why\n")


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


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 / 0)


def test_traceback_is_shown_when_asked_for(capsys, monkeypatch):
    monkeypatch.setenv("TRACEBACK", "1")
    code, text = outcome_of(ConfigError("why"), capsys)
    assert code == 2
    assert text.startswith("Traceback (most recent call last)")
    assert text.endswith("error: why\n")


@pytest.mark.parametrize("script", [MANY_LINES, LOG_THEN_WORK], ids=["print", "log"])
def test_a_reader_that_left_is_no_error(tmp_path, script):
    read_end, write_end = os.pipe()
    os.close(read_end)
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=write_end,
        stderr=subprocess.PIPE,
    )
    os.close(write_end)
    assert (result.returncode, result.stderr) == (0, b"")
    assert (tmp_path / "work is done").exists() == (script == LOG_THEN_WORK)


def test_nohup_keeps_its_promise(tmp_path, run_python):
    code = (
        "import os, signal; from system.process import StopSignals; "
        "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "with StopSignals() as signals: os.kill(os.getpid(), signal.SIGHUP); signals.check()\n"
        "print('went on')"
    )
    assert run_python("-c", code, folder=tmp_path).stdout == "went on\n"
