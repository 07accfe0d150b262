"""How far a run is, and what became of it: what the driver tells whoever started it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...core.errors import ConceptFailure


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is, in concepts. `underway` is the part of those left that is already done, such as 2.5.

    `workers` have loaded their model; nobody has taken the `shards_waiting` yet.
    """

    committed: int
    failed: int
    left: int
    underway: float
    workers: int
    shards_waiting: int = 0


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What became of every concept of the shards: it is in `committed` or in `failures`, once, or among the `left`.

    `left` counts concepts that were not done because the run was asked to stop; else it is 0. `seconds` adds up the
    workers' time by phase, and `ready_seconds` how long they were there, from the moment each had loaded its model
    until it was dismissed. `incidents` tells in order what was retried, split or quarantined. `workers`: the most that
    there were at once.
    """

    committed: tuple[str, ...]
    failures: tuple[ConceptFailure, ...]
    seconds: Mapping[str, float]
    ready_seconds: float
    incidents: tuple[str, ...]
    left: int = 0
    workers: int = 0
