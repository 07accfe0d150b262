"""The driver: keeps a few shards in flight on every worker, and replaces every worker that is lost.

A worker has up to two shards that it loads or computes, so that its device need not wait for the next one, and one more
that it commits. No worker gets a second shard unless one is left for every worker that has none.

`ShardQueue` decides about shards, `Autoscaler` about the number of workers; this file maps events to their methods.
docs/resume-and-refresh.md has a table of them. Plain Ray actors rather than Ray Data, because a batch that kills its
worker has to be retried, split and in the end quarantined, and Ray Data either retries it for ever or ends the run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import ray
from ray.exceptions import RayError, RayTaskError

from ...core.errors import ConceptError, PersresError, StoreError, StoreUnavailable
from ...core.plural import plural
from ...core.timing import (
    DRIVER_POLL_S,
    MAX_STORE_PAUSE_S,
    PROGRESS_INTERVAL_S,
    START_PAUSE_S,
    STORE_PAUSE_S,
    SUSPENDED_S,
)
from ...pipeline.catalog.commit_record import ShardCommit
from ...pipeline.planning.plan import Shard
from ...pipeline.shard.stages import WorkerCorrupted
from ...pipeline.shard.summary import ShardSummary
from ...pipeline.spec.recovery import RecoverySettings
from .autoscaling import Autoscaler
from .observer import Observers, RunObserver
from .progress import RunOutcome, RunProgress, TimeToGo
from .ray_errors import describe_loss, is_node_failure, original_error, was_preempted
from .shard_queue import ShardAttempt, ShardQueue
from .worker_pool import MAX_SHARDS_IN_FLIGHT, MakeWorker, Worker, WorkerPool

MAX_FAILED_STARTS = 3

FindCommit = Callable[[ShardAttempt], ShardCommit | None]


class CatalogLease(Protocol):
    """The lease on a catalog, as far as the driver uses it."""

    def check(self) -> None:
        """Raises CatalogHeld if the lease is lost."""

    def is_certain(self) -> bool:
        """Whether the lease is held for certain; if not, no shard is started."""
        ...


def run_shards(
    shards: Sequence[Shard],
    *,
    make_worker: MakeWorker,
    workers: int | Callable[[], int],
    recovery: RecoverySettings | None = None,
    observer: RunObserver | None = None,
    lease: CatalogLease | None = None,
    stop_requested: Callable[[], bool] = lambda: False,
    capacity: Callable[[], str] = lambda: "",
    find_commit: FindCommit = lambda attempt: None,
) -> RunOutcome:
    """Execute all shards on up to `workers` workers, whatever fails on the way.

    Args:
        make_worker: starts an actor, a new one for each that is lost too. It may stay pending until the cluster has a
            node for it, so that `workers` may exceed what the cluster has now.
        workers: how many at most; a function is called every few seconds, so that a run grows with its cluster.
        lease: checked in every iteration of the driver's loop.
        stop_requested: once it returns True no shard is started, and those in flight have `recovery.grace_seconds` to
            be committed.
        capacity: returns what a worker needs and what the cluster has, for notices about pending workers.
        find_commit: returns the record of an attempt that did not return, if it was committed. If it raises StoreError
            the shard is done again, with the same results.

    Raises:
        CatalogHeld: the lease is lost.
        StoreError: the store permanently refuses an operation, has failed a shard `recovery.max_losses` times, or has
            been unreachable for `recovery.store_patience_seconds`.
        PersresError: no worker starts, or a worker reports an error that concerns the whole run.
    """
    recovery, totals = recovery or RecoverySettings(), _Totals()
    observers = Observers(totals, observer) if observer else totals
    queue, pool = ShardQueue(shards, max_losses=recovery.max_losses), WorkerPool(make_worker)
    autoscaler = Autoscaler(
        pool,
        queue,
        max_workers=workers if callable(workers) else lambda: workers,
        idle_seconds=recovery.idle_seconds,
        capacity=capacity,
        observer=observers,
    )
    _Driver(queue, pool, autoscaler, recovery, observers, lease, stop_requested, find_commit).run()
    return RunOutcome(
        committed=tuple(queue.committed),
        failures=tuple(queue.failures),
        seconds=dict(totals.seconds),
        ready_seconds=pool.ready_seconds,
        incidents=tuple(totals.incidents),
        left=queue.left,
        workers=pool.peak_size,
    )


class _Totals(RunObserver):
    """Accumulates what the run's outcome lists."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self.incidents: list[str] = []

    def on_shard_end(self, summary: ShardSummary) -> None:
        self.seconds.update(summary.seconds)

    def on_incident(self, text: str) -> None:
        self.incidents.append(text)


