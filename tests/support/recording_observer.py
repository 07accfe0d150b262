"""An observer that keeps what the driver reports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from persres.jobs.driver.observer import RunObserver
from persres.jobs.driver.progress import RunProgress
from persres.jobs.driver.shard_queue import ShardAttempt
from persres.pipeline.shard.summary import ShardSummary


@dataclass
class RecordingObserver(RunObserver):
    """Lists of all events; `react` is called with every progress, in the driver's thread."""

    react: Callable[[RunProgress], None] = lambda progress: None
    progress: list[RunProgress] = field(default_factory=list)
    started: list[ShardAttempt] = field(default_factory=list)
    ended: list[ShardSummary] = field(default_factory=list)
    incidents: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)

    def on_progress(self, progress: RunProgress) -> None:
        self.progress.append(progress)
        self.react(progress)

    def on_shard_start(self, attempt: ShardAttempt) -> None:
        self.started.append(attempt)

    def on_shard_end(self, summary: ShardSummary) -> None:
        self.ended.append(summary)

    def on_incident(self, text: str) -> None:
        self.incidents.append(text)

    def on_notice(self, text: str) -> None:
        self.notices.append(text)
