"""Splitting a sequence into tensor batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def batches(items: Sequence[Item], batch_size: int) -> list[Sequence[Item]]:
    """Split items, in order, into batches of `batch_size`. The last batch may be short: it is not padded here.

    Raises:
        ValueError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; a batch holds at least one item")
    return [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
