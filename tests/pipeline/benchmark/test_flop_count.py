"""Counts that can be done by hand."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from persres.pipeline.benchmark.flop_count import flops_of, flops_of_steps

LINEAR = 2 * 8 * 16 * 32
"""Eight rows through a 16 x 32 matrix."""


def frozen_linear() -> torch.nn.Linear:
    return torch.nn.Linear(16, 32).requires_grad_(False)


def test_a_linear_layer_forward():
    layer, x = frozen_linear(), torch.randn(8, 16)
    assert flops_of(lambda: layer(x)) == LINEAR


def test_a_frozen_layer_has_one_product_backward_and_a_trained_one_two():
    layer, x = frozen_linear(), torch.randn(8, 16, requires_grad=True)
    assert flops_of(lambda: layer(x).sum().backward()) == 2 * LINEAR
    layer.requires_grad_(True)
    assert flops_of(lambda: layer(x).sum().backward()) == 3 * LINEAR


def test_a_convolution_forward_and_backward():
    layer = torch.nn.Conv2d(3, 5, 3, padding=1).requires_grad_(False)
    x = torch.randn(2, 3, 7, 7, requires_grad=True)
    once = 2 * (2 * 7 * 7) * 5 * (3 * 3 * 3)
    assert flops_of(lambda: layer(x)) == once
    assert flops_of(lambda: layer(x).sum().backward()) == 2 * once


def test_attention_on_the_cpu_counts():
    q = torch.randn(1, 2, 10, 8, requires_grad=True)
    k, v = torch.randn(1, 2, 6, 8), torch.randn(1, 2, 6, 8)
    product = 2 * 2 * 10 * 6 * 8  # two heads, 10 queries, 6 keys, 8 channels
    assert flops_of(lambda: F.scaled_dot_product_attention(q, k, v)) == 2 * product
    backward = flops_of(lambda: F.scaled_dot_product_attention(q, k, v).sum().backward())
    assert backward == (2 + 5) * product, "scores once more, and four products of gradients"


def test_inference_mode_counts_the_same():
    layer, x = frozen_linear(), torch.randn(8, 16)

    @torch.inference_mode()
    def inferred():
        y = layer(x).view(1, 1, 8, 32)
        return F.scaled_dot_product_attention(y, y, y)

    assert flops_of(inferred) == LINEAR + 2 * (2 * 8 * 8 * 32)


@given(before=st.integers(0, 3), steps=st.integers(1, 1000))
def test_like_steps_are_counted_once_and_multiplied(before, steps):
    layer, x = frozen_linear(), torch.randn(8, 16)

    def work(count: int) -> None:
        for _ in range(before + 2 * count):
            layer(x)

    assert flops_of_steps(work, steps) == (before + 2 * steps) * LINEAR
