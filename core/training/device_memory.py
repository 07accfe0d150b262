"""The most memory that a piece of work held at once.

CUDA: what torch allocated at the peak, the frozen model included, since it has to be there too. CPU: how far the
process's resident memory grew at the peak, without the model, which all rows share.
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

_SELF = Path("/proc/self")


@dataclass
class PeakMemory:
    """`bytes` is set at the end of the work; None where this machine does not tell."""

    bytes: int | None = None


@contextmanager
def peak_memory(device: torch.device) -> Iterator[PeakMemory]:
    """Measure the peak while this is open, starting from memory that is as empty as it can be made."""
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
    """Give back what nobody uses, so that the next row does not find it already there."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    elif sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc keeps freed memory; others have no such call
        if trim is not None:
            trim(0)


def available_bytes(device: torch.device) -> int | None:
    """Memory that this process could still take without being killed; None where this machine does not tell."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
    return min(free, _left_in_control_group() or free)


def _left_in_control_group() -> int | None:
    """What a container's memory limit leaves; None where there is none."""
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())  # "max" where there is no limit
        return limit - int((group / "memory.current").read_text())
    except (OSError, ValueError):
        return None


def _reset_peak_resident() -> int | None:
    try:
        (_SELF / "clear_refs").write_text("5")  # sets VmHWM back to what is resident now
    except OSError:
        return None
    return _resident("VmRSS")


def _resident(name: str) -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in (_SELF / "status").read_text().splitlines())
        return int(lines[name].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None
