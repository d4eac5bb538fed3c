"""Where a command runs: device, precision, memory, seeds."""

import pytest
import torch

from system import machine
from system.errors import ConfigError
from system.machine import Machine


@pytest.fixture
def no_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


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
    with pytest.raises(ConfigError, match=rf"\(device={name}\): set it to auto"):
        Machine.choose(name)


def test_a_card_beyond_the_last_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert machine.choose_device("cuda:1")[0] == torch.device("cuda:1")
    with pytest.raises(ConfigError, match=r"\(device=cuda:2\)"):
        machine.choose_device("cuda:2")


@pytest.mark.parametrize(
    ("device", "is_native", "expected"),
    [
        ("cuda", True, "bfloat16"),
        ("cuda", False, "float16"),
        ("cpu", True, "bfloat16"),
        ("cpu", False, "float32"),
        ("mps", True, "float32"),
    ],
)
def test_auto_precision_is_what_is_computed_natively(monkeypatch, device, is_native, expected):
    capability = (8, 0) if is_native else (7, 5)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(machine, "has_native_bfloat16", lambda: is_native)
    dtype, _ = machine.choose_precision(torch.device(device), "auto")
    assert dtype == getattr(torch, expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_products_run_in_the_machines_type_and_only_float16_is_scaled(precision):
    machine = Machine.choose("cpu", precision)
    x = torch.ones(2, 2)
    with machine.autocast():
        assert (x @ x).dtype == getattr(torch, precision)
    assert machine.gradient_scaler().is_enabled() == (precision == "float16")


def test_memory_in_use_is_at_least_what_torch_needs():
    assert 50e6 < Machine.choose("cpu").memory_in_use() < 1e12
