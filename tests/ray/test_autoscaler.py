"""When a run starts and stops workers, on a real Ray; `ScriptedWorker` explains the names of the concepts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from persres.jobs.driver import autoscaling, worker_pool
from persres.jobs.driver.progress import RunProgress
from persres.pipeline.spec.recovery import RecoverySettings

from ..support.recording_observer import RecordingObserver
from ..support.scripted_worker import open_gate, poll_quickly, run_scripted, shard

pytestmark = pytest.mark.usefixtures("local_ray")

STOP_IDLE_AT_ONCE, KEEP_IDLE = RecoverySettings(idle_seconds=0), RecoverySettings(idle_seconds=1e6)


class Lease:
    """A lease that is certain whenever `is_certain` returns True."""

    def __init__(self, is_certain: Callable[[], bool]) -> None:
        self.is_certain = is_certain

    def check(self) -> None:
        pass


def slow(count: int, *last: str) -> tuple[str, ...]:
    """The names of slow concepts, and of the last ones of a shard."""
    return (*(f"slow{number}" for number in range(count)), *last)


def processes(folder: Path) -> set[str]:
    return {line.split()[0] for line in (folder / "log").read_text().splitlines()}


def test_idle_workers_are_stopped_while_the_last_shard_continues(local_ray, tmp_path, monkeypatch):
    poll_quickly(monkeypatch, 0.1)

    def run_with(recovery: RecoverySettings, meet: str) -> tuple[list[int], list[str]]:
        observer, gate = RecordingObserver(), tmp_path / meet
        gate.mkdir()

        def open_late(progress: RunProgress) -> None:
            """Let the last shard go on once it has been the last for so many reports that others are stopped."""
            alone = [one for one in observer.progress if one.committed == 2]
            if len(alone) > 10 and (recovery is KEEP_IDLE or progress.workers == 1):
                open_gate(gate)

        observer.react = open_late
        shards = shard(f"{meet}-a", "gate"), shard(f"{meet}-b"), shard(f"{meet}-c")
        outcome = run_scripted(gate, *shards, workers=3, recovery=recovery, observer=observer)
        assert len(outcome.committed) == 4 and outcome.workers == 3 and not outcome.incidents
        return [progress.workers for progress in observer.progress if progress.left], observer.notices

    workers, notices = run_with(STOP_IDLE_AT_ONCE, "meet3a")
    assert workers[-1] == 1, "one is left for the last shard"
    assert any("stopped: no shard waits, 1 shard in flight" in text for text in notices)
    workers, notices = run_with(KEEP_IDLE, "meet3b")
    assert max(workers) == workers[-1] == 3 and not notices


def test_retried_shard_goes_to_an_idle_worker(run, tmp_path, monkeypatch):
    poll_quickly(monkeypatch, 0.1)
    outcome = run(shard("meet2-a", *slow(2, "once1")), shard("meet2-b"), workers=2, recovery=KEEP_IDLE)
    assert len(outcome.committed) == 5 and len(processes(tmp_path)) == 2


def test_worker_is_started_for_a_retried_shard_if_all_idle_ones_are_stopped(run, tmp_path, monkeypatch):
    poll_quickly(monkeypatch, 0.1)
    observer = RecordingObserver()
    shards = shard("meet2-a", *slow(2, "once1")), shard("meet2-b")
    outcome = run(*shards, workers=2, recovery=STOP_IDLE_AT_ONCE, observer=observer)
    assert len(outcome.committed) == 5 and not outcome.failures
    assert len(processes(tmp_path)) == 3 and any("idle worker stopped" in text for text in observer.notices)


def test_no_worker_is_stopped_while_the_lease_is_uncertain(run, tmp_path, monkeypatch):
    """The shard in flight may then fail because of the store, and be retried."""
    poll_quickly(monkeypatch, 0.05)
    uncertain: list[int] = []
    afterwards: list[int] = []

    def react(progress: RunProgress) -> None:
        if observer.ended and progress.left:
            (uncertain if len(uncertain) <= 15 else afterwards).append(progress.workers)
        if afterwards[-1:] == [1]:
            open_gate(tmp_path)

    observer = RecordingObserver(react)
    outcome = run(
        shard("meet2-a", "gate"),
        shard("meet2-b"),
        workers=2,
        recovery=STOP_IDLE_AT_ONCE,
        lease=Lease(lambda: not observer.ended or len(uncertain) > 15),
        observer=observer,
    )
    assert len(outcome.committed) == 3 and set(uncertain) == {2} and afterwards[-1] == 1


def test_stopping_run_keeps_only_workers_with_a_shard(run, tmp_path, monkeypatch):
    poll_quickly(monkeypatch, 0.1)
    workers: list[int] = []

    def react(progress: RunProgress) -> None:
        if observer.ended and progress.left:
            workers.append(progress.workers)
        if workers[-1:] == [1]:
            open_gate(tmp_path)

    observer = RecordingObserver(react)
    outcome = run(
        shard("meet2-a", "gate"),
        shard("meet2-b"),
        workers=2,
        recovery=KEEP_IDLE,
        stop_requested=lambda: bool(observer.ended),
        observer=observer,
    )
    assert len(outcome.committed) == 3 and workers[-1] == 1


def test_pending_workers_are_cancelled_when_no_shard_is_left_for_them(run, monkeypatch):
    """Of six workers four have CPUs, and these take all shards."""
    poll_quickly(monkeypatch, 0.1)
    monkeypatch.setattr(worker_pool, "NODE_WAIT_NOTICE_S", 0.5)
    observer = RecordingObserver()
    outcome = run(*(shard(name) for name in slow(9)), workers=6, observer=observer)
    assert len(outcome.committed) == 9 and outcome.workers == 6
    cancelled = [int(text.split()[0]) for text in observer.notices if "cancelled" in text]
    assert sum(cancelled) == 2


def test_run_grows_with_its_cluster(run, monkeypatch):
    poll_quickly(monkeypatch, 0.1)
    monkeypatch.setattr(autoscaling, "CLUSTER_POLL_S", 0.1)
    observer = RecordingObserver()

    def workers() -> int:
        return 3 if observer.progress and observer.progress[-1].committed else 1

    outcome = run(*(shard(name) for name in slow(12)), workers=workers, observer=observer)
    assert outcome.workers == 3 and max(progress.workers for progress in observer.progress) == 3
    assert all(progress.workers <= 1 for progress in observer.progress if not progress.committed)


@pytest.mark.slow
def test_pending_workers_are_reported(run, monkeypatch):
    """Of six workers four have CPUs."""
    poll_quickly(monkeypatch, 0.1)
    monkeypatch.setattr(autoscaling, "CLUSTER_POLL_S", 0.1)
    for module in (autoscaling, worker_pool):
        monkeypatch.setattr(module, "NODE_WAIT_NOTICE_S", 1.0)
    observer = RecordingObserver()
    capacity = "each needs 1 CPU, the cluster has 4 CPU (0 free)"
    shards = [shard(*(f"slow{number}-{part}" for part in range(4))) for number in range(10)]
    outcome = run(*shards, workers=6, observer=observer, capacity=lambda: capacity)
    assert len(outcome.committed) == 40
    assert any("waiting for a node" in text and text.endswith(capacity) for text in observer.notices)
