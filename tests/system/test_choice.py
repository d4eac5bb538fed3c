"""Which way is taken at which rates, and what is remembered of it."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from system.choice import Choice, Piece, fastest

WORK = 1e10  # operations
RIGHT = torch.tensor([1.0, 2.0, -3.0])


class Clock:
    """Time that passes only where somebody says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def way(
        self, rate: float, result: Tensor | Exception = RIGHT, *, work: float = WORK
    ) -> Callable[[float], list[Piece]]:
        """A way that does so many operations a second, in two pieces."""

        def run(amount: float) -> Tensor:
            self.now += amount / rate
            if isinstance(result, Exception):
                raise result
            return result

        def make(share: float) -> list[Piece]:
            parts = (0.5 * work * share, 1), (0.25 * work * share, 2)
            return [Piece(lambda n=n: run(n), n, count) for n, count in parts]

        return make


def chosen(first: float = 100e9, **others: tuple) -> Choice:
    """Among float32 at a rate and others, each a rate and what else `Clock.way` takes."""
    clock = Clock()
    ways = {"float32": clock.way(first)}
    ways |= {name: clock.way(*row) for name, row in others.items()}
    return fastest(ways, tolerance=1e-2, clock=clock)


@pytest.mark.parametrize(
    ("rate", "line"),
    [
        (300e9, "bfloat16: 300 GFLOP/s here, float32 100"),
        (110e9, "bfloat16: 110 GFLOP/s here, float32 100"),
        (105e9, "float32: 100 GFLOP/s here, bfloat16 105"),
        (50e9, "float32: 100 GFLOP/s here, bfloat16 50"),
        (5e9, "float32: 100 GFLOP/s here"),
    ],
)
def test_a_way_is_taken_where_it_wins_by_a_tenth(rate, line):
    assert str(chosen(bfloat16=(rate,))) == line


@pytest.mark.parametrize(
    "result", [RIGHT * 1.02, RIGHT * math.nan, RIGHT[:2], RuntimeError("no such kernel")]
)
def test_a_way_that_is_wrong_or_raises_is_left_out(result):
    assert str(chosen(bfloat16=(300e9, result))) == "float32: 100 GFLOP/s here"
    assert chosen(bfloat16=(300e9, RIGHT * 1.005)).name == "bfloat16"


def test_each_must_win_over_the_one_taken_before_it():
    assert chosen(bfloat16=(300e9,), float16=(320e9,)).name == "bfloat16"
    assert chosen(bfloat16=(300e9,), float16=(340e9,)).name == "float16"
    assert chosen(bfloat16=(105e9,), float16=(114e9,)).name == "float16"


def test_the_first_way_raises_what_it_raises():
    clock = Clock()
    with pytest.raises(RuntimeError, match="no device"):
        fastest({"a": clock.way(1e9, RuntimeError("no device")), "b": clock.way(1e9)}, tolerance=1)


def test_small_work_and_work_that_takes_too_long_is_not_measured():
    clock = Clock()
    for rate, work in [(1e9, 9e7), (1e9, 1e12)]:
        ways = {"a": clock.way(rate, work=work), "b": clock.way(100 * rate, work=work)}
        assert str(fastest(ways, tolerance=1, clock=clock)) == (
            "a (not measured: too little work, or too much)"
        )


@pytest.mark.parametrize("rate", [1e10, 1e11, 1e12, 1e14])
def test_measuring_ends_soon_at_any_rate(rate):
    clock = Clock()
    ways = {name: clock.way(rate * factor) for name, factor in [("a", 1), ("b", 0.4), ("c", 0.1)]}
    fastest(ways, tolerance=1, clock=clock)
    assert clock.now < 1


def test_disturbances_change_nothing():
    """Every fourth run takes 3 to 30 times as long; the undisturbed ones decide."""
    source = torch.Generator().manual_seed(0)
    clock = Clock()

    def disturbed(rate: float) -> Callable[[float], list[Piece]]:
        make = clock.way(rate)

        def run(piece: Piece) -> Tensor:
            start, result = clock.now, piece.run()
            chance, factor = torch.rand(2, generator=source).tolist()
            clock.now += (clock.now - start) * (3 + 27 * factor) * (chance < 0.25)
            return result

        return lambda share: [p._replace(run=lambda p=p: run(p)) for p in make(share)]

    rates = {"a": 100e9, "b": 103e9, "c": 140e9}
    ways = {name: disturbed(rate) for name, rate in rates.items()}
    assert {fastest(ways, tolerance=1, clock=clock).name for _ in range(50)} == {"c"}


def test_a_line_tells_rates_of_any_size():
    assert str(Choice("a", {"b": 2.345e12, "a": 1.2345e9})) == "a: 1.2 GFLOP/s here, b 2,345"
