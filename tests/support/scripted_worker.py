"""A worker that does what its concepts' names say, and the driver's run of such workers."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray

from persres.core.errors import ConceptFailure, InvalidInput, PersresError, StoreError, StoreRefused
from persres.jobs.driver import run_shards as driver
from persres.jobs.driver import worker_pool
from persres.jobs.driver.progress import RunOutcome
from persres.pipeline.planning.plan import Shard
from persres.pipeline.shard.stages import WorkerCorrupted
from persres.pipeline.shard.summary import ShardProgress, ShardSummary

from .catalog_factories import planned, shard_of

LINGER_S = 4.0
_OPEN_GATE = "gate-is-open"


class ScriptedWorker:
    """Does what the beginning of each concept's name says.

    "kill", "once" and "committed" exit, "hang" and "freeze" stop making progress, "raise", "refused", "store" and
    "tiny-device" raise an error, "bad" fails, "slow" and "linger" take time on the device and after it, "note" adds a
    note. Those that do so only the first time are "once", "hang", "freeze" and "store".

    For tests that must not depend on how fast the machine is, others wait for what has to come first: "meet2" until two
    workers are there, "gate" until the test calls `open_gate`, "killmate", the first time, until its worker has another
    shard too, and "until-x" on the device and "commit-until-x" after it until x has begun.

    Shards overlap as on a real worker: each comes in a thread of its own, and a lock stands for the device.

    Args:
        folder: keeps the state that outlives a worker, and the log: a line "pid attempt concept…" for each attempt.
    """

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)
        self._progress: dict[tuple[str, str], ShardProgress] = {}
        self._device = threading.Lock()
        self._spoilt = False
        self._in_flight: set[tuple[str, str]] = set()

    def ready(self) -> None:
        if (self._folder / "die-while-starting").exists():
            os._exit(1)
        if (self._folder / "no-model").exists():
            raise InvalidInput("there is no model", fix="name one")

    @ray.method(concurrency_group="shards")
    def personalize(self, shard: Shard, attempt: str) -> ShardSummary:
        self._in_flight.add((shard.shard_id, attempt))
        try:
            return self._personalize(shard, attempt)
        finally:
            self._in_flight.discard((shard.shard_id, attempt))

    def _personalize(self, shard: Shard, attempt: str) -> ShardSummary:
        key = (shard.shard_id, attempt)
        self._write(f"{os.getpid()} {attempt} {' '.join(shard.concept_ids)}")
        with self._device:
            if self._spoilt:
                raise WorkerCorrupted("another shard raised an error on this worker")
            try:
                failures = self._work(shard, key)
            except RuntimeError:
                self._spoilt = True
                raise
        if any(name.startswith("linger") for name in shard.concept_ids):
            self._progress[key] = ShardProgress("commit", 1.0)
            time.sleep(LINGER_S)
        for awaited in (name.removeprefix("commit-until-") for name in shard.concept_ids if "-until-" in name):
            self._progress[key] = ShardProgress("commit", 1.0)
            self._wait_for(awaited)
        done = tuple(name for name in shard.concept_ids if not name.startswith("bad"))
        notes = tuple(f"{name} was noted" for name in done if name.startswith("note"))
        return ShardSummary(*key, done, tuple(failures), {"train": 1.0}, notes)

    def _work(self, shard: Shard, key: tuple[str, str]) -> list[ConceptFailure]:
        failures = []
        for concept_id in shard.concept_ids:
            if concept_id.startswith("kill"):
                if concept_id.startswith("killmate") and self._first_time(concept_id):
                    _wait_until(lambda: len(self._in_flight) > 1)
                os._exit(1)
            if concept_id.startswith("once") and self._first_time(concept_id):
                os._exit(1)
            if concept_id.startswith("raise"):
                raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
            if concept_id.startswith("hang") and self._first_time(concept_id):
                time.sleep(600)
            if concept_id.startswith("freeze") and self._first_time(concept_id):
                # By `os.kill` another thread may get the signal, and this one goes on until that one is scheduled.
                signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
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
            if concept_id.startswith("until-"):
                self._wait_for(concept_id.removeprefix("until-"))
            if concept_id.startswith("gate"):
                self._progress[key] = ShardProgress("train", 0.5)
                _wait_until((self._folder / _OPEN_GATE).exists)
            if concept_id.startswith("slow"):
                self._progress[key] = ShardProgress("train", 0.5)
                time.sleep(0.8)
            if concept_id.startswith("bad"):
                failures.append(ConceptFailure(concept_id, "load", "unreadable"))
        return failures

    @ray.method(concurrency_group="progress")
    def progress(self) -> dict[tuple[str, str], ShardProgress]:
        return dict(self._progress)

    def _write(self, line: str) -> None:
        with open(self._folder / "log", "a") as log:
            log.write(line + "\n")

    def _meet(self, where: str) -> None:
        """Wait for as many workers as the name says, such as "meet3" or "meet3b"; use no name twice."""
        (self._folder / f"{where}-{os.getpid()}").touch()
        _wait_until(lambda: len(list(self._folder.glob(f"{where}-*"))) >= int(where[4]))

    def _wait_for(self, concept_id: str) -> None:
        """Wait until the concept's shard has begun on any worker."""
        _wait_until(lambda: concept_id in (self._folder / "log").read_text().split())

    def _first_time(self, name: str) -> bool:
        marker = self._folder / f"seen-{name}"
        seen = marker.exists()
        marker.touch()
        return not seen


def _wait_until(condition: Callable[[], bool]) -> None:
    """Return when `condition` holds. If it does not within a minute, the concept fails."""
    deadline = time.monotonic() + 60
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("not within a minute")
        time.sleep(0.05)


def open_gate(folder: Path) -> None:
    """Let the shards with a "gate" go on."""
    (folder / _OPEN_GATE).touch()


def shard(*concept_ids: str) -> Shard:
    """A shard of concepts to train."""
    return shard_of(*map(planned, concept_ids))


def run_scripted(folder: Path, *shards: Shard, workers: Any = 2, **options: Any) -> RunOutcome:
    """Run the driver over `shards` with scripted workers."""
    groups = {"shards": worker_pool.MAX_SHARDS_IN_FLIGHT, "progress": 1}
    actor: Any = ray.remote(num_cpus=1, max_restarts=0, concurrency_groups=groups)(ScriptedWorker)
    return driver.run_shards(shards, make_worker=lambda: actor.remote(str(folder)), workers=workers, **options)


def poll_quickly(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Shorten the driver's poll intervals."""
    for name in ("DRIVER_POLL_S", "PROGRESS_INTERVAL_S"):
        monkeypatch.setattr(driver, name, seconds)
    monkeypatch.setattr(worker_pool, "WORKER_PROGRESS_INTERVAL_S", seconds)
