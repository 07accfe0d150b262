"""How far a run is, when it is likely to end, and what it gave."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ...core.errors import ConceptFailure


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is, in concepts.

    Attributes:
        left: neither committed nor failed.
        in_progress: how many of those left are already done, counting parts of shards: such as 2.5.
        workers: those that have loaded their model.
        shards_waiting: shards in the queue.
        seconds_to_go: the estimated time until the run ends; None while it cannot be estimated.
    """

    committed: int
    failed: int
    left: int
    in_progress: float
    workers: int
    shards_waiting: int = 0
    seconds_to_go: float | None = None

    @property
    def completed(self) -> float:
        """Concepts done, counting parts of shards."""
        return self.committed + self.failed + self.in_progress


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What a run gave. Every concept of its shards is in `committed` or in `failures`, once, or counted in `left`.

    Attributes:
        seconds: the workers' time by phase.
        ready_seconds: the workers' time from when each had loaded its model until it was stopped.
        incidents: what was retried, split or quarantined, in order.
        left: concepts not done because the run was stopped; otherwise 0.
        workers: the largest number at one time.
    """

    committed: tuple[str, ...]
    failures: tuple[ConceptFailure, ...]
    seconds: Mapping[str, float]
    ready_seconds: float
    incidents: tuple[str, ...]
    left: int = 0
    workers: int = 0


class TimeToGo:
    """Estimates when a run ends, from its speed since its first worker had loaded its model.

    Args:
        clock: monotonic seconds; tests pass their own.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started: float | None = None

    def estimate(self, progress: RunProgress) -> float | None:
        """Seconds from now; None while there is nothing to estimate from. To be called with every progress."""
        now = self._clock()
        if self._started is None and progress.workers:
            self._started = now  # the time to load models says nothing about the speed
        if not progress.left:
            return 0.0
        if self._started is None or progress.completed <= 0 or now <= self._started:
            return None
        return (now - self._started) * max(0.0, progress.left - progress.in_progress) / progress.completed
