"""Memory of the CPU, measured on Linux."""

from __future__ import annotations

import sys

import pytest
import torch

from persres.core.training.device import available_bytes, peak_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
CPU = torch.device("cpu")
MIB = 2**20


def test_peak_memory_is_measured_anew_each_time():
    with peak_memory(CPU) as large:
        for _ in range(3):  # one after another, not together
            torch.ones(64 * MIB // 4)
    with peak_memory(CPU) as small:
        torch.ones(4 * MIB // 4)
    assert large.bytes is not None and small.bytes is not None
    assert 60 * MIB < large.bytes < 110 * MIB
    assert small.bytes < 30 * MIB


def test_available_bytes_is_positive():
    free = available_bytes(CPU)
    assert free is not None and free > 0
