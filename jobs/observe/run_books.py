"""What a run's cost is reckoned from: taken down by the driver while the run goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from ...pipeline.catalog.commit_record import Measured
from ...pipeline.shard.work import ShardSummary
from ..driver.progress import RunProgress


@dataclass(eq=False)
class RunBooks:
    """The books of one run.

    Attributes:
        started: when the run began, by `clock`.
        clock: seconds that only grow; tests bring their own.
        start_seconds: how long it was until the first worker had loaded its model; None until one has.
        measured: what each shard that was carried out took for how much.
    """

    started: float
    clock: Callable[[], float] = time.monotonic
    start_seconds: float | None = None
    measured: list[Measured] = field(default_factory=list)

    def progress(self, progress: RunProgress) -> None:
        """Take down how far the run is; to be called all the time."""
        if self.start_seconds is None and progress.workers:
            self.start_seconds = round(self.clock() - self.started, 3)

    def shard_ended(self, summary: ShardSummary) -> None:
        """Take down what one attempt at a shard took."""
        if summary.measured is not None:
            self.measured.append(summary.measured)
