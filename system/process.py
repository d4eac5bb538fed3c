"""How a command starts, says things and ends: signals, exit codes, the one log."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType, TracebackType
from typing import TextIO

from tqdm import tqdm

EXIT_DISK = 6
EXIT_MEMORY = 8
STOP_SIGNALS = {
    signal.SIGINT: "Ctrl-C",
    signal.SIGTERM: "SIGTERM",
    signal.SIGHUP: "SIGHUP",
}


class Stopped(BaseException):
    """A signal asked the command to end; `advice` says how to go on from here."""

    def __init__(self, number: int, advice: str = "") -> None:
        super().__init__(f"by {STOP_SIGNALS[number]}{advice}")
        self.number = number
        self.exit_code = exit_code_after(number)


class StopSignals:
    """Turns Ctrl-C, SIGTERM and SIGHUP into `Stopped`.

    Raised at once, until `hold()`; from then on only by `check()`, where the program can be left
    in order, and at any time inside `interruptible()`, where nothing is recorded. The second
    signal always ends the process at once.
    """

    def __init__(self) -> None:
        self._received: int | None = None
        self._is_held = False

    def __enter__(self) -> "StopSignals":
        is_under_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        numbers = STOP_SIGNALS.keys() - ({signal.SIGHUP} if is_under_nohup else set())
        self._previous = {number: signal.signal(number, self._receive) for number in numbers}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def hold(self) -> None:
        self._is_held = True

    def check(self) -> None:
        """Raises Stopped if a signal has arrived."""
        if self._received is not None:
            raise Stopped(self._received)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, a signal raises Stopped at once: measuring leaves nothing half done."""
        was_held, self._is_held = self._is_held, False
        try:
            self.check()
            yield
        finally:
            self._is_held = was_held

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            os._exit(exit_code_after(number))
        self._received = number
        if not self._is_held:
            raise Stopped(number)


def exit_code_after(number: int) -> int:
    """130 after Ctrl-C, 143 after SIGTERM; SIGHUP counts as SIGTERM."""
    return 128 + (signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)


def run_command(main: Callable[[], None]) -> None:
    """Runs `main` and exits: 0, or one line on stderr and the code of the error's kind.

    A foreseeable error has an `exit_code`, is an OSError (6) or a lack of memory (8). With
    TRACEBACK=1 in the environment its traceback is shown; that of a bug always is.
    """
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller, as `>&-` does
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        getattr(sys, name).reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (Exception, Stopped, KeyboardInterrupt) as error:
        code = exit_code_of(error)
        if code is None:
            raise
        if os.environ.get("TRACEBACK") == "1":
            traceback.print_exc()
        print(f"{'stopped' if code > 128 else 'error'}: {describe(error)}", file=sys.stderr)
        sys.exit(code)


def exit_code_of(error: BaseException) -> int | None:
    """The documented exit code of an error, None for one that nobody foresaw."""
    if hasattr(error, "exit_code"):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return 128 + signal.SIGINT
    if isinstance(error, OSError):
        return EXIT_DISK
    torch = sys.modules.get("torch")  # a command that has not imported it has not filled a card
    full_card = getattr(torch, "OutOfMemoryError", MemoryError)
    if isinstance(error, (MemoryError, full_card)) or is_full_cpu(error):
        return EXIT_MEMORY
    return None


def is_full_cpu(error: BaseException) -> bool:
    """Whether torch found no memory on the CPU, for which it has no error of its own."""
    return isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)


def describe(error: BaseException) -> str:
    """The error in one line."""
    if isinstance(error, OSError) and error.strerror:
        place = f" ({error.filename})" if error.filename else ""
        return f"{error.strerror}{place}: check the disk and the permissions"
    if isinstance(error, KeyboardInterrupt):
        return "by Ctrl-C"
    if exit_code_of(error) == EXIT_MEMORY and not hasattr(error, "exit_code"):
        return f"out of memory ({str(error)[:200].strip() or 'RAM'}): lower batch_size or seq_len"
    return " ".join(str(error).split()) or type(error).__name__


def log(line: str) -> None:
    """Prints a line above the progress bar; without a reader of stdout it goes nowhere."""
    _print(line, sys.stdout)


def note(line: str) -> None:
    """The same on stderr: what is said beside a result that stdout belongs to."""
    _print(line, sys.stderr)


def warn(problem: str) -> None:
    """A note that something is not as it was wanted, and that the command goes on."""
    note(f"warning: {problem}")


@contextmanager
def only_warn(loss: str) -> Iterator[None]:
    """A file that cannot be written is a warning inside: training goes on without it."""
    try:
        yield
    except (ImportError, OSError) as error:
        warn(f"{loss}: {describe(error)}")


def _print(line: str, stream: TextIO) -> None:
    with suppress(OSError):
        tqdm.write(line, file=stream)
        stream.flush()
