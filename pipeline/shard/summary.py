"""The progress and the result of one attempt at a shard: what a worker returns to the driver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from ...core.errors import ConceptFailure
from ..catalog.commit_record import Measured

Phase = Literal["load", "train", "render", "score", "commit"]
DEVICE_PHASES: tuple[Phase, ...] = ("train", "render", "score")
"""The phases in which a shard has the device to itself; in the others it overlaps with other shards."""


@dataclass(frozen=True, slots=True)
class ShardProgress:
    """The progress of a running shard.

    Attributes:
        phase: the current phase.
        fraction: the share of the shard's estimated work that is done, 0 to 1. A retry, which the estimate does not
            contain, makes it fall or stand still.
        steps: iterations and denoising steps done, retries included; rises as long as the device makes progress.
    """

    phase: Phase
    fraction: float
    steps: int = 0


@dataclass(frozen=True, slots=True)
class ShardSummary:
    """The result of one attempt at a shard. Small, since it crosses the Ray boundary; tensors never do.

    Attributes:
        committed: ids of the committed concepts.
        seconds: by phase, without the time spent waiting for other shards.
        notes: messages for the run's log, such as "pack size reduced to 4 …".
        pack_size: the pack size with which training ended.
        bytes_written: the size of the data files.
        measured: the device's speed, as in the commit record.
    """

    shard_id: str
    attempt: str
    committed: tuple[str, ...]
    failures: tuple[ConceptFailure, ...]
    seconds: Mapping[str, float]
    notes: tuple[str, ...] = ()
    pack_size: int | None = None
    bytes_written: int = 0
    measured: Measured | None = None
