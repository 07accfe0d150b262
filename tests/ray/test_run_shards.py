"""The driver on a real Ray, with workers that die, raise and recover; its retry policy has a test without Ray."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray

from persres.core.errors import CatalogHeld, InvalidInput, PersresError, StoreError, StoreRefused, StoreUnavailable
from persres.jobs.driver import run_shards as driver
from persres.jobs.driver.progress import RunOutcome, RunProgress
from persres.jobs.driver.shard_queue import ShardAttempt
from persres.pipeline.catalog.commit_record import CommittedConcept, ShardCommit
from persres.pipeline.spec.recovery import RecoverySettings

from ..support.recording_observer import RecordingObserver
from ..support.scripted_worker import LINGER_S, open_gate, poll_quickly, shard

pytestmark = pytest.mark.usefixtures("local_ray")


class Lease:
    """A lease that is held for `held_checks` checks and certain whenever `is_certain` returns True."""

    def __init__(self, *, held_checks: int | None = None, is_certain: Callable[[], bool] = lambda: True) -> None:
        self._checks_left, self.is_certain = held_checks, is_certain

    def check(self) -> None:
        if self._checks_left is None:
            return
        self._checks_left -= 1
        if self._checks_left < 0:
            raise CatalogHeld("another run has taken over")


def failed(outcome: RunOutcome) -> dict[str, str]:
    return {failure.concept_id: failure.reason for failure in outcome.failures}


def attempts(folder: Path) -> list[tuple[str, list[str]]]:
    """The attempts that workers have begun: (process id, concept ids)."""
    lines = [line.split() for line in (folder / "log").read_text().splitlines()]
    return [(process, concept_ids) for process, _, *concept_ids in lines]


def processes(folder: Path) -> set[str]:
    return {process for process, _ in attempts(folder)}


def begun(folder: Path) -> list[str]:
    """The concepts of attempts that workers have begun, where every shard has one concept."""
    return [concept_ids[-1] for _, concept_ids in attempts(folder)]


def test_run_without_shards_starts_no_worker(run):
    outcome = run()
    assert outcome.committed == () and outcome.failures == () and outcome.workers == 0


def test_outcome_has_what_workers_return_and_their_seconds(run):
    outcome = run(shard("a", "b", "bad1"), shard("c", "d"))
    assert sorted(outcome.committed) == ["a", "b", "c", "d"]
    assert failed(outcome) == {"bad1": "unreadable"}
    assert outcome.seconds == {"train": 2.0}
    assert outcome.incidents == () and outcome.ready_seconds > 0


def test_notes_of_workers_are_incidents(run):
    observer = RecordingObserver()
    outcome = run(shard("note1"), observer=observer)
    assert observer.incidents == list(outcome.incidents) and observer.incidents[0].endswith(": note1 was noted")


def test_observer_gets_the_start_and_end_of_every_attempt(run):
    observer = RecordingObserver()
    run(shard("a"), shard("b"), observer=observer)
    started = {(attempt.shard.shard_id, attempt.attempt) for attempt in observer.started}
    assert started == {(summary.shard_id, summary.attempt) for summary in observer.ended} and len(started) == 2


def test_killed_worker_is_replaced_and_its_shard_finished(run):
    observer = RecordingObserver()
    outcome = run(shard("once1", "a"), shard("b"), observer=observer)
    assert sorted(outcome.committed) == ["a", "b", "once1"] and not outcome.failures
    assert len(observer.incidents) == 1 and "retried" in observer.incidents[0]


def test_concept_that_keeps_killing_is_quarantined_and_its_shard_mates_finish(run):
    outcome = run(shard("a", "kill1", "b"), shard("c", "d"), recovery=RecoverySettings(max_losses=2))
    assert sorted(outcome.committed) == ["a", "b", "c", "d"]
    assert "killed 2 workers" in failed(outcome)["kill1"]


def test_shards_on_the_worker_of_a_killer_are_not_blamed(run, tmp_path):
    """With one allowed loss: a shard that was blamed would be split or quarantined at once."""
    names = ("a", "killmate1", "b", "kill2", "c")
    outcome = run(*map(shard, names), workers=1, recovery=RecoverySettings(max_losses=1))
    assert sorted(outcome.committed) == ["a", "b", "c"] and failed(outcome).keys() == {"killmate1", "kill2"}
    assert all("killed 1 worker " in reason for reason in failed(outcome).values())
    assert any("was one of 2 on a worker that was lost" in incident for incident in outcome.incidents)


def test_escaped_exception_fails_its_concept_alone_with_its_text(run, tmp_path):
    outcome = run(shard("a", "b", "raise1", "c"), workers=1)
    assert sorted(outcome.committed) == ["a", "b", "c"]
    assert failed(outcome) == {"raise1": "RuntimeError: mat1 and mat2 shapes cannot be multiplied"}
    with_others = [names for _, names in attempts(tmp_path) if "raise1" in names and len(names) > 1]
    assert with_others == [["a", "b", "raise1", "c"], ["raise1", "c"]], "no shard that raised is retried"


def test_worker_that_raised_is_replaced_and_its_other_shards_are_not_blamed(run, tmp_path):
    others = [f"slow{number}" for number in range(6)]  # so many that the one that raises is not the last
    outcome = run(shard(others[0]), shard("raise1"), *map(shard, others[1:]), workers=1)
    assert sorted(outcome.committed) == others and failed(outcome).keys() == {"raise1"}
    assert len(processes(tmp_path)) == 2, "a process that raised is not used again"


def test_store_that_recovers_costs_a_retry_but_no_worker(run, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "STORE_PAUSE_S", 0.1)
    outcome = run(shard("store1", "a"), workers=1)
    assert sorted(outcome.committed) == ["a", "store1"]
    assert "SlowDown" in outcome.incidents[0]
    assert len(processes(tmp_path)) == 1


def test_workers_that_die_while_starting_end_the_run(run, tmp_path):
    (tmp_path / "die-while-starting").touch()
    with pytest.raises(PersresError, match="workers in a row failed"):
        run(shard("a"))


def test_model_that_cannot_be_loaded_ends_the_run_with_its_own_error(run, tmp_path):
    (tmp_path / "no-model").touch()
    with pytest.raises(InvalidInput, match="there is no model"):
        run(shard("a"))


def test_error_that_concerns_the_whole_run_ends_it(run):
    with pytest.raises(PersresError, match="too little memory to train a single concept"):
        run(shard("a"), shard("tiny-device", "b"))


def test_progress_counts_concepts_and_those_in_progress(run, tmp_path, monkeypatch):
    poll_quickly(monkeypatch, 0.1)
    observer = RecordingObserver(lambda progress: open_gate(tmp_path) if progress.in_progress == 1.0 else None)
    run(shard("gate1", "slow2"), shard("bad1"), workers=2, observer=observer)
    seen = observer.progress
    assert (seen[-1].committed, seen[-1].failed, seen[-1].left) == (2, 1, 0)
    assert any(progress.in_progress == 1.0 for progress in seen), "half of a shard of two is one concept"
    assert all(progress.committed + progress.failed + progress.left == 3 for progress in seen)
    assert seen[0].seconds_to_go is None and seen[-1].seconds_to_go == 0.0


def test_every_worker_gets_a_shard_before_any_gets_a_second(run, tmp_path):
    run(shard("meet2-a"), shard("meet2-b"), workers=2)
    assert len(processes(tmp_path)) == 2


def test_committing_shard_makes_room_for_another(run, tmp_path, monkeypatch):
    """Three are in flight then, and never more than two of them before the commit."""
    poll_quickly(monkeypatch, 0.05)
    outcome = run(*(shard(name) for name in ("linger1", "slow1", "slow2", "slow3")), workers=1)
    assert len(outcome.committed) == 4
    order, ended = begun(tmp_path), list(outcome.committed)
    assert order.index("slow2") < 3 and ended.index("slow1") < ended.index("linger1"), (order, ended)


def test_lost_lease_ends_the_run_and_its_workers(run):
    with pytest.raises(CatalogHeld):
        run(*(shard(f"slow{number}") for number in range(6)), workers=1, lease=Lease(held_checks=3))
    deadline = time.monotonic() + 60
    while ray.available_resources().get("CPU") != 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 4, "no worker is left behind"


SHORT = RecoverySettings(stall_seconds=3, store_patience_seconds=2, max_losses=2)


@pytest.mark.parametrize("name", ["hang1", "freeze1"])
def test_worker_without_progress_is_killed_and_its_shard_retried(run, tmp_path, monkeypatch, name):
    """Its work never ends, or the whole process is stopped."""
    poll_quickly(monkeypatch, 0.1)
    outcome = run(shard(name, "a"), workers=1, recovery=SHORT)
    assert sorted(outcome.committed) == sorted(["a", name]) and not outcome.failures
    assert any("no progress for 5 s" in incident and "retried" in incident for incident in outcome.incidents)
    assert len(processes(tmp_path)) >= 2


def test_worker_that_commits_has_more_time_than_one_that_computes(run, monkeypatch):
    poll_quickly(monkeypatch, 0.1)
    long_retry = RecoverySettings(stall_seconds=LINGER_S / 2, store_patience_seconds=60)
    outcome = run(shard("linger1"), shard("linger2"), workers=1, recovery=long_retry)
    assert len(outcome.committed) == 2 and not outcome.incidents


@pytest.mark.slow
def test_suspended_driver_kills_no_worker(run, tmp_path, monkeypatch):
    poll_quickly(monkeypatch, 0.1)
    monkeypatch.setattr(driver, "SUSPENDED_S", 1.0)
    suspensions = iter([True])

    def suspend(progress: RunProgress) -> None:
        if progress.in_progress and next(suspensions, False):
            time.sleep(SHORT.stall_seconds + 1)
        elif progress.in_progress:  # the driver has looked for stalled workers since
            open_gate(tmp_path)

    outcome = run(shard("gate1"), workers=1, recovery=SHORT, observer=RecordingObserver(suspend))
    assert len(outcome.committed) == 1 and not outcome.incidents and not next(suspensions, False)


def test_stop_request_lets_shards_in_flight_finish_and_starts_no_more(run, tmp_path, monkeypatch):
    poll_quickly(monkeypatch, 0.1)
    observer = RecordingObserver()
    outcome = run(
        *(shard(f"slow{number}") for number in range(8)),
        workers=1,
        observer=observer,
        stop_requested=lambda: any(progress.in_progress for progress in observer.progress),
    )
    started = begun(tmp_path)
    assert sorted(outcome.committed) == sorted(started) and outcome.left == 8 - len(started) > 0
    assert "stop requested: " in observer.notices[0] and "in flight" in observer.notices[0] and not outcome.incidents


def test_stop_request_without_grace_period_abandons_shards_in_flight(run, monkeypatch):
    poll_quickly(monkeypatch, 0.1)
    observer = RecordingObserver()
    outcome = run(
        shard("hang1"),
        shard("hang2"),
        workers=1,
        recovery=RecoverySettings(grace_seconds=0),
        observer=observer,
        stop_requested=lambda: sum(progress.workers > 0 for progress in observer.progress) > 5,
    )
    assert outcome.left == 2 and "not committed within 0 s" in outcome.incidents[-1]


def test_store_that_refuses_ends_the_run_after_shards_in_flight_are_committed(run, tmp_path, monkeypatch):
    poll_quickly(monkeypatch, 0.1)
    observer = RecordingObserver()
    with pytest.raises(StoreRefused, match="no space left"):
        run(*(shard(name) for name in ("slow1", "refused1", "slow2", "slow3")), workers=2, observer=observer)
    committed = observer.progress[-1].committed
    assert committed == len(set(begun(tmp_path)) - {"refused1"}) > 0, "no shard in flight is lost"


def test_no_shard_is_started_while_the_lease_is_uncertain(run, tmp_path, monkeypatch):
    """It is certain until a worker has been started, and then not before that one has been ready for a while."""
    poll_quickly(monkeypatch, 0.1)
    observer = RecordingObserver()
    answers: list[bool] = []
    started_while_uncertain: list[bool] = []

    def is_certain() -> bool:
        answers.append(not answers or sum(progress.workers > 0 for progress in observer.progress) > 10)
        if not answers[-1]:
            started_while_uncertain.append((tmp_path / "log").exists())
        return answers[-1]

    outcome = run(shard("a"), shard("b"), workers=1, lease=Lease(is_certain=is_certain), observer=observer)
    assert sorted(outcome.committed) == ["a", "b"] and not any(started_while_uncertain)
    assert len(outcome.incidents) == 1 and "cannot be renewed" in outcome.incidents[0]


def test_store_that_stays_unreachable_ends_the_run(run):
    with pytest.raises(StoreUnavailable, match="has not answered for"):
        run(shard("a"), workers=1, recovery=SHORT, lease=Lease(is_certain=lambda: False))


def test_shard_committed_by_a_lost_worker_is_not_retried(run, tmp_path):
    def find_commit(attempt: ShardAttempt) -> ShardCommit | None:
        shard_id, number = attempt.shard.shard_id, attempt.attempt
        if not (tmp_path / f"{shard_id}_{number}").exists():
            raise StoreError("not there")
        concepts = tuple(
            CommittedConcept(name, "mug", "t" * 32, "r" * 32, "residuals/x.parquet", 0)
            for name in attempt.shard.concept_ids
        )
        return ShardCommit("run", shard_id, number, "train", {}, concepts, (), {"train": 2.0})

    outcome = run(shard("committed1", "b"), shard("c"), workers=1, find_commit=find_commit)
    assert sorted(outcome.committed) == ["b", "c", "committed1"] and outcome.seconds == {"train": 3.0}
    assert any("was committed, although its worker did not return" in incident for incident in outcome.incidents)
    assert len([names for _, names in attempts(tmp_path) if "committed1" in names]) == 1
