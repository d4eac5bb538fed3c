"""Which of several ways to do the same work is fastest here: measured once, then remembered.

The first way of a table is right everywhere. Another one is taken if what it computes is the same
and it wins by so much that noise changes nothing. A file keeps what was chosen for this work on
this machine, so that the next start does not measure and repeats to the bit. It can be made again:
where it is lost, damaged or of others, the next start measures.
"""

import hashlib
import json
import math
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from system.files import write_durably

WIN = 1.1  # times as fast as the way that it takes the place of
SMALL = 1e8  # operations: work of less is over before it could be measured
FIRST_SHARE, PIECE_SECONDS = 1 / 256, 1e-3  # of the work: raised until a piece takes so long
SECONDS, MIN_TURNS = 0.04, 4  # of measuring, for one table
HOPELESS, NUM_TRIES = 3, 5  # times slower in a piece, so often in a row: not timed further
FOLDER = Path("gpt-from-scratch")  # in the user's folder of caches
SETTINGS = ("ATEN_", "CUBLAS", "DNNL_", "GOMP_", "KMP_", "MKL_", "NVIDIA_", "OMP_", "ONEDNN_")


class Piece(NamedTuple):
    """A part of the work, timed by itself: a short undisturbed moment is enough for it."""

    run: Callable[[], Tensor]  # gives what is compared between the ways
    amount: float  # of floating-point operations
    count: float = 1  # how often the work has it


Way = Callable[[float], Sequence[Piece]]  # a share of the work, above 0 and up to 1, in pieces
Clock = Callable[[], float]


@dataclass(frozen=True)
class Choice:
    """The way that is taken, and the operations a second of each right one, or another reason."""

    name: str
    rates: dict[str, float] = field(default_factory=dict)
    reason: str = "not measured: too little work, or too much"

    def __str__(self) -> str:
        """For instance `float32: 327 GFLOP/s here, bfloat16 167`."""
        if not self.rates:
            return f"{self.name} ({self.reason})"
        shown = {
            name: f"{rate / 1e9:,.{0 if rate > 1e10 else 1}f}" for name, rate in self.rates.items()
        }
        best = f"{self.name}: {shown.pop(self.name)} GFLOP/s here"
        return ", ".join([best, *map(" ".join, shown.items())])


def fastest(
    ways: Mapping[str, Way], *, tolerance: float, clock: Clock = time.perf_counter
) -> Choice:
    """The first way, or one after it whose results are right and which is `WIN` times as fast.

    Right is what differs from the first one's results by at most `tolerance`, as a share of their
    norm; a way that raises is left out, unless it is the first. The ways take turns in one thread,
    and of each piece the shortest time counts: whatever disturbs it only makes it longer.
    """
    if len(ways) == 1:
        return Choice(*ways)
    num_threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)  # several would wait for each other where others are at work
        return _fastest(ways, tolerance, clock)
    finally:
        torch.set_num_threads(num_threads)


def _fastest(ways: Mapping[str, Way], tolerance: float, clock: Clock) -> Choice:
    taken, *others = ways
    share, num_runs = to_measure(ways[taken], clock)
    if not share:
        return Choice(taken)
    leader = Timed(ways[taken](share), clock, num_runs)
    expected = [piece.run() for piece in leader.pieces]
    leader.turn()
    timed = {taken: leader}
    for name in others:
        with suppress(Exception):  # torch has a dozen kinds of them
            candidate = Timed(ways[name](share), clock, num_runs)
            if all(map(partial(candidate.keeps_up, leader, tolerance), enumerate(expected))):
                timed[name] = candidate
    end, num_turns = clock() + SECONDS, 0
    while len(timed) > 1 and (num_turns < MIN_TURNS or clock() < end):
        num_turns += 1
        for way in timed.values():
            way.turn()
    for name, way in timed.items():
        if round(timed[taken].seconds / way.seconds, 6) >= WIN:
            taken = name
    return Choice(taken, {name: way.amount / way.seconds for name, way in timed.items()})


def to_measure(way: Way, clock: Clock) -> tuple[float, int]:
    """A share of the work, and how often in a row, of which the longest piece is long enough.

    None of it if all of the work is SMALL, or if the least of it takes too long.
    """
    share = FIRST_SHARE
    while True:
        timed = Timed(way(share), clock)
        if timed.amount < SMALL * share:
            return 0, 0
        for _ in range(3):  # the first warms up
            timed.turn()
        if sum(timed.shortest) > SECONDS:
            return 0, 0
        missing = PIECE_SECONDS / max(timed.shortest)
        if share == 1 or missing <= 1:
            return share, max(1, round(missing))
        share = min(1, share * max(2, round(missing)))


