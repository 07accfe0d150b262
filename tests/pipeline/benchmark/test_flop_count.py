"""FLOP counts, compared with counts by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from persres.pipeline.benchmark.flop_count import count_flops, count_flops_of_steps

LINEAR = 2 * 8 * 16 * 32
"""FLOPs of the product of 8 rows with a 16 x 32 matrix."""


def frozen_linear() -> torch.nn.Linear:
    return torch.nn.Linear(16, 32).requires_grad_(False)


def test_linear_layer_forward_is_one_product():
    layer, x = frozen_linear(), torch.randn(8, 16)
    assert count_flops(lambda: layer(x)) == LINEAR


def test_frozen_layer_has_one_product_backward_and_a_trained_one_two():
    layer, x = frozen_linear(), torch.randn(8, 16, requires_grad=True)
    assert count_flops(lambda: layer(x).sum().backward()) == 2 * LINEAR
    layer.requires_grad_(True)
    assert count_flops(lambda: layer(x).sum().backward()) == 3 * LINEAR


def test_convolution_is_counted_forward_and_backward():
    layer = torch.nn.Conv2d(3, 5, 3, padding=1).requires_grad_(False)
    x = torch.randn(2, 3, 7, 7, requires_grad=True)
    once = 2 * (2 * 7 * 7) * 5 * (3 * 3 * 3)
    assert count_flops(lambda: layer(x)) == once
    assert count_flops(lambda: layer(x).sum().backward()) == 2 * once


def test_attention_on_a_cpu_is_counted():
    q = torch.randn(1, 2, 10, 8, requires_grad=True)
    k, v = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    product = 2 * 2 * 10 * 6 * 8  # two heads, 10 queries, 6 keys, 8 channels
    assert count_flops(lambda: F.scaled_dot_product_attention(q, k, v)) == 2 * product
    backward = count_flops(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
    assert backward == (2 + 5) * product, "scores once more, and four products of gradients"


def test_counts_in_inference_mode_are_the_same():
    layer, x = frozen_linear(), torch.randn(8, 16)

    @torch.inference_mode()
    def inferred():
        y = layer(x).view(1, 1, 8, 32)
        return F.scaled_dot_product_attention(y, y, y)

    assert count_flops(inferred) == LINEAR + 2 * (2 * 8 * 8 * 32)


@given(before=st.integers(0, 3), steps=st.integers(1, 1000))
def test_flops_of_steps_are_extrapolated(before, steps):
    layer, x = frozen_linear(), torch.randn(8, 16)

    def work(count: int) -> None:
        for _ in range(before + 2 * count):
            layer(x)

    assert count_flops_of_steps(work, steps) == (before + 2 * steps) * LINEAR
