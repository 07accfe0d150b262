"""The driver: one shard in flight on every worker, and a new worker for every one that dies.

What is done about each event is `ShardQueue`'s business; here is only the waiting. Plain Ray actors rather than Ray
Data, because a batch that kills its worker has to be taken over, split and in the end quarantined, and Ray Data either
tries it for ever or ends the run.

A worker is an actor handle with three methods: `ready()` returns when it has loaded its model,
`personalize(shard, attempt)` returns a ShardSummary, and `progress()` may be called meanwhile.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from ..core.errors import ConceptFailure, PersresError, StoreError
from ..pipeline.plan import Shard
from .shard_queue import ShardAttempt, ShardQueue

WAIT_S = 0.5
PROGRESS_INTERVAL_S = 1.0
STORE_PAUSE_S = 5.0  # before the next try after a store failed; doubled for every failure in a row
MAX_FAILED_STARTS = 3

MakeWorker = Callable[[], Any]


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run is, in concepts. `underway` is the part of those left that is already done, such as 2.5."""

    committed: int
    failed: int
    left: int
    underway: float
    workers: int


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """What became of every concept of the shards: it is in `committed` or in `failures`, once.

    `seconds` adds up the workers' time by phase. `incidents` tells in order what was retried, split or quarantined.
    """

    committed: tuple[str, ...]
    failures: tuple[ConceptFailure, ...]
    seconds: Mapping[str, float]
    incidents: tuple[str, ...]


def run_shards(
    shards: Sequence[Shard],
    *,
    make_worker: MakeWorker,
    workers: int,
    max_losses: int = 3,
    on_progress: Callable[[RunProgress], None] = lambda progress: None,
    on_incident: Callable[[str], None] = lambda text: None,
    check: Callable[[], None] = lambda: None,
) -> RunOutcome:
    """Carry out all shards on up to `workers` workers, whatever dies on the way.

    Args:
        make_worker: starts a worker; called again for every worker that is lost. One that has to wait for a machine
            is waited for, so `workers` may exceed what the cluster has now.
        check: called between shards; whatever it raises ends the run.

    Raises:
        StoreError: the store failed the same shard `max_losses` times.
        PersresError: workers die or fail while starting, so that no shard can be tried.
    """
    driver = _Driver(ShardQueue(shards, max_losses=max_losses), make_worker, workers)
    driver.on_progress, driver.on_incident, driver.check = on_progress, on_incident, check
    return driver.run()


@dataclass(eq=False, slots=True)
class _Worker:
    """An actor and the one call it is busy with: `ready()` while `attempt` is None, else `personalize()`."""

    actor: Any
    call: Any
    is_ready: bool = False
    attempt: ShardAttempt | None = None
    progress_call: Any = None
    progress_asked: float = 0.0
    fraction: float = 0.0
    rests_until: float = 0.0


