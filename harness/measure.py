"""Seconds, floating-point operations and memory of a piece of work on a device."""

import contextlib
import ctypes
import gc
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

THREADS = torch.get_num_threads()  # of the processor, for all processes of a command


@dataclass(frozen=True)
class Seconds:
    """Median, least and most of some repetitions."""

    median: float
    least: float
    most: float


def timed(
    works: Mapping[str, Callable[[], object]],
    repeats: int,
    device: torch.device,
    warm: bool = False,
) -> dict[str, Seconds]:
    """Seconds of each piece of work: each is done once unmeasured, unless it is `warm` already,
    then all of them in turn."""
    if not warm:
        for work in works.values():
            work()
    spent: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            wait(device)
            started = time.perf_counter()
            work()
            wait(device)
            spent[name].append(time.perf_counter() - started)
    return {n: Seconds(statistics.median(t), min(t), max(t)) for n, t in spent.items()}


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations that `work` does, as torch counts them: two for a multiplication
    and addition, matrix products and convolutions alone.

    Attention runs unfused meanwhile: the counter does not see into the fused kernels.
    """
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        work()
    return int(counter.get_total_flops())


def start_peak(device: torch.device) -> int | None:
    """Starts the measurement that `peak` reads; the bytes in use now, None where they cannot be
    known (on a CPU: outside Linux)."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    try:
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)  # what was freed would hide what is taken next
        Path("/proc/self/clear_refs").write_text("5")
        return _resident("VmRSS")
    except OSError:
        return None


def peak(device: torch.device) -> int | None:
    """Bytes in use at most since `start_peak`: allocated on a CUDA device, or resident of this
    process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        return _resident("VmHWM")
    except OSError:
        return None


def taken(work: Callable[[], object], device: torch.device) -> int | None:
    """Bytes that `work` needs at most, above what is in use before it."""
    before = start_peak(device)
    work()
    most = peak(device)
    return None if before is None or most is None else max(0, most - before)


def _resident(what: str) -> int:
    """Bytes of the process's memory: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{what}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {what}")


def device_name(device: torch.device) -> str:
    """The model of the device, such as `NVIDIA H200` or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
