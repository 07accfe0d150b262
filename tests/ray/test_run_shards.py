"""The driver on a real Ray, with workers that die, raise and recover. Policy: tests/jobs/driver/test_shard_queue.py."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import ray

from persres.core.errors import (
    CatalogHeld,
    ConceptFailure,
    InvalidInput,
    PersresError,
    StoreError,
    StoreRefused,
    StoreUnavailable,
)
from persres.jobs.driver import run_shards as driver
from persres.jobs.driver import worker_pool as crew
from persres.jobs.driver.progress import RunOutcome, RunProgress
from persres.jobs.driver.shard_queue import ShardAttempt
from persres.pipeline.catalog.commit_record import CommittedConcept, Fingerprints, ShardCommit
from persres.pipeline.manifest.row import ManifestRow, ReferenceSource
from persres.pipeline.planning.plan import PlannedConcept, Shard
from persres.pipeline.shard.stages import WorkerSpoilt
from persres.pipeline.shard.work import ShardProgress, ShardSummary
from persres.pipeline.spec.recovery import RecoverySettings

pytestmark = pytest.mark.usefixtures("local_ray")


class ScriptedWorker:
    """Does what the concepts' names say. `folder` is its memory across deaths: it counts and logs there.

    Shards overlap as they do on a real worker: they come in several threads, and a lock stands for the device.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._progress: dict[tuple[str, str], ShardProgress] = {}
        self._device = threading.Lock()
        self._spoilt = False

    def ready(self) -> None:
        if (self._folder / "die-while-starting").exists():
            os._exit(1)
        if (self._folder / "no-model").exists():
            raise InvalidInput("there is no model", fix="name one")

    @ray.method(concurrency_group="shards")
    def personalize(self, shard: Shard, attempt: str) -> ShardSummary:
        key = (shard.shard_id, attempt)
        self._note(f"{os.getpid()} {attempt} {' '.join(shard.concept_ids)}")
        with self._device:
            if self._spoilt:
                raise WorkerSpoilt("another shard raised an error on this worker")
            try:
                failures = self._work(shard, key)
            except RuntimeError:
                self._spoilt = True
                raise
        if any(name.startswith("linger") for name in shard.concept_ids):
            self._progress[key] = ShardProgress("commit", 1.0)
            time.sleep(1.5)
        done = tuple(name for name in shard.concept_ids if not name.startswith("bad"))
        notes = tuple(f"{name} was noted" for name in done if name.startswith("note"))
        return ShardSummary(*key, done, tuple(failures), {"train": 1.0}, notes)

    def _work(self, shard: Shard, key: tuple[str, str]) -> list[ConceptFailure]:
        failures = []
        for concept_id in shard.concept_ids:
            if concept_id.startswith("kill"):
                os._exit(1)
            if concept_id.startswith("once") and self._first_time(concept_id):
                os._exit(1)
            if concept_id.startswith("raise"):
                raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
            if concept_id.startswith("hang") and self._first_time(concept_id):
                time.sleep(600)
            if concept_id.startswith("freeze") and self._first_time(concept_id):
                os.kill(os.getpid(), signal.SIGSTOP)
            if concept_id.startswith("refused"):
                raise StoreRefused("no space left on device")
            if concept_id.startswith("committed"):
                (self._folder / f"{key[0]}_{key[1]}").touch()
                os._exit(1)
            if concept_id.startswith("store") and self._first_time(concept_id):
                raise StoreError("SlowDown")
            if concept_id.startswith("tiny-device"):
                raise PersresError("the device has too little memory to train a single concept", fix="a larger one")
            if concept_id.startswith("meet"):
                self._meet(concept_id.partition("-")[0])
            if concept_id.startswith("slow"):
                self._progress[key] = ShardProgress("train", 0.5)
                time.sleep(0.8)
            if concept_id.startswith("bad"):
                failures.append(ConceptFailure(concept_id, "load", "unreadable"))
        return failures

    @ray.method(concurrency_group="progress")
    def progress(self) -> dict[tuple[str, str], ShardProgress]:
        return dict(self._progress)

    def _note(self, line: str) -> None:
        with open(self._folder / "log", "a") as log:
            log.write(line + "\n")

    def _meet(self, where: str) -> None:
        """Wait for so many workers as the place's name says, "meet3" or "meet3b"; no place is used twice."""
        (self._folder / f"{where}-{os.getpid()}").touch()
        while len(list(self._folder.glob(f"{where}-*"))) < int(where[4]):
            time.sleep(0.05)

    def _first_time(self, name: str) -> bool:
        marker = self._folder / f"seen-{name}"
        seen = marker.exists()
        marker.touch()
        return not seen


