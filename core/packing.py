"""Which concepts are trained together on one device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

Item = TypeVar("Item")


def pack(items: Sequence[Item], pack_size: int) -> list[Sequence[Item]]:
    """Cut a shard's concepts, in order, into packs of `pack_size`; the last may be short, training pads it.

    How a shard is cut changes no result (law 1): every random number of a concept comes from its own seed, and packs
    have one fixed tensor shape.
    """
    if pack_size < 1:
        raise ValueError(f"pack_size is {pack_size}; a pack holds at least one concept")
    return [items[start : start + pack_size] for start in range(0, len(items), pack_size)]
