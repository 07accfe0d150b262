"""The driver: a few shards in flight on every worker, and a new worker for every one that dies.

A worker has up to two shards that it loads or works on, so that its device need not wait for the next one, and one
more that it is committing. A second shard is only given out while there is one left for every worker that has none.

What is done about each event is `ShardQueue`'s business; here is only the waiting. Plain Ray actors rather than Ray
Data, because a batch that kills its worker has to be taken over, split and in the end quarantined, and Ray Data either
tries it for ever or ends the run.

A worker is an actor handle with three methods: `ready()` returns when it has loaded its model,
`personalize(shard, attempt)` returns a ShardSummary, and `progress()`, which may be called meanwhile, returns
{(shard id, attempt): ShardProgress}.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError

from ..core.errors import ConceptError, ConceptFailure, PersresError, StoreError
from ..pipeline.plan import Shard
from ..pipeline.shard_stages import WorkerSpoilt
from .shard_queue import ShardAttempt, ShardQueue

SHARDS_AHEAD = 2  # on the device, and loaded or being loaded
SHARDS_IN_HAND = SHARDS_AHEAD + 1  # and being committed
WAIT_S = 0.5
PROGRESS_INTERVAL_S = 1.0
DISPLAY_INTERVAL_S = 0.2
STORE_PAUSE_S = 5.0  # before the next try after a store failed; doubled for every failure in a row
LONGEST_STORE_PAUSE_S = 60.0
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

    `seconds` adds up the workers' time by phase, and `ready_seconds` how long they were there, from the moment each had
    loaded its model until it was dismissed. `incidents` tells in order what was retried, split or quarantined.
    """

    committed: tuple[str, ...]
    failures: tuple[ConceptFailure, ...]
    seconds: Mapping[str, float]
    ready_seconds: float
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
        PersresError: workers die or fail while starting, so that no shard can be tried; or one says what is wrong with
            the run as a whole.
    """
    driver = _Driver(ShardQueue(shards, max_losses=max_losses), make_worker, workers)
    driver.on_progress, driver.on_incident, driver.check = on_progress, on_incident, check
    return driver.run()


@dataclass(eq=False, slots=True)
class _InFlight:
    """An attempt on a worker, and what the worker has said about it."""

    attempt: ShardAttempt
    fraction: float = 0.0
    committing: bool = False


@dataclass(eq=False, slots=True)
class _Worker:
    """An actor, the call of its `ready()` until that has returned, and the calls of its `personalize()`."""

    actor: Any
    starting: Any
    in_flight: dict[Any, _InFlight] = field(default_factory=dict)
    ready_since: float | None = None
    leaving: bool = False
    progress_call: Any = None
    progress_asked: float = 0.0
    rests_until: float = 0.0

    def takes(self, shards: int, now: float) -> bool:
        """Whether it may be given a shard now, beside the `shards` that it has in hand."""
        if self.ready_since is None or self.leaving or self.rests_until > now or len(self.in_flight) != shards:
            return False
        ahead = sum(not one.committing for one in self.in_flight.values())
        return ahead < SHARDS_AHEAD and not any(one.attempt.alone for one in self.in_flight.values())


@dataclass(eq=False)
class _Driver:
    queue: ShardQueue
    make_worker: MakeWorker
    workers: int
    crew: list[_Worker] = field(default_factory=list)
    seconds: Counter[str] = field(default_factory=Counter)
    ready_seconds: float = 0.0
    incidents: list[str] = field(default_factory=list)
    failed_starts: int = 0
    store_failures: int = 0
    shown: float = 0.0
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
                self._show()
        finally:
            for worker in list(self.crew):
                self._dismiss(worker)
        return RunOutcome(
            tuple(self.queue.committed),
            tuple(self.queue.failures),
            dict(self.seconds),
            self.ready_seconds,
            tuple(self.incidents),
        )

    def _hire(self) -> None:
        while len(self.crew) < min(self.workers, self.queue.open_shards):
            actor = self.make_worker()
            self.crew.append(_Worker(actor, actor.ready.remote()))

    def _assign(self) -> None:
        """Give every worker its first shard before any gets its second, and keep one back for each that has none."""
        now = time.monotonic()
        for shards in range(SHARDS_IN_HAND):
            kept_back = sum(not worker.in_flight for worker in self.crew) if shards else 0
            for worker in self.crew:
                if self.queue.waiting <= kept_back:
                    return
                if worker.takes(shards, now) and (attempt := self.queue.take(beside_others=shards > 0)):
                    call = worker.actor.personalize.remote(attempt.shard, attempt.attempt)
                    worker.in_flight[call] = _InFlight(attempt)

    def _wait(self) -> list[tuple[_Worker, Any]]:
        """The calls that have ended and their workers, after at most `WAIT_S` seconds."""
        calls = {call: worker for worker in self.crew for call in worker.in_flight}
        calls |= {worker.starting: worker for worker in self.crew if worker.ready_since is None}
        if not calls:
            time.sleep(WAIT_S)
            return []
        ended, _ = ray.wait(list(calls), num_returns=1, timeout=WAIT_S)
        if ended and len(calls) > 1:
            ended, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        return [(calls[call], call) for call in ended]

    def _settle(self, ended: Iterable[tuple[_Worker, Any]]) -> None:
        lost: dict[_Worker, RayError] = {}
        for worker, call in ended:
            try:
                result = ray.get(call)
            except RayTaskError as error:
                self._raised(worker, call, _original(error))
            except RayError as error:
                lost[worker] = error
            else:
                self._succeeded(worker, call, result)
        for worker, error in lost.items():  # after all else is known, so that only what it had in hand is suspected
            self._lost(worker, error)
        for worker in [worker for worker in self.crew if worker.leaving and not worker.in_flight]:
            self._dismiss(worker)

    def _succeeded(self, worker: _Worker, call: Any, result: Any) -> None:
        if call == worker.starting:
            worker.ready_since, self.failed_starts = time.monotonic(), 0
            return
        attempt = worker.in_flight.pop(call).attempt
        self.queue.finished(attempt, result.committed, result.failures)
        self.seconds.update(result.seconds)
        self.store_failures = 0
        for note in result.notes:
            self._tell(f"shard {attempt.shard.shard_id}: {note}")

    def _raised(self, worker: _Worker, call: Any, error: BaseException) -> None:
        if call == worker.starting:
            if isinstance(error, PersresError) and not isinstance(error, StoreError):
                raise error
            self._failed_to_start(worker, f"{type(error).__name__}: {error}")
            return
        attempt = worker.in_flight.pop(call).attempt
        if isinstance(error, StoreError):
            self._tell(self.queue.store_failed(attempt, error))
            pause = min(STORE_PAUSE_S * 2**self.store_failures, LONGEST_STORE_PAUSE_S)
            worker.rests_until = time.monotonic() + pause
            self.store_failures += 1
        elif isinstance(error, WorkerSpoilt):
            worker.leaving = True
            self._tell(self.queue.returned(attempt, error.message))
        elif isinstance(error, PersresError) and not isinstance(error, ConceptError):
            raise error  # such as a device too small for the settings: no shard would fare better
        else:
            # Whatever went wrong may have spoilt the process (a CUDA context does not survive an illegal access), and
            # a warm worker has to be as good as a fresh one: so it becomes a fresh one, once it has committed what is
            # past its device.
            worker.leaving = True
            self._tell(self.queue.raised(attempt, error))

    def _lost(self, worker: _Worker, error: RayError) -> None:
        # "Unavailable" may mean that the worker is alive and still busy. It is killed: two must not do one shard, and
        # should it have committed already, a second commit of the same results changes nothing.
        reason = _brief(error)
        if worker.ready_since is None:
            self._failed_to_start(worker, reason)
            return
        self._dismiss(worker)
        in_hand = [one.attempt for one in worker.in_flight.values()]
        if worker.leaving:  # it was spoilt by a shard that has been dealt with
            incidents = [self.queue.returned(attempt, reason) for attempt in in_hand]
        else:
            preempted = isinstance(error, RayActorError) and error.preempted
            incidents = self.queue.lost(in_hand, reason, preempted=preempted)
        for incident in incidents:
            self._tell(incident)

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
        if worker.ready_since is not None:
            self.ready_seconds += time.monotonic() - worker.ready_since
        ray.kill(worker.actor)

    def _tell(self, incident: str) -> None:
        self.incidents.append(incident)
        self.on_incident(incident)

    def _poll_progress(self) -> None:
        """Ask busy workers how far they are, without ever waiting for an answer."""
        now = time.monotonic()
        for worker in self.crew:
            if worker.progress_call is not None:
                if ray.wait([worker.progress_call], timeout=0)[0]:
                    _note_progress(worker)
            elif worker.in_flight and now - worker.progress_asked >= PROGRESS_INTERVAL_S:
                worker.progress_call, worker.progress_asked = worker.actor.progress.remote(), now

    def _show(self) -> None:
        """Tell how far the run is: now and then, and at its end."""
        now = time.monotonic()
        if now - self.shown < DISPLAY_INTERVAL_S and self.queue.open_shards:
            return
        self.shown = now
        in_flight = [one for worker in self.crew for one in worker.in_flight.values()]
        self.on_progress(
            RunProgress(
                committed=len(self.queue.committed),
                failed=len(self.queue.failures),
                left=self.queue.left,
                underway=sum(one.fraction * len(one.attempt.shard.concepts) for one in in_flight),
                workers=sum(worker.ready_since is not None for worker in self.crew),
            )
        )


def _note_progress(worker: _Worker) -> None:
    """Take down what a worker answered about the shards in its hands."""
    call, worker.progress_call = worker.progress_call, None
    try:
        answer: Any = ray.get(call)
    except RayError:
        return  # the worker is in trouble, which its other calls are about to tell
    for one in worker.in_flight.values():
        said = (answer or {}).get((one.attempt.shard.shard_id, one.attempt.attempt))
        if said is not None:
            one.fraction = max(one.fraction, min(1.0, said.fraction))
            one.committing = said.phase == "commit"


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