def shard(*names: str) -> Shard:
    concepts = [
        PlannedConcept(
            ManifestRow(0, name, "mug", (ReferenceSource("a.png"),), ("a {concept}",)), Fingerprints("t" * 32, "r" * 32)
        )
        for name in names
    ]
    return Shard.of("train", concepts)


@pytest.fixture
def run(tmp_path):
    def start(*shards: Shard, workers: int = 2, **options) -> RunOutcome:
        groups = {"shards": crew.SHARDS_IN_HAND, "progress": 1}
        actor = ray.remote(num_cpus=1, max_restarts=0, concurrency_groups=groups)(ScriptedWorker)
        return driver.run_shards(shards, make_worker=lambda: actor.remote(str(tmp_path)), workers=workers, **options)

    return start


def hurry(monkeypatch, seconds: float) -> None:
    """Let the driver look about often."""
    for module, names in ((driver, ("DRIVER_POLL_S", "PROGRESS_INTERVAL_S")), (crew, ("WORKER_PROGRESS_INTERVAL_S",))):
        for name in names:
            monkeypatch.setattr(module, name, seconds)


def failed(outcome: RunOutcome) -> dict[str, str]:
    return {failure.concept_id: failure.reason for failure in outcome.failures}


def test_nothing_to_do_starts_no_worker(run):
    outcome = run()
    assert outcome.committed == () and outcome.failures == ()


def test_concepts_end_as_the_worker_says_and_seconds_add_up(run):
    outcome = run(shard("a", "b", "bad1"), shard("c", "d"))
    assert sorted(outcome.committed) == ["a", "b", "c", "d"]
    assert failed(outcome) == {"bad1": "unreadable"}
    assert outcome.seconds == {"train": 2.0}
    assert outcome.incidents == () and outcome.ready_seconds > 0


def test_notes_of_workers_are_told(run):
    said: list[str] = []
    outcome = run(shard("note1"), on_incident=said.append)
    assert said == list(outcome.incidents) and said[0].endswith(": note1 was noted")


def test_a_killed_worker_is_replaced_and_its_shard_finished(run):
    incidents = []
    outcome = run(shard("once1", "a"), shard("b"), on_incident=incidents.append)
    assert sorted(outcome.committed) == ["a", "b", "once1"] and not outcome.failures
    assert len(incidents) == 1 and "tried again" in incidents[0]


def test_a_concept_that_keeps_killing_is_quarantined_and_its_shard_mates_finish(run):
    outcome = run(shard("a", "kill1", "b"), shard("c", "d"), recovery=RecoverySettings(max_losses=2))
    assert sorted(outcome.committed) == ["a", "b", "c", "d"]
    assert "killed 2 workers" in failed(outcome)["kill1"]


def test_shards_that_were_in_the_same_hands_as_a_killer_are_not_blamed(run, tmp_path):
    """With a single allowed loss: a shard that was suspected wrongly would be split or quarantined at once."""
    outcome = run(
        *(shard(name) for name in ("a", "kill1", "b", "kill2", "c")), workers=1, recovery=RecoverySettings(max_losses=1)
    )
    assert sorted(outcome.committed) == ["a", "b", "c"] and failed(outcome).keys() == {"kill1", "kill2"}
    assert all("killed 1 worker " in reason for reason in failed(outcome).values())
    assert any("was one of 2 that a worker died with" in incident for incident in outcome.incidents)


def test_an_escaped_exception_fails_its_concept_alone_with_the_text(run, tmp_path):
    outcome = run(shard("a", "b", "raise1", "c"), workers=1)
    assert sorted(outcome.committed) == ["a", "b", "c"]
    assert failed(outcome) == {"raise1": "RuntimeError: mat1 and mat2 shapes cannot be multiplied"}
    tries = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    in_company = [names for process, attempt, *names in tries if "raise1" in names and len(names) > 1]
    assert in_company == [["a", "b", "raise1", "c"], ["raise1", "c"]], "nothing that raised is tried twice"


def test_a_spoilt_worker_is_replaced_and_what_it_did_not_try_is_not_blamed(run, tmp_path):
    others = [f"slow{number}" for number in range(6)]  # so many that the one that raises is not the last to get a turn
    outcome = run(shard(others[0]), shard("raise1"), *map(shard, others[1:]), workers=1)
    assert sorted(outcome.committed) == others and failed(outcome).keys() == {"raise1"}
    processes = {line.split()[0] for line in (tmp_path / "log").read_text().splitlines()}
    assert len(processes) == 2, "a process in which something went wrong is not used again"


