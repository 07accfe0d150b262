"""The device's peak rate, that of a plain matrix product, and the number of CPU threads."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ...core.training.device import synchronize

_SIDES = {"cuda": (2048, 4096, 8192, 12288), "cpu": (512, 1024, 2048)}
_SECONDS_PER_SHAPE = 0.25


@contextmanager
def cpu_threads(count: int) -> Iterator[None]:
    """Context manager in which torch computes with `count` CPU threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def matmul_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Return the FLOP/s of the fastest of a few square matrix products, the upper bound for every row."""
    return max(_rate(side, device, dtype) for side in _SIDES["cuda" if device.type == "cuda" else "cpu"])


def _rate(side: int, device: torch.device, dtype: torch.dtype) -> float:
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    products = 1
    while True:  # double the number of products until they take long enough to be measured
        synchronize(device)
        started = time.perf_counter()
        for _ in range(products):
            torch.mm(a, b, out=out)
        synchronize(device)
        seconds = time.perf_counter() - started
        if seconds >= _SECONDS_PER_SHAPE:
            return 2 * side**3 * products / seconds
        products *= 2
