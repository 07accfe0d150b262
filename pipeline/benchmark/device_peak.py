"""The device: waiting for it, its CPU threads, and what it can do at most, the best rate of a plain matrix product."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_SIDES = {"cuda": (2048, 4096, 8192, 12288), "cpu": (512, 1024, 2048)}
_SECONDS_A_SHAPE = 0.25


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was asked; on a CPU that is now."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Compute with this many CPU threads while this is open."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest of a few square matrix products: the highest bar a row can be held to."""
    return max(_rate(side, device, dtype) for side in _SIDES["cuda" if device.type == "cuda" else "cpu"])


def _rate(side: int, device: torch.device, dtype: torch.dtype) -> float:
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    products = 1
    while True:  # best of several bursts; each burst twice as long as the last until one is long enough to trust
        synchronize(device)
        started = time.perf_counter()
        for _ in range(products):
            torch.mm(a, b, out=out)
        synchronize(device)
        seconds = time.perf_counter() - started
        if seconds >= _SECONDS_A_SHAPE:
            return 2 * side**3 * products / seconds
        products *= 2
