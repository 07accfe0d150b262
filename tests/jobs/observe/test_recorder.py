"""What a run records for its summary and documents."""

from __future__ import annotations

from persres.jobs.driver.progress import RunProgress
from persres.jobs.observe.recorder import RunRecorder
from persres.pipeline.catalog.commit_record import Measured
from persres.pipeline.shard.summary import ShardSummary

MEASURED = Measured("gpu", "t", "r", 4, concepts=2)


def progress(workers: int, committed: int = 0) -> RunProgress:
    return RunProgress(committed, 0, 4 - committed, 0.0, workers)


def test_start_seconds_end_when_the_first_worker_is_ready():
    times = iter([10.0, 17.0, 99.0])
    recorder = RunRecorder(clock=lambda: next(times))
    recorder.on_progress(progress(0))
    assert recorder.start_seconds is None
    for workers in (1, 2, 0, 1):
        recorder.on_progress(progress(workers))
    assert recorder.start_seconds == 7.0 and recorder.elapsed_seconds == 89.0


def test_committed_is_the_latest_count():
    recorder = RunRecorder()
    assert recorder.committed == 0
    for committed in (1, 3):
        recorder.on_progress(progress(1, committed))
    assert recorder.committed == 3


def test_measurements_of_every_attempt_are_kept():
    recorder = RunRecorder()
    for measured in (MEASURED, None, MEASURED):  # None: of an attempt whose version measured nothing
        recorder.on_shard_end(ShardSummary("s", "1", ("a",), (), {}, measured=measured))
    assert recorder.measured == [MEASURED, MEASURED]


def test_incidents_are_kept_and_notices_are_not():
    recorder = RunRecorder()
    recorder.on_incident("a worker was lost")
    recorder.on_notice("waiting for a node")
    assert recorder.incidents == ["a worker was lost"]
