"""Terminal, metrics, log and books hear the same about a run."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from persres.core.errors import ConceptFailure
from persres.jobs.driver.progress import RunProgress
from persres.jobs.observe.display import DISPLAY_LINE_INTERVAL_S, Pace, RunDisplay
from persres.jobs.observe.observer import PROGRESS_LOG_INTERVAL_S, RunWatch
from persres.jobs.observe.run_books import RunBooks
from persres.pipeline.run.log import RunEvent, RunLog
from persres.pipeline.shard.work import ShardSummary


class Metrics:
    """What was exported; the real ones want a Ray, and have a test with one."""

    def __init__(self) -> None:
        self.heard: list[tuple[Any, ...]] = []

    def progress(self, progress: RunProgress, seconds_to_go: float | None) -> None:
        self.heard.append(("progress", seconds_to_go))

    def shard_ended(self, summary: ShardSummary) -> None:
        self.heard.append(("shard", summary.shard_id))

    def incident(self, text: str) -> None:
        self.heard.append(("incident", text))


class Watched:
    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[RunEvent] = []
        self.metrics, self.terminal, self.incidents = Metrics(), io.StringIO(), []
        display = RunDisplay(Console(file=self.terminal, width=200), 10, clock=self.clock)
        log = RunLog(None, "r", self.events.append)
        pace = Pace(10, clock=self.clock)
        books = RunBooks(0.0, clock=self.clock)
        self.watch = RunWatch(display, self.metrics, log, books, pace, self.incidents, clock=self.clock)  # type: ignore[arg-type]

    def clock(self) -> float:
        return self.now


@pytest.fixture
def watched() -> Watched:
    return Watched()


def test_terminal_metrics_and_log_agree_on_the_time_to_go(watched):
    watched.watch.progress(RunProgress(0, 0, 10, 0.0, workers=2))
    watched.now = max(PROGRESS_LOG_INTERVAL_S, DISPLAY_LINE_INTERVAL_S)
    watched.watch.progress(RunProgress(5, 0, 5, 0.0, workers=2))
    assert watched.metrics.heard == [("progress", None), ("progress", 60.0)]
    assert "about 60 s to go" in watched.terminal.getvalue()
    first, second = watched.events
    assert "seconds_to_go" not in first.fields and second.fields["seconds_to_go"] == 60.0
    assert second.text == "5 done, 0 failed, 5 left, about 60 s to go"
    assert watched.watch.latest == RunProgress(5, 0, 5, 0.0, workers=2)


def test_progress_is_logged_once_a_minute(watched):
    for second in range(180):
        watched.now = float(second)
        watched.watch.progress(RunProgress(0, 0, 10, 0.0, workers=1))
    assert [event.event for event in watched.events] == ["progress"] * 3
    assert len(watched.metrics.heard) == 180


def test_a_shards_end_and_its_failures_are_events_of_their_own(watched):
    failure = ConceptFailure("b", "train", "its loss is not finite", "use other pictures")
    watched.watch.shard_ended(ShardSummary("s1", "002", ("a",), (failure,), {"train": 2.0, "commit": 0.5}))
    ended, failed = watched.events
    assert ended.fields["concepts"] == ["a"] and ended.fields["seconds"] == {"train": 2.0, "commit": 0.5}
    assert ended.text == "shard s1, attempt 002: 1 committed, 1 failed, 2.5 s"
    assert (failed.level, failed.fields["concept_id"], failed.fields["shard_id"]) == ("warning", "b", "s1")
    assert watched.metrics.heard == [("shard", "s1")]


def test_incidents_are_kept_counted_and_logged_notices_only_logged(watched):
    watched.watch.incident("a worker was lost")
    watched.watch.notice("waiting for a machine")
    assert watched.incidents == ["a worker was lost"] and watched.metrics.heard == [("incident", "a worker was lost")]
    assert [(event.event, event.level) for event in watched.events] == [("incident", "warning"), ("notice", "info")]
