"""The events in a run's log."""

from __future__ import annotations

import pytest

from persres.core.errors import ConceptFailure
from persres.jobs.driver.progress import RunProgress
from persres.jobs.driver.shard_queue import ShardAttempt
from persres.jobs.observe.log_observer import PROGRESS_LOG_INTERVAL_S, LogObserver
from persres.pipeline.run.log import RunEvent, RunLog
from persres.pipeline.shard.summary import ShardSummary

from ...support.catalog_factories import planned, shard_of


class Logged:
    """An observer whose clock stands at `now`, and the events that it has logged."""

    def __init__(self) -> None:
        self.now = 0.0
        self.events: list[RunEvent] = []
        self.observer = LogObserver(RunLog(None, "r", self.events.append), clock=lambda: self.now)


@pytest.fixture
def logged() -> Logged:
    return Logged()


def test_progress_is_logged_with_counts_and_time_to_go(logged):
    logged.observer.on_progress(RunProgress(0, 0, 10, 0.0, workers=2))
    logged.now = PROGRESS_LOG_INTERVAL_S
    logged.observer.on_progress(RunProgress(5, 0, 5, 0.0, workers=2, seconds_to_go=60.0))
    first, second = logged.events
    assert "seconds_to_go" not in first.fields and second.fields["seconds_to_go"] == 60.0
    assert second.text == "5 done, 0 failed, 5 left, about 60 s to go"


def test_progress_is_logged_once_a_minute(logged):
    for second in range(180):
        logged.now = float(second)
        logged.observer.on_progress(RunProgress(0, 0, 10, 0.0, workers=1))
    assert [event.event for event in logged.events] == ["progress"] * 3


def test_shard_start_is_an_event(logged):
    logged.observer.on_shard_start(ShardAttempt(shard_of(planned("a"), planned("b")), "002"))
    (started,) = logged.events
    assert (started.event, started.fields["concepts"]) == ("shard_started", ["a", "b"])
    assert started.text.endswith("attempt 002: 2 to train and render")


def test_shard_end_and_each_failure_are_events(logged):
    failure = ConceptFailure("b", "train", "its loss is not finite", "use other pictures")
    logged.observer.on_shard_end(ShardSummary("s1", "002", ("a",), (failure,), {"train": 2.0, "commit": 0.5}))
    ended, failed = logged.events
    assert ended.fields["concepts"] == ["a"] and ended.fields["seconds"] == {"train": 2.0, "commit": 0.5}
    assert ended.text == "shard s1, attempt 002: 1 committed, 1 failed, 2.5 s"
    assert (failed.level, failed.fields["concept_id"], failed.fields["shard_id"]) == ("warning", "b", "s1")


def test_incidents_are_warnings_and_notices_are_not(logged):
    logged.observer.on_incident("a worker was lost")
    logged.observer.on_notice("waiting for a node")
    assert [(event.event, event.level) for event in logged.events] == [("incident", "warning"), ("notice", "info")]
