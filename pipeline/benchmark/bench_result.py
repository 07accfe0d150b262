"""The result of a benchmark: a row for each workload, and its JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Unit = Literal["concept", "image"]
REFERENCE: Mapping[Unit, str] = {"concept": "peer", "image": "peer_render"}
"""The row with which the others of its unit are compared."""


@dataclass(frozen=True, slots=True)
class Measurement:
    """The measurement of one row.

    Attributes:
        seconds: per concept or image, the best of the rounds.
        flops: per concept or image.
        peak_bytes: the maximum of the rounds; None if it cannot be measured.
    """

    name: str
    unit: Unit
    seconds: float
    flops: float
    peak_bytes: int | None


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One row of the result.

    Attributes:
        ratio_to_peer: speed relative to the peer's; None if the peer was not measured.
        peak_share: FLOP/s relative to those of the device's fastest matrix product.
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
    """All rows, with the machine and settings they were measured with, and notes on how to read them."""

    machine: Mapping[str, Any]
    rows: tuple[BenchRow, ...]
    notes: tuple[str, ...]

    def to_json(self) -> str:
        return json.dumps({"machine": dict(self.machine), "rows": [row.to_json() for row in self.rows]}, indent=1)


def compare(measured: Sequence[Measurement], matmul_peak: float) -> tuple[BenchRow, ...]:
    """Relate every measurement to its peer and to the device's peak rate."""
    seconds = {one.name: one.seconds for one in measured}

    def row(one: Measurement) -> BenchRow:
        reference = seconds.get(REFERENCE[one.unit])
        ratio = reference / one.seconds if reference is not None else None
        share = one.flops / one.seconds / matmul_peak
        return BenchRow(one.name, one.unit, one.seconds, ratio, one.peak_bytes, share)

    return tuple(map(row, measured))
