"""Peak memory on the CPU, where Linux tells it."""

from __future__ import annotations

import sys

import pytest
import torch

from persres.core.training.device_memory import available_bytes, peak_memory

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
CPU = torch.device("cpu")
MIB = 2**20


def test_the_peak_is_what_was_held_at_once_and_is_gone_the_next_time():
    with peak_memory(CPU) as large:
        for _ in range(3):  # one after another, not together
            torch.ones(64 * MIB // 4)
    with peak_memory(CPU) as small:
        torch.ones(4 * MIB // 4)
    assert large.bytes is not None and small.bytes is not None
    assert 60 * MIB < large.bytes < 110 * MIB
    assert small.bytes < 30 * MIB


def test_available_memory_is_told():
    free = available_bytes(CPU)
    assert free is not None and free > 0
