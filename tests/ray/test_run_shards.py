"""The driver on a real Ray, with workers that die, raise and recover. The policy: tests/jobs/test_shard_queue.py."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray

from persres.core.errors import CatalogHeld, ConceptFailure, InvalidInput, PersresError, StoreError
from persres.jobs import run_shards as driver
from persres.pipeline.fingerprint import Fingerprints
from persres.pipeline.manifest_row import ManifestRow, ReferenceSource
from persres.pipeline.plan import PlannedConcept, Shard

pytestmark = pytest.mark.usefixtures("local_ray")


@dataclass
class Summary:
    committed: tuple[str, ...]
    failures: tuple[ConceptFailure, ...]
    seconds: dict[str, float]


@dataclass
class Progress:
    fraction: float


class ScriptedWorker:
    """Does what the concepts' names say. `folder` is its memory across deaths: it counts and logs there."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._fraction = 0.0

    def ready(self) -> None:
        if (self._folder / "die-while-starting").exists():
            os._exit(1)
        if (self._folder / "no-model").exists():
            raise InvalidInput("there is no model", fix="name one")

    def personalize(self, shard: Shard, attempt: str) -> Summary:
        failures = []
        for concept_id in shard.concept_ids:
            self._note(f"{os.getpid()} {attempt} {concept_id}")
            if concept_id.startswith("kill"):
                os._exit(1)
            if concept_id.startswith("once") and self._first_time(concept_id):
                os._exit(1)
            if concept_id.startswith("raise"):
                raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
            if concept_id.startswith("store") and self._first_time(concept_id):
                raise StoreError("SlowDown")
            if concept_id.startswith("slow"):
                self._fraction = 0.5
                time.sleep(0.8)
            if concept_id.startswith("bad"):
                failures.append(ConceptFailure(concept_id, "load", "unreadable"))
        done = tuple(name for name in shard.concept_ids if not name.startswith("bad"))
        return Summary(done, tuple(failures), {"train": 1.0})

    @ray.method(concurrency_group="progress")
    def progress(self) -> Progress:
        return Progress(self._fraction)

    def _note(self, line: str) -> None:
        with open(self._folder / "log", "a") as log:
            log.write(line + "\n")

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
    def start(*shards: Shard, workers: int = 2, **options) -> driver.RunOutcome:
        actor = ray.remote(num_cpus=1, max_restarts=0, concurrency_groups={"progress": 1})(ScriptedWorker)
        return driver.run_shards(shards, make_worker=lambda: actor.remote(str(tmp_path)), workers=workers, **options)

    return start


def failed(outcome: driver.RunOutcome) -> dict[str, str]:
    return {failure.concept_id: failure.reason for failure in outcome.failures}


def test_nothing_to_do_starts_no_worker(run):
    outcome = run()
    assert outcome.committed == () and outcome.failures == ()


def test_concepts_end_as_the_worker_says_and_seconds_add_up(run):
    outcome = run(shard("a", "b", "bad1"), shard("c", "d"))
    assert sorted(outcome.committed) == ["a", "b", "c", "d"]
    assert failed(outcome) == {"bad1": "unreadable"}
    assert outcome.seconds == {"train": 2.0}
    assert outcome.incidents == ()


def test_a_killed_worker_is_replaced_and_its_shard_finished(run):
    incidents = []
    outcome = run(shard("once1", "a"), shard("b"), on_incident=incidents.append)
    assert sorted(outcome.committed) == ["a", "b", "once1"] and not outcome.failures
    assert len(incidents) == 1 and "tried again" in incidents[0]


def test_a_concept_that_keeps_killing_is_quarantined_and_its_shard_mates_finish(run):
    outcome = run(shard("a", "kill1", "b"), shard("c", "d"), max_losses=2)
    assert sorted(outcome.committed) == ["a", "b", "c", "d"]
    assert "killed 2 workers" in failed(outcome)["kill1"]


def test_an_escaped_exception_fails_its_concept_alone_with_the_text(run, tmp_path):
    outcome = run(shard("a", "b", "raise1", "c"), workers=1)
    assert sorted(outcome.committed) == ["a", "b", "c"]
    assert failed(outcome) == {"raise1": "RuntimeError: mat1 and mat2 shapes cannot be multiplied"}
    tries = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert sum(name == "raise1" for _, _, name in tries) == 3, "in 4, in 2, alone: nothing is tried twice"
    raised_in = {process for process, _, name in tries if name == "raise1"}
    assert len(raised_in) == 3, "a process in which something went wrong is not used again"


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


def test_progress_counts_concepts_and_those_underway(run, monkeypatch):
    monkeypatch.setattr(driver, "WAIT_S", 0.1)
    monkeypatch.setattr(driver, "PROGRESS_INTERVAL_S", 0.1)
    seen: list[driver.RunProgress] = []
    run(shard("slow1", "slow2"), shard("bad1"), workers=2, on_progress=seen.append)
    assert (seen[-1].committed, seen[-1].failed, seen[-1].left) == (2, 1, 0)
    assert any(progress.underway == 1.0 for progress in seen), "half of a shard of two is one concept"
    assert all(progress.committed + progress.failed + progress.left == 3 for progress in seen)


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
