"""FLOPs counted while they happen, not looked up: matrix products, convolutions and attention, forward and backward.

Not counted: element-wise work, normalizations, softmax, the optimizer. A multiplication with an addition is two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


# torch counts the attention kernels of GPUs but not the one that CPUs use.
_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def flops_of(work: Callable[[], object]) -> int:
    """How many FLOPs `work` does; it is really done."""
    with FlopCounterMode(display=False, custom_mapping=_ON_CPU) as counter:
        work()
    return counter.get_total_flops()


def flops_of_steps(work: Callable[[int], object], steps: int) -> int:
    """FLOPs of work whose steps are all alike, from counting one step and two; what comes before and after counts once.

    Args:
        work: called with the number of steps to do.
        steps: how many steps to answer for.
    """
    one, two = (flops_of(lambda count=count: work(count)) for count in (1, 2))
    return one + (two - one) * (steps - 1)