class Timed:
    """The pieces of a way, and the shortest time that each has taken so far."""

    def __init__(self, pieces: Sequence[Piece], clock: Clock, num_runs: int = 1) -> None:
        self.pieces, self.clock, self.num_runs = pieces, clock, num_runs
        self.shortest = [math.inf] * len(pieces)
        self.amount = sum(piece.amount * piece.count for piece in pieces)

    @property
    def seconds(self) -> float:
        """Of all the pieces, as often as the work has them."""
        return sum(p.count * least for p, least in zip(self.pieces, self.shortest, strict=True))

    def turn(self) -> None:
        """Times each piece once more."""
        for number in range(len(self.pieces)):
            self.time(number)

    def time(self, number: int) -> float:
        """Seconds of one piece, now."""
        start = self.clock()
        for _ in range(self.num_runs):
            result = self.pieces[number].run()
        result[(0,) * result.dim()].item()  # waits for the device
        seconds = (self.clock() - start) / self.num_runs
        self.shortest[number] = min(self.shortest[number], seconds)
        return seconds

    def keeps_up(self, leader: "Timed", tolerance: float, expected: tuple[int, Tensor]) -> bool:
        """Whether a piece gives what is expected, and is not hopelessly slower than another's."""
        number, right = expected
        error = self.pieces[number].run().to(right) - right
        if not error.norm() <= tolerance * right.norm():  # as of what is no number
            return False
        longest = HOPELESS * leader.shortest[number]
        return any(self.time(number) <= longest for _ in range(NUM_TRIES))


class Choices:
    """Answers for one kind of work on this machine: a run's own, remembered ones, measured ones."""

    def __init__(self, *work: object, kept: Mapping[str, str] | None = None) -> None:
        self.kept = kept or {}
        self.path = memory_path(work)
        self.remembered = read_choices(self.path)
        self.made: dict[str, Choice] = {}
        self.is_new = False

    def of(self, question: str, ways: Mapping[str, Way], *, tolerance: float) -> Choice:
        """The way that the run has had, or that was the fastest before, or that is it now."""
        had, known = str(self.kept.get(question)), self.remembered.get(question)
        if had in ways:
            choice = Choice(had, reason="as the run began")
        elif known and known.name in ways:
            choice = known
        else:
            choice = self.remembered[question] = fastest(ways, tolerance=tolerance)
            self.is_new = True
        self.made[question] = choice
        return choice

    def remember(self) -> None:
        """Writes down what is new for the next start; of two at once one writes after the other."""
        if self.is_new and self.path:
            content = json.dumps({key: asdict(one) for key, one in self.remembered.items()})
            with suppress(OSError):  # read-only or full: the next start measures
                write_durably(self.path, lambda file: file.write(content.encode()))


def noise(*shape: int) -> Tensor:
    """Numbers in [-0.5, 0.5), the same at each call; a block of them repeats, to be there soon."""
    block = torch.rand(4093, generator=torch.Generator().manual_seed(0)) - 0.5  # a prime number
    return block.repeat(-(-math.prod(shape) // len(block)))[: math.prod(shape)].view(shape)


def memory_path(work: Sequence[object]) -> Path | None:
    """The file for the work, whose name follows from all that its answers depend on.

    None without a folder for caches, which $XDG_CACHE_HOME names, or else the home folder has.
    """
    software = torch.__version__, platform.platform(), torch.backends.cpu.get_cpu_capability()
    place = platform.node(), os.cpu_count(), torch.get_num_threads()
    settings = sorted(item for item in os.environ.items() if item[0].startswith(SETTINGS))
    name = hashlib.sha256(repr((software, place, settings, work)).encode()).hexdigest()[:32]
    parent = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(parent, FOLDER, f"{name}.json") if os.path.isabs(parent) else None


def read_choices(path: Path | None) -> dict[str, Choice]:
    """What the file says, nothing if it is damaged or not ours."""
    try:
        entries = json.loads(path.read_bytes()) if path else {}
        choices = {question: Choice(**entry) for question, entry in entries.items()}
        for choice in choices.values():
            hash(choice.name), str(choice)  # raise where it is another thing
    except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError):
        return {}
    return choices
