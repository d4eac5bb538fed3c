"""Where a command runs: the device, the precision, threads and memory."""

import ctypes
import os
import sys
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from system.errors import ConfigError
from system.process import warn

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Machine:
    """The device of a run and the type of its matrix products, each with the reason."""

    device: torch.device
    dtype: torch.dtype
    reasons: tuple[str, str]

    @classmethod
    def choose(cls, device_name: str = "auto", precision: str = "auto") -> "Machine":
        device, device_reason = choose_device(device_name)
        dtype, dtype_reason = choose_precision(device, precision)
        return cls(device, dtype, (device_reason, dtype_reason))

    def __str__(self) -> str:
        precision = str(self.dtype).removeprefix("torch.")
        return f"{self.device} ({self.reasons[0]}), {precision} ({self.reasons[1]})"

    def autocast(self) -> torch.autocast:
        """A context in which matrix products run in `dtype`."""
        is_mixed = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype, enabled=is_mixed)

    def gradient_scaler(self) -> torch.amp.GradScaler:
        """Keeps float16 gradients from underflow; does nothing for the other types."""
        return torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)

    def place(self, tensor: Tensor) -> Tensor:
        """The tensor on the device; copied while the processor goes on where CUDA can."""
        if self.device.type == "cuda":
            return tensor.pin_memory().to(self.device, non_blocking=True)
        return tensor.to(self.device)

    def compiled(self, module: nn.Module, wanted: str) -> nn.Module:
        """The module, compiled if wanted: "on", "off", or "auto", which is on with CUDA.

        A machine that cannot compile says so in one line and gets the module as it is.
        """
        if wanted == "off" or (wanted == "auto" and self.device.type != "cuda"):
            return module
        try:
            torch.compile(torch.sin)(torch.zeros(2, device=self.device))
        except Exception as error:  # torch has a dozen kinds of them
            cause = str(error).strip().partition("\n")[0]
            warn(f"not compiled, it only takes longer: no working compiler ({cause})")
            return module
        for name in getattr(module, "eager_parts", ()):
            setattr(module, name, torch.compiler.disable(getattr(module, name)))
        return torch.compile(module)

    def memory_in_use(self) -> int:
        """Bytes: tensors at their peak on CUDA, at present on MPS; the process's peak on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if self.device.type == "mps":
            return torch.mps.current_allocated_memory()
        try:
            import resource
        except ImportError:  # on Windows
            memory = psutil.Process().memory_info()
            return getattr(memory, "peak_wset", memory.rss)
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def tune_process() -> None:
    """Makes this process fast at training; to be called before the first large tensor."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32 for products that stay in float32
    torch.set_num_threads(min(torch.get_num_threads(), num_cores()))
    if "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ()):
        libc = ctypes.CDLL(None)  # is to keep freed blocks: handed back, they fault in again
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def num_cores() -> int:
    """Physical cores that this process may use, or what a container allows it if that is less."""
    limits = [psutil.cpu_count(logical=False) or psutil.cpu_count() or 1]
    if hasattr(psutil.Process, "cpu_affinity"):  # macOS binds no process to processors
        limits.append(len(psutil.Process().cpu_affinity()))
    quota, period = CPU_QUOTA.read_text().split() if CPU_QUOTA.exists() else ("max", "")
    if quota != "max":  # of processor time in each period
        limits.append(max(1, int(quota) // int(period)))
    return min(limits)


def choose_device(wanted: str) -> tuple[torch.device, str]:
    """The device and why: the wanted one, or for "auto" the first of CUDA, MPS and CPU."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted != "auto":
        kind, _, index = wanted.partition(":")
        is_beyond = kind == "cuda" and int(index or 0) >= torch.cuda.device_count()
        if is_beyond or not available.get(kind, True):
            raise ConfigError(f"no such device here (device={wanted}): set it to auto")
        return torch.device(wanted), "as configured"
    if available["cuda"]:
        return torch.device("cuda"), torch.cuda.get_device_name()
    if available["mps"]:
        return torch.device("mps"), "no CUDA device found"
    return torch.device("cpu"), f"no GPU found, {torch.get_num_threads()} threads"


def choose_precision(device: torch.device, wanted: str) -> tuple[torch.dtype, str]:
    """The type of matrix products and why; "auto" is the fastest that the hardware has natively."""
    if wanted != "auto":
        return getattr(torch, wanted), "as configured"
    if device.type == "cuda":
        if torch.cuda.get_device_capability(device) >= (8, 0):
            return torch.bfloat16, "native here"
        return torch.float16, "no native bfloat16 here"
    if device.type == "cpu" and has_native_bfloat16():
        return torch.bfloat16, "native here"
    return torch.float32, "no native bfloat16 here"


def has_native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices faster than float32 ones."""
    flags = Path("/proc/cpuinfo")  # torch has no public query for this; elsewhere float32 is safe
    return flags.exists() and bool({"avx512_bf16", "amx_bf16"} & set(flags.read_text().split()))
