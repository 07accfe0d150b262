"""Count FLOPs during execution: those of matrix products, convolutions and attention, forward and backward.

Not counted: element-wise operations, normalizations, softmax, the optimizer. A multiply-add is two FLOPs.
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


# torch counts the attention kernels of GPUs but not that of CPUs.
_ON_CPU = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


def count_flops(work: Callable[[], object]) -> int:
    """Execute `work` and return its FLOPs."""
    with FlopCounterMode(display=False, custom_mapping=_ON_CPU) as counter:
        work()
    return counter.get_total_flops()


def count_flops_of_steps(work: Callable[[int], object], steps: int) -> int:
    """Return the FLOPs of `work(steps)`, extrapolated from `work(1)` and `work(2)`, since all steps are alike.

    Args:
        work: executes the given number of steps, with whatever comes before and after them.
    """
    one, two = (count_flops(lambda count=count: work(count)) for count in (1, 2))
    return one + (two - one) * (steps - 1)
