"""What the driver takes down for a run's cost."""

from __future__ import annotations

from persres.jobs.driver.progress import RunProgress
from persres.jobs.observe.run_books import RunBooks
from persres.pipeline.catalog.commit_record import Measured
from persres.pipeline.shard.work import ShardSummary

ONE = Measured("gpu", "t", "r", 4, concepts=2)


def progress(workers: int) -> RunProgress:
    return RunProgress(0, 0, 4, 0.0, workers)


def test_a_run_has_started_when_its_first_worker_has_loaded_its_model():
    times = iter([17.0, 99.0])
    books = RunBooks(10.0, clock=lambda: next(times))
    books.progress(progress(0))
    assert books.start_seconds is None
    for workers in (1, 2, 0, 1):
        books.progress(progress(workers))
    assert books.start_seconds == 7.0


def test_every_attempt_that_was_carried_out_counts():
    books = RunBooks(0.0)
    for measured in (ONE, None, ONE):  # None: a worker of another make
        books.shard_ended(ShardSummary("s", "1", ("a",), (), {}, measured=measured))
    assert books.measured == [ONE, ONE]
