"""Where a command runs: device, precision, memory, seeds."""

from functools import partial

import pytest
import torch
from machines import plain_machine

from system import choice, machine
from system.choice import Choice, Choices, Piece
from system.errors import ConfigError


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


def test_without_a_gpu_the_cpu_is_chosen_and_said_why(no_gpu):
    reason = f"no GPU found, {torch.get_num_threads()} threads"
    assert machine.choose_device("auto") == (torch.device("cpu"), reason)


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


@pytest.mark.parametrize("name", ["cuda", "cuda:1", "mps", "gpu", "cuda:x", "cpu:3", "meta", ""])
def test_a_device_that_is_not_here_is_refused_by_name(no_gpu, name):
    with pytest.raises(ConfigError, match=rf"\(device={name}\): set it to auto"):
        machine.choose_device(name)


def test_a_card_beyond_the_last_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert machine.choose_device("cuda:1")[0] == torch.device("cuda:1")
    with pytest.raises(ConfigError, match=r"\(device=cuda:2\)"):
        machine.choose_device("cuda:2")


def precision_on(device: str, wanted: str = "auto") -> Choice:
    shapes = [(512, 256, 512, 1)]
    return machine.choose_precision(torch.device(device), wanted, Choices(), shapes=shapes)


@pytest.fixture
def measured(monkeypatch):
    """Choices are not remembered, and products take as long as the rates in this dict say."""
    rates = {"float32": 100e9}
    now = [0.0]

    def slow(share: float, *, device: torch.device, dtype: torch.dtype, **given) -> list[Piece]:
        def run(piece: Piece) -> torch.Tensor:
            name = str(dtype).removeprefix("torch.")
            if name not in rates:
                raise RuntimeError(f"no {name} here")
            now[0] += piece.amount / rates[name]
            return piece.run() * (1 if rates[name] > 0 else 2)

        pieces = real_products(share, device=torch.device("cpu"), dtype=dtype, **given)
        return [piece._replace(run=lambda piece=piece: run(piece)) for piece in pieces]

    real_products, real_fastest = machine.products, choice.fastest
    monkeypatch.setattr(machine, "products", slow)
    monkeypatch.setattr(choice, "fastest", partial(real_fastest, clock=lambda: now[0]))
    monkeypatch.setattr(choice, "memory_path", lambda work: None)
    return rates


@pytest.mark.parametrize(
    ("device", "rates", "line"),
    [
        ("cpu", {"bfloat16": 300e9}, "bfloat16: 300 GFLOP/s here, float32 100"),
        ("cpu", {"bfloat16": 110e9}, "bfloat16: 110 GFLOP/s here, float32 100"),
        ("cpu", {"bfloat16": 105e9}, "float32: 100 GFLOP/s here, bfloat16 105"),
        ("cpu", {"bfloat16": 50e9}, "float32: 100 GFLOP/s here, bfloat16 50"),
        ("cpu", {"bfloat16": -300e9}, "float32: 100 GFLOP/s here"),  # wrong results
        ("cpu", {}, "float32: 100 GFLOP/s here"),  # raises
        ("cuda", {"bfloat16": 20e9, "float16": 800e9}, "float16: 800 GFLOP/s here, float32 100"),
        (
            "cuda",
            {"bfloat16": 200e9, "float16": 205e9},
            "bfloat16: 200 GFLOP/s here, float32 100, float16 205",
        ),
        ("mps", {"float16": 105e9}, "float32: 100 GFLOP/s here, float16 105"),
    ],
)
def test_auto_precision_is_what_is_multiplied_fastest(measured, device, rates, line):
    measured |= rates
    assert str(precision_on(device)) == line


@pytest.mark.parametrize(
    ("capability", "line"),
    [
        ((7, 0), "float16 (not measured, native here)"),
        ((8, 0), "bfloat16 (not measured, native here)"),
        ((9, 0), "bfloat16 (not measured, native here)"),
    ],
)
def test_a_card_on_which_nothing_can_be_measured_is_asked(monkeypatch, capability, line):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert str(precision_on("cuda")) == line


def test_a_configured_precision_is_not_measured(measured, monkeypatch):
    monkeypatch.setattr(choice, "fastest", None)
    precision = precision_on("cpu", "float16")
    assert str(precision) == "float16 (as configured)"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_those_of_the_layers_and_their_gradients(dtype):
    shapes, place = [(8, 5, 3, 2), (8, 4, 5000, 1)], torch.device("cpu")
    pieces = machine.products(0.5, shapes=shapes, device=place, dtype=dtype)
    exact = machine.products(0.5, shapes=shapes, device=place, dtype=torch.float64)
    assert [tuple(piece.run().shape) for piece in pieces[:3]] == [(4, 3), (4, 5), (3, 5)]
    for piece, expected in zip(pieces, exact, strict=True):
        right = expected.run()
        assert (piece.run() - right).norm() <= machine.NEAR * right.norm()
    total = sum(piece.amount * piece.count for piece in pieces)
    assert total == pytest.approx(0.5 * sum(6 * n * k * m * times for n, k, m, times in shapes))


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_products_run_in_the_machines_type_and_only_float16_is_scaled(precision):
    machine = plain_machine(precision=precision)
    x = torch.ones(2, 2)
    with machine.autocast():
        assert (x @ x).dtype == getattr(torch, precision)
    assert machine.gradient_scaler().is_enabled() == (precision == "float16")


def test_memory_in_use_is_at_least_what_torch_needs():
    assert 50e6 < plain_machine().memory_in_use() < 1e12