def test_a_store_that_recovers_costs_a_retry_but_no_worker(run, tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "STORE_PAUSE_S", 0.1)
    outcome = run(shard("store1", "a"), workers=1)
    assert sorted(outcome.committed) == ["a", "store1"]
    assert "SlowDown" in outcome.incidents[0]
    assert len({line.split()[0] for line in (tmp_path / "log").read_text().splitlines()}) == 1


def test_workers_that_die_while_starting_end_the_run(run, tmp_path):
    (tmp_path / "die-while-starting").touch()
    with pytest.raises(PersresError, match="workers in a row failed"):
        run(shard("a"))


def test_a_model_that_cannot_be_loaded_ends_the_run_with_its_own_error(run, tmp_path):
    (tmp_path / "no-model").touch()
    with pytest.raises(InvalidInput, match="there is no model"):
        run(shard("a"))


def test_what_is_wrong_with_the_run_as_a_whole_ends_it(run):
    with pytest.raises(PersresError, match="too little memory to train a single concept"):
        run(shard("a"), shard("tiny-device", "b"))


def test_progress_counts_concepts_and_those_underway(run, monkeypatch):
    hurry(monkeypatch, 0.1)
    seen: list[RunProgress] = []
    run(shard("slow1", "slow2"), shard("bad1"), workers=2, on_progress=seen.append)
    assert (seen[-1].committed, seen[-1].failed, seen[-1].left) == (2, 1, 0)
    assert any(progress.underway == 1.0 for progress in seen), "half of a shard of two is one concept"
    assert all(progress.committed + progress.failed + progress.left == 3 for progress in seen)


def test_every_worker_gets_a_shard_before_any_gets_a_second(run, tmp_path):
    run(shard("slow1"), shard("slow2"), workers=2)
    assert len({line.split()[0] for line in (tmp_path / "log").read_text().splitlines()}) == 2


def test_a_shard_that_is_being_committed_makes_room_for_another(run, tmp_path, monkeypatch):
    """Three are in hand then, and never more than two that are not past the device."""
    hurry(monkeypatch, 0.05)
    outcome = run(*(shard(name) for name in ("linger1", "slow1", "slow2", "slow3")), workers=1)
    assert len(outcome.committed) == 4
    begun = [line.split()[-1] for line in (tmp_path / "log").read_text().splitlines()]
    ended = list(outcome.committed)
    assert begun.index("slow2") < 3 and ended.index("slow1") < ended.index("linger1"), (begun, ended)


def test_a_lost_lease_ends_the_run_and_its_workers(run, tmp_path):
    calls = iter([None, None, None])

    def check() -> None:
        if next(calls, "lost") == "lost":
            raise CatalogHeld("another run has taken over")

    with pytest.raises(CatalogHeld):
        run(*(shard(f"slow{number}") for number in range(6)), workers=1, check=check)
    deadline = time.monotonic() + 10
    while ray.available_resources().get("CPU") != 4 and time.monotonic() < deadline:
        time.sleep(0.1)
    assert ray.available_resources()["CPU"] == 4, "no worker is left behind"


QUICK = RecoverySettings(stall_seconds=1, store_patience_seconds=1, max_losses=2)


