"""What a benchmark found: a row a way of working, and the JSON that other programs read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["concept", "image"]
REFERENCE: Mapping[Unit, str] = {"concept": "peer", "image": "peer_render"}
"""The row that the others of its unit are compared with."""


@dataclass(frozen=True, slots=True)
class Measured:
    """What one row's rounds gave.

    Attributes:
        seconds: for one concept or image, the best of the rounds.
        flops: that one concept or image takes.
        peak_bytes: the most of all rounds; None where the machine does not tell.
    """

    name: str
    unit: Unit
    seconds: float
    flops: float
    peak_bytes: int | None


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One line of the table.

    Attributes:
        ratio_to_peer: how many times the peer's speed, so the peer's own is 1; None if the peer was not measured.
        peak_share: the rate at which it did its FLOPs, as a share of the device's best matrix product.
    """

    name: str
    unit: Unit
    seconds: float
    ratio_to_peer: float | None
    peak_bytes: int | None
    peak_share: float

    def to_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            f"seconds_per_{self.unit}": self.seconds,
            "ratio_to_peer": self.ratio_to_peer,
            "peak_bytes": self.peak_bytes,
            "peak_share": self.peak_share,
        }


@dataclass(frozen=True, slots=True)
class BenchResult:
    """`machine`: where and how it was measured. `notes`: what a reader has to know beside the figures."""

    machine: Mapping[str, Any]
    rows: tuple[BenchRow, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        return json.dumps({"machine": dict(self.machine), "rows": [row.to_json() for row in self.rows]}, indent=1)


def compare(measured: Sequence[Measured], matmul_peak: float) -> tuple[BenchRow, ...]:
    """Hold every measurement against its peer and against the device."""
    seconds = {one.name: one.seconds for one in measured}

    def row(one: Measured) -> BenchRow:
        reference = seconds.get(REFERENCE[one.unit])
        ratio = reference / one.seconds if reference is not None else None
        share = one.flops / one.seconds / matmul_peak
        return BenchRow(one.name, one.unit, one.seconds, ratio, one.peak_bytes, share)

    return tuple(map(row, measured))
