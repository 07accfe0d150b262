"""The device's matrix-product rate, and its threads."""

from __future__ import annotations

import torch

from persres.pipeline.benchmark.device_peak import matmul_peak, threads


def test_the_peak_is_a_rate_of_matrix_products():
    assert matmul_peak(torch.device("cpu"), torch.float32) > 1e8


def test_threads_are_put_back():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
