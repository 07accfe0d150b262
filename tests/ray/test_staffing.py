"""Who is hired and who is let go, on a real Ray; the workers do what the names of their concepts say."""

# ruff: noqa: F811 (run is a fixture)

from __future__ import annotations

from pathlib import Path

import pytest

from persres.jobs.driver import autoscaling as staffing
from persres.jobs.driver import worker_pool as crew
from persres.jobs.driver.progress import RunOutcome, RunProgress
from persres.pipeline.spec.recovery import RecoverySettings

from .test_run_shards import hurry, run, shard  # noqa: F401  (run is a fixture)

pytestmark = pytest.mark.usefixtures("local_ray")

AT_ONCE, NEVER = RecoverySettings(idle_seconds=0), RecoverySettings(idle_seconds=1e6)


def slowly(count: int, *last: str) -> tuple[str, ...]:
    """The names of concepts that take their time, one after the other."""
    return (*(f"slow{number}" for number in range(count)), *last)


def processes(folder: Path) -> set[str]:
    return {line.split()[0] for line in (folder / "log").read_text().splitlines()}


def test_idle_workers_go_while_the_last_shard_goes_on_and_their_time_ends_there(run, monkeypatch):
    hurry(monkeypatch, 0.1)

    def with_patience(recovery: RecoverySettings, meet: str) -> tuple[RunOutcome, list[int], list[str]]:
        said: list[str] = []
        crews: list[int] = []
        outcome = run(
            shard(f"{meet}-a", *slowly(4)),
            shard(f"{meet}-b", "slow-b"),
            shard(f"{meet}-c", "slow-c"),
            workers=3,
            recovery=recovery,
            on_notice=said.append,
            on_progress=lambda progress: crews.append(progress.workers) if progress.left else None,
        )
        assert len(outcome.committed) == 9 and outcome.workers == 3 and not outcome.incidents
        return outcome, crews, said

    thrifty, crews, said = with_patience(AT_ONCE, "meet3a")
    assert max(crews) == 3 and crews[-1] == 1, "one is left for the last shard"
    assert any("let go: nothing waits for a worker, with 1 shard in flight" in text for text in said)
    wasteful, crews, said = with_patience(NEVER, "meet3b")
    assert max(crews) == crews[-1] == 3 and not said
    assert thrifty.ready_seconds < wasteful.ready_seconds


def test_a_shard_that_comes_back_is_taken_over_by_an_idle_worker(run, tmp_path, monkeypatch):
    hurry(monkeypatch, 0.1)
    outcome = run(shard("meet2-a", *slowly(2, "once1")), shard("meet2-b"), workers=2, recovery=NEVER)
    assert len(outcome.committed) == 5 and len(processes(tmp_path)) == 2


def test_when_all_idle_workers_have_gone_one_is_hired_for_what_comes_back(run, tmp_path, monkeypatch):
    hurry(monkeypatch, 0.1)
    said: list[str] = []
    shards = shard("meet2-a", *slowly(2, "once1")), shard("meet2-b")
    outcome = run(*shards, workers=2, recovery=AT_ONCE, on_notice=said.append)
    assert len(outcome.committed) == 5 and not outcome.failures
    assert len(processes(tmp_path)) == 3 and any("let go" in text for text in said)


def test_nobody_is_let_go_while_nothing_may_be_handed_out(run, monkeypatch):
    """A store that is away may give the shards in flight back."""
    hurry(monkeypatch, 0.05)
    ended: list[object] = []
    held: list[int] = []
    after: list[int] = []

    def may_start() -> bool:
        return not ended or len(held) > 15

    def note(progress: RunProgress) -> None:
        if ended and progress.left:
            (held if len(held) <= 15 else after).append(progress.workers)

    outcome = run(
        shard("meet2-a", *slowly(4)),
        shard("meet2-b", "slow-b"),
        workers=2,
        recovery=AT_ONCE,
        may_start=may_start,
        on_shard=ended.append,
        on_progress=note,
    )
    assert len(outcome.committed) == 7 and set(held) == {2} and after[-1] == 1


def test_a_run_that_is_to_stop_keeps_only_workers_that_have_something(run, monkeypatch):
    hurry(monkeypatch, 0.1)
    ended: list[object] = []
    crews: list[int] = []
    outcome = run(
        shard("meet2-a", *slowly(4)),
        shard("meet2-b", "slow-b"),
        workers=2,
        recovery=NEVER,
        stop_asked=lambda: bool(ended),
        on_shard=ended.append,
        on_progress=lambda progress: crews.append(progress.workers) if ended and progress.left else None,
    )
    assert len(outcome.committed) == 7 and crews[-1] == 1


def test_requests_for_a_machine_are_withdrawn_when_no_shard_is_left_for_them(run, monkeypatch):
    """Six are wanted, there is room for four, and these have taken all shards before a machine comes."""
    hurry(monkeypatch, 0.1)
    monkeypatch.setattr(crew, "NODE_WAIT_NOTICE_S", 0.5)
    said: list[str] = []
    outcome = run(*(shard(name) for name in slowly(9)), workers=6, on_notice=said.append)
    assert len(outcome.committed) == 9 and outcome.workers == 6
    withdrawn = [int(text.split()[0]) for text in said if "no longer asked for" in text]
    assert sum(withdrawn) == 2


def test_a_run_grows_with_its_cluster(run, monkeypatch):
    hurry(monkeypatch, 0.1)
    monkeypatch.setattr(staffing, "CLUSTER_POLL_S", 0.1)
    seen: list[RunProgress] = []

    def workers() -> int:
        return 3 if seen and seen[-1].committed else 1

    outcome = run(*(shard(f"slow{number}") for number in range(12)), workers=workers, on_progress=seen.append)
    assert outcome.workers == 3 and max(progress.workers for progress in seen) == 3
    assert all(progress.workers <= 1 for progress in seen if not progress.committed)


@pytest.mark.slow
def test_workers_without_a_machine_are_waited_for_and_spoken_of(run, monkeypatch):
    """Six are wanted, and there is room for four."""
    hurry(monkeypatch, 0.1)
    monkeypatch.setattr(staffing, "CLUSTER_POLL_S", 0.1)
    for module in (staffing, crew):
        monkeypatch.setattr(module, "NODE_WAIT_NOTICE_S", 1.0)
    said: list[str] = []
    capacity = "each asks for 1 CPU, the cluster has 4 CPU (0 free)"
    shards = [shard(*(f"slow{number}-{part}" for part in range(4))) for number in range(10)]
    outcome = run(*shards, workers=6, on_notice=said.append, capacity=lambda: capacity)
    assert len(outcome.committed) == 40
    assert any("waiting for a machine" in text and text.endswith(capacity) for text in said)
