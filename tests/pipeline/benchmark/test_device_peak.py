"""The device's matrix-product rate, and its CPU threads."""

from __future__ import annotations

import torch

from persres.pipeline.benchmark.device_peak import cpu_threads, matmul_peak


def test_peak_is_the_rate_of_matrix_products(short_measurements):
    assert matmul_peak(torch.device("cpu"), torch.float32) > 1e8


def test_threads_are_restored():
    before = torch.get_num_threads()
    with cpu_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