@pytest.mark.parametrize("name", ["hang1", "freeze1"])
def test_a_worker_in_which_nothing_moves_is_killed_and_its_shard_done_by_another(run, tmp_path, monkeypatch, name):
    """Whether its work never ends, or the whole process stands still."""
    hurry(monkeypatch, 0.1)
    outcome = run(shard(name, "a"), workers=1, recovery=QUICK)
    assert sorted(outcome.committed) == sorted(["a", name]) and not outcome.failures
    assert "nothing moved for 2 s" in outcome.incidents[0] and "tried again" in outcome.incidents[0]
    processes = [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert len(set(processes)) == 2


def test_a_worker_that_waits_for_its_store_has_more_time_than_one_that_computes(run, monkeypatch):
    """Committing may take longer than a shard on the device may stand still."""
    hurry(monkeypatch, 0.1)
    patient = RecoverySettings(stall_seconds=1, store_patience_seconds=30)
    outcome = run(shard("linger1"), shard("linger2"), workers=1, recovery=patient)
    assert len(outcome.committed) == 2 and not outcome.incidents


@pytest.mark.slow
def test_a_driver_that_was_asleep_kills_nobody_for_it(run, monkeypatch):
    hurry(monkeypatch, 0.1)
    monkeypatch.setattr(driver, "SUSPENDED_S", 1.0)
    naps = iter([True])

    def doze(progress: RunProgress) -> None:
        if progress.underway and next(naps, False):
            time.sleep(4)

    outcome = run(shard("slow1", "slow2", "slow3"), workers=1, recovery=QUICK, on_progress=doze)
    assert len(outcome.committed) == 3 and not outcome.incidents


def test_asked_to_stop_it_finishes_what_is_in_flight_and_hands_out_nothing_more(run, tmp_path, monkeypatch):
    hurry(monkeypatch, 0.1)
    underway: list[RunProgress] = []
    said: list[str] = []
    outcome = run(
        *(shard(f"slow{number}") for number in range(8)),
        workers=1,
        on_progress=lambda progress: underway.append(progress) if progress.underway else None,
        stop_asked=lambda: bool(underway),
        on_notice=said.append,
    )
    begun = [line.split()[-1] for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(outcome.committed) == sorted(begun) and outcome.left == 8 - len(begun) > 0
    assert "asked to stop" in said[0] and "in flight" in said[0] and not outcome.incidents


def test_a_stop_without_grace_abandons_what_is_in_flight(run, monkeypatch):
    hurry(monkeypatch, 0.1)
    underway: list[RunProgress] = []
    outcome = run(
        shard("hang1"),
        shard("hang2"),
        workers=1,
        recovery=RecoverySettings(grace_seconds=0),
        on_progress=lambda progress: underway.append(progress) if progress.workers else None,
        stop_asked=lambda: len(underway) > 5,
    )
    assert outcome.left == 2 and "not committed within 0 s" in outcome.incidents[-1]


def test_a_store_that_refuses_ends_the_run_once_others_had_their_chance(run, tmp_path, monkeypatch):
    hurry(monkeypatch, 0.1)
    seen: list[RunProgress] = []
    with pytest.raises(StoreRefused, match="no space left"):
        run(*(shard(name) for name in ("slow1", "refused1", "slow2", "slow3")), workers=2, on_progress=seen.append)
    begun = {line.split()[-1] for line in (tmp_path / "log").read_text().splitlines()}
    assert seen[-1].committed == len(begun - {"refused1"}) > 0, "what was in flight is not lost"


def test_nothing_is_handed_out_while_the_lease_is_not_certain(run, tmp_path, monkeypatch):
    """It is certain until a worker has been started, and then not before that one has been ready for a while."""
    hurry(monkeypatch, 0.1)
    ready: list[RunProgress] = []
    begun_meanwhile: list[bool] = []
    asked: list[bool] = []

    def may_start() -> bool:
        asked.append(len(asked) == 0 or len(ready) > 10)
        if not asked[-1]:
            begun_meanwhile.append((tmp_path / "log").exists())
        return asked[-1]

    def note(progress: RunProgress) -> None:
        if progress.workers:
            ready.append(progress)

    outcome = run(shard("a"), shard("b"), workers=1, may_start=may_start, on_progress=note)
    assert sorted(outcome.committed) == ["a", "b"] and not any(begun_meanwhile)
    assert len(outcome.incidents) == 1 and "cannot be renewed" in outcome.incidents[0]


def test_a_store_that_is_never_heard_of_again_ends_the_run(run):
    with pytest.raises(StoreUnavailable, match="has not answered for"):
        run(shard("a"), workers=1, recovery=QUICK, may_start=lambda: False)


def test_what_was_committed_before_its_worker_died_is_not_done_again(run, tmp_path):
    work = {one.shard_id: one for one in (shard("committed1", "b"), shard("c"))}

    def find_commit(attempt: ShardAttempt) -> ShardCommit | None:
        shard_id, number = attempt.shard.shard_id, attempt.attempt
        if not (tmp_path / f"{shard_id}_{number}").exists():
            raise StoreError("not there")
        concepts = tuple(
            CommittedConcept(name, "mug", "t" * 32, "r" * 32, "residuals/x.parquet", 0)
            for name in attempt.shard.concept_ids
        )
        return ShardCommit("run", shard_id, number, "train", {}, concepts, (), {"train": 2.0})

    outcome = run(*work.values(), workers=1, find_commit=find_commit)
    assert sorted(outcome.committed) == ["b", "c", "committed1"] and outcome.seconds == {"train": 3.0}
    assert any("was committed before its worker could say so" in incident for incident in outcome.incidents)
    tries = [line for line in (tmp_path / "log").read_text().splitlines() if "committed1" in line]
    assert len(tries) == 1