@dataclass(frozen=True, slots=True)
class _Shutdown:
    """The run ends early: at the latest at `deadline`, and with `error`, if any."""

    deadline: float
    error: PersresError | None


class _Driver:
    def __init__(
        self,
        queue: ShardQueue,
        pool: WorkerPool,
        autoscaler: Autoscaler,
        recovery: RecoverySettings,
        observer: RunObserver,
        lease: CatalogLease | None,
        stop_requested: Callable[[], bool],
        find_commit: FindCommit,
    ) -> None:
        self._queue, self._pool, self._autoscaler = queue, pool, autoscaler
        self._recovery, self._observer, self._lease = recovery, observer, lease
        self._stop_requested, self._find_commit = stop_requested, find_commit
        self._shutdown: _Shutdown | None = None
        self._failed_starts = 0
        self._store_failures = 0
        self._lease_uncertain_since: float | None = None
        self._stall_checked_at = time.monotonic()
        self._progress_reported_at = float("-inf")
        self._time_to_go = TimeToGo()

    def run(self) -> None:
        """Loop until every shard is finished or the run has been shut down."""
        try:
            while self._queue.open_shards and not self._is_shut_down():
                if self._lease is not None:
                    self._lease.check()
                self._autoscaler.poll_cluster()
                self._start_shards()
                self._handle_completed(self._pool.wait(DRIVER_POLL_S))
                self._pool.poll()
                self._stop_stalled_workers()
                self._report_progress()
            self._report_abandoned()
        finally:
            for worker in self._pool:
                self._pool.stop(worker)
            self._report_progress(force=True)
        if self._shutdown is not None and self._shutdown.error is not None:
            raise self._shutdown.error

    def _is_shut_down(self) -> bool:
        if self._shutdown is None and self._stop_requested():
            self._shut_down(None)
        if self._shutdown is None:
            return False
        return not self._pool.in_flight or time.monotonic() >= self._shutdown.deadline

    def _shut_down(self, error: PersresError | None) -> None:
        """Start no more shards; those in flight have the grace period to be committed."""
        if self._shutdown is not None:
            return
        grace, count = self._recovery.grace_seconds, len(self._pool.in_flight)
        self._shutdown = _Shutdown(time.monotonic() + grace, error)
        if count:
            cause = f"the run ends ({error})" if error else "stop requested"
            in_flight = f"{plural(count, 'shard')} in flight"
            self._observer.on_notice(f"{cause}: {in_flight} may take up to {grace:.0f} s to be committed")

    def _start_shards(self) -> None:
        if self._shutdown is not None:
            self._autoscaler.stop_workers_without_shard()
        elif self._holds_lease():
            self._autoscaler.scale_to_demand()
            self._assign()
            self._autoscaler.stop_idle_workers()
        else:
            self._autoscaler.reset_idle_time()

    def _holds_lease(self) -> bool:
        """Whether shards may be started: not while the store cannot be reached to renew the lease.

        Raises:
            StoreUnavailable: that has lasted for `store_patience_seconds`, and no shard is in flight.
        """
        if self._lease is None or self._lease.is_certain():
            self._lease_uncertain_since = None
            return True
        now = time.monotonic()
        if self._lease_uncertain_since is None:
            self._lease_uncertain_since = now
            self._observer.on_incident("the catalog's lease cannot be renewed: no shard is started until it is")
        waited = now - self._lease_uncertain_since
        if waited > self._recovery.store_patience_seconds and not self._pool.in_flight:
            raise StoreUnavailable(
                f"the catalog's store has not answered for {waited:.0f} s",
                fix="submit again when it does: what was committed is kept",
            )
        return False

    def _assign(self) -> None:
        """Give every worker its first shard before any gets its second, and keep one back for each that has none."""
        now = time.monotonic()
        for in_flight in range(MAX_SHARDS_IN_FLIGHT):
            kept_back = sum(worker.expects_shard(now) for worker in self._pool) if in_flight else 0
            for worker in self._pool:
                if self._queue.waiting <= kept_back:
                    return
                if not worker.accepts_shard(in_flight, now):
                    continue
                if attempt := self._queue.take(beside_others=in_flight > 0):
                    worker.assign(attempt)
                    self._observer.on_shard_start(attempt)

    def _handle_completed(self, completed: Iterable[tuple[Worker, Any]]) -> None:
        lost: dict[Worker, RayError] = {}
        for worker, call in completed:
            try:
                result = ray.get(call)
            except RayTaskError as error:
                self._handle_raised(worker, call, original_error(error))
            except RayError as error:
                lost[worker] = error
            else:
                self._handle_returned(worker, call, result)
        for worker, error in lost.items():  # last, so that only shards that are still in flight are suspected
            # ActorUnavailableError may mean that the worker is alive and still busy. It is killed: two must not do one
            # shard, and should it have committed already, a second commit of the same results changes nothing.
            if worker.ready_at is None:
                self._handle_failed_start(worker, describe_loss(error), node_failed=is_node_failure(error))
            else:
                self._handle_lost(worker, describe_loss(error), preempted=was_preempted(error))
        for worker in self._pool:
            if worker.draining and not worker.in_flight:
                self._pool.stop(worker)

    def _handle_returned(self, worker: Worker, call: Any, result: Any) -> None:
        if call == worker.ready_call:
            worker.ready_at, self._failed_starts = time.monotonic(), 0
            return
        attempt = worker.finish(call)
        self._queue.finished(attempt, result.committed, result.failures)
        self._store_failures = 0
        self._observer.on_shard_end(result)
        for note in result.notes:
            self._observer.on_incident(f"shard {attempt.shard.shard_id}: {note}")

    def _handle_raised(self, worker: Worker, call: Any, error: BaseException) -> None:
        if call == worker.ready_call:
            if isinstance(error, PersresError) and not isinstance(error, StoreError):
                raise error
            self._handle_failed_start(worker, f"{type(error).__name__}: {error}")
            return
        attempt = worker.finish(call)
        if isinstance(error, StoreError):
            self._handle_store_error(worker, attempt, error)
        elif isinstance(error, WorkerCorrupted):
            worker.draining = worker.draining or error.message
            self._observer.on_incident(self._queue.returned(attempt, error.message))
        elif isinstance(error, PersresError) and not isinstance(error, ConceptError):
            raise error  # such as a device too small for the settings: every shard would fail
        else:
            # The error may have left the process unusable (a CUDA context does not survive an illegal access), and a
            # warm worker has to be as good as a fresh one. So it is replaced, once it has committed what is past its
            # device.
            worker.draining = worker.draining or "it raised an error"
            self._observer.on_incident(self._queue.raised(attempt, error))

    def _handle_store_error(self, worker: Worker, attempt: ShardAttempt, error: StoreError) -> None:
        pause_s = min(STORE_PAUSE_S * 2**self._store_failures, MAX_STORE_PAUSE_S)
        worker.paused_until = time.monotonic() + pause_s
        self._store_failures += 1
        if self._was_committed(attempt):
            return
        try:
            self._observer.on_incident(self._queue.store_failed(attempt, error))
        except StoreError:  # a retry would fail too, but what other workers are about to commit may succeed
            self._shut_down(error)

    def _handle_lost(self, worker: Worker, reason: str, *, preempted: bool = False) -> None:
        """Stop a worker that died, is unreachable or makes no progress, and retry its shards."""
        self._pool.stop(worker)
        attempts = [one.attempt for one in worker.in_flight.values() if not self._was_committed(one.attempt)]
        if worker.draining:  # the cause is known and handled already
            incidents = [self._queue.returned(attempt, reason) for attempt in attempts]
        else:
            incidents = self._queue.worker_lost(attempts, reason, preempted=preempted)
        for incident in incidents:
            self._observer.on_incident(incident)

    def _was_committed(self, attempt: ShardAttempt) -> bool:
        """Whether an attempt that did not return was committed all the same; then it counts as finished."""
        try:
            record = self._find_commit(attempt)
        except StoreError:
            return False
        if record is None:
            return False
        committed = tuple(concept.concept_id for concept in record.concepts)
        self._queue.finished(attempt, committed, record.failures)
        self._observer.on_shard_end(
            ShardSummary(
                record.shard_id,
                record.attempt,
                committed,
                record.failures,
                record.seconds,
                bytes_written=record.bytes_written,
                measured=record.measured,
            )
        )
        self._observer.on_incident(f"shard {attempt.shard.shard_id} was committed, although its worker did not return")
        return True

    def _handle_failed_start(self, worker: Worker, reason: str, *, node_failed: bool = False) -> None:
        self._pool.stop(worker)
        if node_failed:
            self._observer.on_incident(f"a worker lost its node while starting and is replaced ({reason})")
            return
        self._failed_starts += 1
        if self._failed_starts < max(MAX_FAILED_STARTS, self._autoscaler.limit):
            self._observer.on_incident(f"a worker failed while starting and is replaced ({reason})")
        elif self._pool.ready:
            self._autoscaler.paused_until = time.monotonic() + START_PAUSE_S
            failed = f"{self._failed_starts} workers in a row failed while starting"
            self._observer.on_incident(f"{failed}; the others continue ({reason})")
        else:
            raise PersresError(
                f"{self._failed_starts} workers in a row failed while starting, the last one with: {reason}",
                fix="check that the base model fits the worker's memory and device, then submit again",
            )

    def _stop_stalled_workers(self) -> None:
        """Replace workers without progress for `stall_seconds`, or longer if they may be waiting for the store."""
        now = time.monotonic()
        suspended_s, self._stall_checked_at = now - self._stall_checked_at, now
        for worker in self._pool:
            if suspended_s > SUSPENDED_S:
                worker.progressed_at += suspended_s  # this process could not receive any progress meanwhile
            limit = self._recovery.stall_seconds
            if not worker.is_computing:
                limit += self._recovery.store_patience_seconds
            if worker.stalled_for(now) <= limit:
                continue
            if worker.ready_at is None:
                self._handle_failed_start(worker, f"not ready after {limit:.0f} s")
            else:
                self._handle_lost(worker, f"no progress for {limit:.0f} s")

    def _report_abandoned(self) -> None:
        if count := len(self._pool.in_flight):
            grace = self._recovery.grace_seconds
            self._observer.on_incident(f"{plural(count, 'shard')} in flight not committed within {grace:.0f} s")

    def _report_progress(self, *, force: bool = False) -> None:
        """Report progress, unless the last report is less than `PROGRESS_INTERVAL_S` old."""
        now = time.monotonic()
        if now - self._progress_reported_at < PROGRESS_INTERVAL_S and not force:
            return
        self._progress_reported_at = now
        in_flight = self._pool.in_flight
        progress = RunProgress(
            committed=len(self._queue.committed),
            failed=len(self._queue.failures),
            left=self._queue.left,
            in_progress=sum(one.fraction * len(one.attempt.shard.concepts) for one in in_flight),
            workers=self._pool.ready,
            shards_waiting=self._queue.waiting,
        )
        self._observer.on_progress(replace(progress, seconds_to_go=self._time_to_go.estimate(progress)))