@dataclass(eq=False)
class _Driver:
    queue: ShardQueue
    make_worker: MakeWorker
    workers: int
    crew: list[_Worker] = field(default_factory=list)
    seconds: Counter[str] = field(default_factory=Counter)
    incidents: list[str] = field(default_factory=list)
    failed_starts: int = 0
    store_failures: int = 0
    on_progress: Callable[[RunProgress], None] = lambda progress: None
    on_incident: Callable[[str], None] = lambda text: None
    check: Callable[[], None] = lambda: None

    def run(self) -> RunOutcome:
        try:
            while self.queue.open_shards:
                self.check()
                self._hire()
                self._assign()
                self._settle(self._wait())
                self._poll_progress()
                self.on_progress(self._progress())
        finally:
            for worker in list(self.crew):
                self._dismiss(worker)
        return RunOutcome(
            tuple(self.queue.committed), tuple(self.queue.failures), dict(self.seconds), tuple(self.incidents)
        )

    def _hire(self) -> None:
        while len(self.crew) < min(self.workers, self.queue.open_shards):
            actor = self.make_worker()
            self.crew.append(_Worker(actor, actor.ready.remote()))

    def _assign(self) -> None:
        now = time.monotonic()
        for worker in self.crew:
            if worker.is_ready and worker.attempt is None and worker.rests_until <= now:
                worker.attempt = attempt = self.queue.take()
                if attempt is not None:
                    worker.call = worker.actor.personalize.remote(attempt.shard, attempt.attempt)

    def _wait(self) -> list[_Worker]:
        """The workers whose call has ended, after at most `WAIT_S` seconds."""
        by_call = {worker.call: worker for worker in self.crew if worker.call is not None}
        if not by_call:
            time.sleep(WAIT_S)
            return []
        ended, _ = ray.wait(list(by_call), num_returns=1, timeout=WAIT_S)
        return [by_call[call] for call in ended]

    def _settle(self, ended: list[_Worker]) -> None:
        for worker in ended:
            call, attempt = worker.call, worker.attempt
            worker.call, worker.attempt, worker.fraction, worker.progress_call = None, None, 0.0, None
            try:
                result = ray.get(call)
            except RayTaskError as error:
                self._raised(worker, attempt, _original(error))
            except RayError as error:
                self._lost(worker, attempt, error)
            else:
                self._succeeded(worker, attempt, result)

    def _succeeded(self, worker: _Worker, attempt: ShardAttempt | None, result: Any) -> None:
        if attempt is None:
            worker.is_ready, self.failed_starts = True, 0
            return
        self.queue.finished(attempt, result.committed, result.failures)
        self.seconds.update(result.seconds)
        self.store_failures = 0

    def _raised(self, worker: _Worker, attempt: ShardAttempt | None, error: BaseException) -> None:
        if attempt is None:
            if isinstance(error, PersresError) and not isinstance(error, StoreError):
                raise error
            self._failed_to_start(worker, f"{type(error).__name__}: {error}")
        elif isinstance(error, StoreError):
            self._tell(self.queue.store_failed(attempt, error))
            worker.rests_until = time.monotonic() + STORE_PAUSE_S * 2**self.store_failures
            self.store_failures += 1
        else:
            # Whatever went wrong may have spoilt the process (a CUDA context does not survive an illegal access), and
            # a warm worker has to be as good as a fresh one: so it becomes a fresh one.
            self._dismiss(worker)
            self._tell(self.queue.raised(attempt, error))

    def _lost(self, worker: _Worker, attempt: ShardAttempt | None, error: RayError) -> None:
        # "Unavailable" may mean that the worker is alive and still busy. It is killed: two must not do one shard, and
        # should it have committed already, a second commit of the same results changes nothing.
        reason = _brief(error)
        if attempt is None:
            self._failed_to_start(worker, reason)
            return
        self._dismiss(worker)
        preempted = isinstance(error, RayActorError) and error.preempted
        self._tell(self.queue.lost(attempt, reason, preempted=preempted))

    def _failed_to_start(self, worker: _Worker, reason: str) -> None:
        self._dismiss(worker)
        self.failed_starts += 1
        if self.failed_starts >= MAX_FAILED_STARTS:
            raise PersresError(
                f"{self.failed_starts} workers in a row failed while they were starting, the last one with: {reason}",
                fix="check that the base model fits the worker's memory and device, then submit again",
            )
        self._tell(f"a worker failed while it was starting and is replaced ({reason})")

    def _dismiss(self, worker: _Worker) -> None:
        self.crew.remove(worker)
        ray.kill(worker.actor)

    def _tell(self, incident: str) -> None:
        self.incidents.append(incident)
        self.on_incident(incident)

    def _poll_progress(self) -> None:
        """Ask busy workers how far they are, without ever waiting for an answer."""
        now = time.monotonic()
        for worker in self.crew:
            if worker.attempt is None:
                continue
            if worker.progress_call is None and now - worker.progress_asked >= PROGRESS_INTERVAL_S:
                worker.progress_call, worker.progress_asked = worker.actor.progress.remote(), now
            elif worker.progress_call is not None and ray.wait([worker.progress_call], timeout=0)[0]:
                worker.fraction = _answered_fraction(worker.progress_call, worker.fraction)
                worker.progress_call = None

    def _progress(self) -> RunProgress:
        busy = [worker for worker in self.crew if worker.attempt is not None]
        underway = sum(worker.fraction * len(worker.attempt.shard.concepts) for worker in busy if worker.attempt)
        return RunProgress(
            committed=len(self.queue.committed),
            failed=len(self.queue.failures),
            left=self.queue.left,
            underway=underway,
            workers=sum(worker.is_ready for worker in self.crew),
        )


def _answered_fraction(call: Any, before: float) -> float:
    try:
        answer: Any = ray.get(call)
    except RayError:
        return before  # the worker is in trouble, which its main call is about to tell
    return before if answer is None else max(before, min(1.0, answer.fraction))


def _original(error: RayTaskError) -> BaseException:
    """The exception as the worker raised it, without Ray's wrapping, where it could travel."""
    cause = getattr(error, "cause", None)
    return cause if isinstance(cause, BaseException) else error


def _brief(error: RayError) -> str:
    """The one line of Ray's message that tells why; the first line never does."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = next((line for line in lines if "exit detail" in line or "exit type" in line), None)
    text = telling.split("exit detail:")[-1].strip() if telling else " ".join(lines)
    return f"{type(error).__name__}: {text[:200]}"
