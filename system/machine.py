"""Where a command runs: the device, the precision, threads and memory."""

import ctypes
import math
import os
import platform
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
import torch
from torch import Tensor, nn

from system.choice import Choice, Choices, Piece, noise
from system.errors import ConfigError
from system.process import warn

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h
DEVICE_NAME = re.compile(r"cpu|mps|cuda(:\d+)?")
CPU_INFO = Path("/proc/cpuinfo")
CGROUPS, OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
TYPES = ("float32", "bfloat16", "float16")  # of products; one must win over those before it
NEAR = 1e-2  # what 8 bits of mantissa may lose, as a share of a result's norm
MOST_ROWS = 2048  # of a matrix that is timed: a longer one is multiplied at the same rate
Shape = tuple[int, int, int, int]  # (N, K) by (K, M), and how often


@dataclass(frozen=True)
class Machine:
    """The device of a run, the type of its matrix products, and ways to compute the rest."""

    device: torch.device
    dtype: torch.dtype
    reason: str  # for each, in one line
    ways: dict[str, str] = field(default_factory=dict)  # by question; else the first of its table

    def __str__(self) -> str:
        return self.reason

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


def name_of(device: torch.device) -> str:
    """What its maker calls the device, or the processor."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    models = re.findall("model name.*: (.*)", CPU_INFO.read_text()) if CPU_INFO.exists() else []
    return models[0] if models else platform.processor() or platform.machine()


def tune_process() -> None:
    """Makes this process fast at training; to be called before the first large tensor."""
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")  # TF32 for products that stay in float32
    torch.set_num_threads(min(torch.get_num_threads(), num_cores()))
    if "CS_GNU_LIBC_VERSION" in getattr(os, "confstr_names", ()):
        libc = ctypes.CDLL(None)  # is to keep freed blocks: handed back, they fault in again
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def yield_to_others() -> None:
    """Leaves half of the cores, and all of them where others have work: a training goes first."""
    process = psutil.Process()
    process.nice(getattr(psutil, "BELOW_NORMAL_PRIORITY_CLASS", max(10, process.nice())))
    torch.set_num_threads(max(1, num_cores() // 2))


def trim_heap() -> None:
    """Hands back what was freed and is kept, for memory that is filled otherwise from now on."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "malloc_trim"):  # not in every library of C
        libc.malloc_trim(0)


def num_cores() -> int:
    """Physical cores that this process may use, or what a container allows it if that is less."""
    limits = [psutil.cpu_count(logical=False) or psutil.cpu_count() or 1, processor_quota()]
    if hasattr(psutil.Process, "cpu_affinity"):  # macOS binds no process to processors
        limits.append(len(psutil.Process().cpu_affinity()))
    return max(1, int(min(limits)))


def processor_quota() -> float:
    """Processors whose time the control groups of this process share, by version 1 or 2 of them."""
    quotas = [math.inf]
    lines = OWN_GROUPS.read_text().splitlines() if OWN_GROUPS.exists() else []
    for _, controllers, group in (line.split(":", 2) for line in lines):
        top = CGROUPS / controllers
        own = top / group.strip("/")
        for folder in (own, *own.parents):
            if folder.is_relative_to(top):
                quotas.append(quota_of(folder))
    return min(quotas)


def quota_of(folder: Path) -> float:
    """Processor time in each period of time, which one group allows."""
    files = ["cpu.max"], ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
    for names in files:
        if all((folder / name).exists() for name in names):
            quota, period = " ".join((folder / name).read_text() for name in names).split()
            return math.inf if quota in ("max", "-1") else int(quota) / int(period)
    return math.inf


def choose_device(wanted: str) -> tuple[torch.device, str]:
    """The device and why: the wanted one, or for "auto" the first of CUDA, MPS and CPU."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted != "auto":
        kind, _, index = wanted.partition(":")
        is_known = DEVICE_NAME.fullmatch(wanted) and available.get(kind, True)
        if not is_known or (kind == "cuda" and int(index or 0) >= torch.cuda.device_count()):
            raise ConfigError(f"no such device here (device={wanted}): set it to auto")
        return torch.device(wanted), "as configured"
    if available["cuda"]:
        return torch.device("cuda"), torch.cuda.get_device_name()
    if available["mps"]:
        return torch.device("mps"), "no CUDA device found"
    return torch.device("cpu"), f"no GPU found, {torch.get_num_threads()} threads"


def choose_precision(
    device: torch.device, wanted: str, choices: Choices, *, shapes: Sequence[Shape]
) -> Choice:
    """The type of matrix products: the wanted one, or for "auto" the fastest with the shapes."""
    if wanted != "auto":
        return Choice(wanted, reason="as configured")
    ways = {
        name: partial(products, shapes=shapes, device=device, dtype=getattr(torch, name))
        for name in TYPES
    }
    try:
        return choices.of("precision", ways, tolerance=NEAR)
    except Exception:  # torch has a dozen kinds of them
        if device.type != "cuda":
            raise
        has_bfloat16 = torch.cuda.get_device_capability(device) >= (8, 0)
        return Choice("bfloat16" if has_bfloat16 else "float16", reason="not measured, native here")


def products(
    share: float, *, shapes: Sequence[Shape], device: torch.device, dtype: torch.dtype
) -> list[Piece]:
    """For each shape the product and those of both gradients, for a share of the N rows."""
    pieces = []
    for num_rows, inputs, outputs, count in shapes:
        N, M = max(1, round(num_rows * share)), min(outputs, MOST_ROWS)
        sizes = (N, inputs), (M, inputs), (N, M)
        x, weight, d_y = (noise(*size).to(device, dtype) for size in sizes)
        for pair in ((x, weight.T), (d_y, weight), (d_y.T, x)):
            amount = 2.0 * N * inputs * M
            pieces.append(Piece(partial(torch.mm, *pair), amount, count * outputs / M))
    return pieces
