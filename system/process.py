"""How a command starts, says things and ends: signals, exit codes, the one log."""

import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TextIO

from tqdm import tqdm

from system.errors import OutOfRoomError, OutputError

WRONG_NAME = (FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError)
STOP_SIGNALS = {
    getattr(signal, name): said
    for name, said in {"SIGINT": "Ctrl-C", "SIGTERM": "SIGTERM", "SIGHUP": "SIGHUP"}.items()
    if hasattr(signal, name)  # Windows has no SIGHUP
}


class Stopped(BaseException):
    """A signal asked the command to end; `advice` says how to go on from here."""

    def __init__(self, number: int, advice: str = "") -> None:
        super().__init__(f"by {STOP_SIGNALS[number]}{advice}")
        self.number, self.is_held = number, bool(advice)  # held: left in order
        self.exit_code = exit_code_after(number)


class StopSignals:
    """Turns Ctrl-C, SIGTERM and SIGHUP into `Stopped`.

    Raised at once, until `hold()`; from then on only by `check()`, where the program can be left
    in order, and at any time inside `interruptible()`, where nothing is recorded. The second
    signal ends the process at once, or at a prompt only the call. Python gives signals to the main
    thread alone: in another one nothing is installed, and the work goes on undisturbed.

    Several processes hold signals until all `check()`: `agree` makes of the number that each of
    them has received, 0 for none, the one that all of them raise.
    """

    def __init__(self, agree: Callable[[int], int] | None = None) -> None:
        self._received: int | None = None
        self._agree = agree
        self._is_held = False

    def __enter__(self) -> "StopSignals":
        self._previous = {}
        if threading.current_thread() is threading.main_thread():
            for number, said in STOP_SIGNALS.items():
                is_under_nohup = said == "SIGHUP" and signal.getsignal(number) is signal.SIG_IGN
                if not is_under_nohup:
                    self._previous[number] = signal.signal(number, self._receive)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler or signal.SIG_DFL)  # None: not installed from Python

    def hold(self) -> None:
        self._is_held = True

    def check(self) -> None:
        """Raises Stopped if a signal has arrived."""
        number = self._agree(self._received or 0) if self._agree else self._received
        if number:
            raise Stopped(number)

    def part(self) -> None:
        """From now on this process works by itself."""
        self._agree = None

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, a signal raises Stopped at once: measuring leaves nothing half done."""
        was_held, self._is_held = self._is_held, self._agree is not None
        try:
            if not self._is_held:
                self.check()
            yield
        finally:
            self._is_held = was_held

    def _receive(self, number: int, frame: FrameType | None) -> None:
        if self._received is not None:
            if hasattr(sys, "ps1"):  # a notebook keeps its variables
                raise KeyboardInterrupt
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
        stream = getattr(sys, name)
        if not is_open(stream):
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
        elif hasattr(stream, "reconfigure"):  # a notebook's has not
            stream.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output has left, as `| head` does
        with suppress(OSError):  # a stream without a file has nothing left to write at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (Exception, Stopped, KeyboardInterrupt) as error:
        code = exit_code_of(error)
        if code is None:
            raise
        if os.environ.get("TRACEBACK") == "1":
            traceback.print_exc()
        note(last_words(error))
        sys.exit(code)


def last_words(error: BaseException) -> str:
    """The line that a command ends with."""
    kind = "stopped" if (exit_code_of(error) or 0) > 128 else "error"
    return f"{kind}: {describe(error)}"


def exit_code_of(error: BaseException) -> int | None:
    """The documented exit code of an error, None for one that nobody foresaw."""
    if hasattr(error, "exit_code"):
        return error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return exit_code_after(signal.SIGINT)
    if isinstance(error, OSError):
        return OutputError.exit_code
    return OutOfRoomError.exit_code if is_out_of_memory(error) else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the error says that a device or the RAM is full."""
    torch = sys.modules.get("torch")  # a command that has not imported it has not filled a card
    full_card = getattr(torch, "OutOfMemoryError", MemoryError)
    named = ("DefaultCPUAllocator", "MPS backend out of memory")  # torch has no types for these
    is_named = isinstance(error, RuntimeError) and any(name in str(error) for name in named)
    return is_named or isinstance(error, (MemoryError, full_card))


def describe(error: BaseException) -> str:
    """The error in one line."""
    if isinstance(error, OSError) and error.strerror:
        place = f" ({error.filename})" if error.filename else ""
        remedy = "the name" if isinstance(error, WRONG_NAME) else "the disk and the permissions"
        return f"{error.strerror}{place}: check {remedy}"
    if isinstance(error, KeyboardInterrupt):
        return "by Ctrl-C"
    if exit_code_of(error) == OutOfRoomError.exit_code and not hasattr(error, "exit_code"):
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
def only_warn(
    loss: str, kinds: tuple[type[Exception], ...] = (ImportError, OSError)
) -> Iterator[None]:
    """A file that cannot be written is a warning inside: training goes on without it."""
    try:
        yield
    except kinds as error:
        warn(f"{loss}: {describe(error)}")


def is_open(stream: TextIO | None) -> bool:
    """Whether there is a stream: Python has none where the caller closed it, as `>&-` does."""
    return stream is not None and not getattr(stream, "closed", False)


def _print(line: str, stream: TextIO | None) -> None:
    if not is_open(stream):
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    line = line.encode(encoding, "backslashreplace").decode(encoding)
    with suppress(OSError, AttributeError):  # no reader any more; a stream without flush
        tqdm.write(line, file=stream)
        stream.flush()
