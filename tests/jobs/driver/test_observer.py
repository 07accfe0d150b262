"""The composite of observers."""

from __future__ import annotations

from persres.jobs.driver.observer import Observers, RunObserver
from persres.jobs.driver.progress import RunProgress
from persres.jobs.driver.shard_queue import ShardAttempt
from persres.pipeline.shard.summary import ShardSummary

from ...support.catalog_factories import planned, shard_of
from ...support.recording_observer import RecordingObserver

PROGRESS = RunProgress(1, 0, 1, 0.5, workers=1)
ATTEMPT = ShardAttempt(shard_of(planned("a")), "001")
SUMMARY = ShardSummary("s1", "001", ("a",), (), {})


class IncidentsOnly(RunObserver):
    def __init__(self) -> None:
        self.incidents: list[str] = []

    def on_incident(self, text: str) -> None:
        self.incidents.append(text)


def test_observers_broadcast_every_event():
    first, second, incidents_only = RecordingObserver(), RecordingObserver(), IncidentsOnly()
    observers = Observers(first, incidents_only, second)
    observers.on_progress(PROGRESS)
    observers.on_shard_start(ATTEMPT)
    observers.on_shard_end(SUMMARY)
    observers.on_incident("a worker was lost")
    observers.on_notice("waiting for a node")
    for observer in (first, second):
        assert (observer.progress, observer.started, observer.ended) == ([PROGRESS], [ATTEMPT], [SUMMARY])
        assert (observer.incidents, observer.notices) == (["a worker was lost"], ["waiting for a node"])
    assert incidents_only.incidents == ["a worker was lost"]
