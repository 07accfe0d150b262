"""The device: its memory, free and at the peak of a computation, sending values to it, and waiting for it.

Peak memory is, on CUDA, the most that torch had allocated, with the frozen model; on a CPU, the growth of the process's
resident memory, without the model.
"""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

_SELF = Path("/proc/self")


@dataclass
class PeakMemory:
    """The result of `peak_memory`: `bytes` is set when its context ends; None if it cannot be measured here."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Context manager that measures the peak memory of its body. Releases unused memory first."""
    peak = PeakMemory()
    release_memory(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device)
        return
    before = _reset_peak_resident()
    yield peak
    if before is not None and (after := _resident("VmHWM")) is not None:
        peak.bytes = max(0, after - before)


def release_memory(device: torch.device) -> None:
    """Return unused memory to the system, so that the next measurement does not reuse it."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(
            ctypes.CDLL(None), "malloc_trim", None
        )  # glibc keeps freed memory; other libraries have no such call
        if trim is not None:
            trim(0)


def send(values: Tensor, device: torch.device) -> Tensor:
    """Copy values to the device, without waiting for it."""
    if device.type != "cuda" or values.device.type == "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queued work; returns at once on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def available_bytes(device: torch.device) -> int | None:
    """Return the memory that this process can still allocate without being killed, or None if it is unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    return min(free, _available_in_cgroup() or free)


def _available_in_cgroup() -> int | None:
    """Return what the container's memory limit leaves, or None without a limit."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())  # "max" where there is no limit
        return limit - int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return None


def _reset_peak_resident() -> int | None:
    try:
        (_SELF / "clear_refs").write_text("5")  # resets VmHWM to the current resident memory
    except OSError:
        return None
    return _resident("VmRSS")


def _resident(name: str) -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in (_SELF / "status").read_text().splitlines())
        return int(lines[name].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
