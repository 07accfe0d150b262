"""What a run's summary and documents need to know, recorded while the run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable

from ...pipeline.catalog.commit_record import Measured
from ...pipeline.shard.summary import ShardSummary
from ..driver.observer import RunObserver
from ..driver.progress import RunProgress


class RunRecorder(RunObserver):
    """Records measurements and incidents of one run, which begins when the recorder is made.

    Args:
        clock: monotonic seconds; tests pass their own.

    Attributes:
        start_seconds: the time until the first worker had loaded its model; None until then.
        committed: how many concepts are committed.
        measured: the device time of each shard that was executed, and what it was spent on.
        incidents: in order.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._started = clock, clock()
        self.start_seconds: float | None = None
        self.committed = 0
        self.measured: list[Measured] = []
        self.incidents: list[str] = []

    @property
    def elapsed_seconds(self) -> float:
        """The time since the run began."""
        return round(self._clock() - self._started, 3)

    def on_progress(self, progress: RunProgress) -> None:
        self.committed = progress.committed
        if self.start_seconds is None and progress.workers:
            self.start_seconds = self.elapsed_seconds

    def on_shard_end(self, summary: ShardSummary) -> None:
        if summary.measured is not None:
            self.measured.append(summary.measured)

    def on_incident(self, text: str) -> None:
        self.incidents.append(text)
