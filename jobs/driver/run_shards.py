"""The driver: a few shards in flight on every worker, and a new worker for every one that is lost.

A worker has up to two shards that it loads or works on, so that its device need not wait for the next one, and one
more that it is committing. A second shard is only given out while there is one left for every worker that has none.

What becomes of a shard is `ShardQueue`'s business, who the workers are is `Crew`'s; here is what is done about each
event. docs/resume-and-refresh.md has all of it in a table. Plain Ray actors rather than Ray Data, because a batch that
kills its worker has to be taken over, split and in the end quarantined, and Ray Data either tries it for ever or ends
the run.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from ...core.errors import ConceptError, PersresError, StoreError, StoreUnavailable
from ...pipeline.catalog.commit_record import ShardCommit
from ...pipeline.planning.plan import Shard
from ...pipeline.shard.stages import WorkerSpoilt
from ...pipeline.shard.work import ShardSummary
from ...pipeline.spec.recovery import RecoverySettings
from ...pipeline.timing import (
    DRIVER_POLL_S,
    MAX_STORE_PAUSE_S,
    PROGRESS_INTERVAL_S,
    START_PAUSE_S,
    STORE_PAUSE_S,
    SUSPENDED_S,
)
from .autoscaling import Staffing, in_words
from .progress import RunOutcome, RunProgress
from .ray_errors import had_notice, loss_in_words, machine_is_to_blame, original_error
from .shard_queue import ShardAttempt, ShardQueue
from .worker_pool import SHARDS_IN_HAND, Crew, MakeWorker, Worker

MAX_FAILED_STARTS = 3


def run_shards(
    shards: Sequence[Shard],
    *,
    make_worker: MakeWorker,
    workers: int | Callable[[], int],
    recovery: RecoverySettings | None = None,
    on_progress: Callable[[RunProgress], None] = lambda progress: None,
    on_incident: Callable[[str], None] = lambda text: None,
    on_notice: Callable[[str], None] = lambda text: None,
    on_start: Callable[[ShardAttempt], None] = lambda attempt: None,
    on_shard: Callable[[ShardSummary], None] = lambda summary: None,
    check: Callable[[], None] = lambda: None,
    may_start: Callable[[], bool] = lambda: True,
    stop_asked: Callable[[], bool] = lambda: False,
    capacity: Callable[[], str] = lambda: "",
    find_commit: Callable[[ShardAttempt], ShardCommit | None] = lambda attempt: None,
) -> RunOutcome:
    """Carry out all shards on up to `workers` workers, whatever dies on the way.

    Args:
        make_worker: starts a worker; called again for every worker that is lost. One that has to wait for a machine
            is waited for, so `workers` may exceed what the cluster has now.
        workers: how many at once, or a function that is asked now and then, so that a run grows with its cluster.
        recovery: what the run puts up with.
        on_incident: told what happened to a worker or a shard; `outcome.incidents` keeps it.
        on_notice: told what the run waits for.
        on_start: told of every attempt that a worker is given.
        on_shard: told what every attempt gave that was carried out.
        check: called all the time; whatever it raises ends the run at once.
        may_start: whether shards may be handed out now; no is for a while, and shards in flight go on.
        stop_asked: once it is true, nothing is handed out any more, and shards in flight have
            `recovery.grace_seconds` to be committed.
        capacity: what a worker asks for and what the cluster has, in words, for workers that wait for a machine.
        find_commit: the record of an attempt whose worker did not return, if the attempt had come so far. A StoreError
            counts as not found: the shard is done again then, with the same results.

    Raises:
        StoreError: the store refuses what is asked of it, or failed the same shard `recovery.max_losses` times, or has
            not been heard of for `recovery.store_patience_seconds`.
        PersresError: workers die or fail while starting, so that no shard can be tried; or one says what is wrong with
            the run as a whole.
    """
    recovery = recovery or RecoverySettings()
    queue, crew = ShardQueue(shards, max_losses=recovery.max_losses), Crew(make_worker)
    how_many = workers if callable(workers) else lambda: workers
    staffing = Staffing(
        crew, queue, how_many, recovery.idle_seconds, capacity, on_notice, lambda text: driver.tell(text)
    )
    driver = _Driver(queue, crew, staffing, recovery)
    driver.on_progress, driver.on_incident, driver.on_notice = on_progress, on_incident, on_notice
    driver.on_start, driver.on_shard = on_start, on_shard
    driver.check, driver.may_start, driver.stop_asked = check, may_start, stop_asked
    driver.find_commit = find_commit
    return driver.run()


@dataclass(frozen=True, slots=True)
class _Ending:
    """The run ends before all is done: when at the latest, and with which error, if with one."""

    until: float
    error: PersresError | None


@dataclass(eq=False)
class _Driver:
    queue: ShardQueue
    crew: Crew
    staffing: Staffing
    recovery: RecoverySettings
    ending: _Ending | None = None
    seconds: Counter[str] = field(default_factory=Counter)
    incidents: list[str] = field(default_factory=list)
    failed_starts: int = 0
    store_failures: int = 0
    held_back_since: float | None = None
    awake: float = field(default_factory=time.monotonic)
    shown: float = float("-inf")
    on_progress: Callable[[RunProgress], None] = lambda progress: None
    on_incident: Callable[[str], None] = lambda text: None
    on_notice: Callable[[str], None] = lambda text: None
    on_start: Callable[[ShardAttempt], None] = lambda attempt: None
    on_shard: Callable[[ShardSummary], None] = lambda summary: None
    check: Callable[[], None] = lambda: None
    may_start: Callable[[], bool] = lambda: True
    stop_asked: Callable[[], bool] = lambda: False
    find_commit: Callable[[ShardAttempt], ShardCommit | None] = lambda attempt: None

    def run(self) -> RunOutcome:
        try:
            while self.queue.open_shards and not self._is_over():
                self.check()
                self.staffing.look_at_cluster()
                self._hand_out()
                self._settle(self.crew.ended_calls(DRIVER_POLL_S))
                self.crew.look_round()
                self._take_from_stalled()
                self._show()
            self._tell_what_is_abandoned()
        finally:
            for worker in self.crew:
                self.crew.dismiss(worker)
            self._show(at_once=True)
        if self.ending is not None and self.ending.error is not None:
            raise self.ending.error
        return RunOutcome(
            tuple(self.queue.committed),
            tuple(self.queue.failures),
            dict(self.seconds),
            self.crew.ready_seconds,
            tuple(self.incidents),
            self.queue.left,
            self.crew.most,
        )

    # -- before shards are handed out ----------------------------------------------------------------------------------

    def _is_over(self) -> bool:
        """Whether a run that ends early has nothing more to wait for."""
        if self.ending is None and self.stop_asked():
            self._end(None)
        return self.ending is not None and (not self.crew.in_flight or time.monotonic() >= self.ending.until)

    def _end(self, error: PersresError | None) -> None:
        """Hand out nothing any more; what is in flight has a last chance to be committed."""
        if self.ending is not None:
            return
        grace, count = self.recovery.grace_seconds, len(self.crew.in_flight)
        self.ending = _Ending(time.monotonic() + grace, error)
        if count:
            why = f"the run ends ({error})" if error else "asked to stop"
            self.on_notice(f"{why}: {in_words(count, 'shard')} in flight may take up to {grace:.0f} s to be committed")

    def _hand_out(self) -> None:
        """Hire, give out shards, and let those go that there is nothing for."""
        if self.ending is not None:
            self.staffing.send_home()
        elif self._holds_catalog():
            self.staffing.hire()
            self._assign()
            self.staffing.let_go()
        else:
            self.staffing.hold()

    def _holds_catalog(self) -> bool:
        """Whether shards may be handed out: not while the lease is uncertain, for the store cannot be reached then.

        Raises:
            StoreUnavailable: that has lasted too long, and nothing is in flight.
        """
        if self.may_start():
            self.held_back_since = None
            return True
        now = time.monotonic()
        if self.held_back_since is None:
            self.held_back_since = now
            self.tell("the lease on the catalog cannot be renewed: no shard is handed out until it can")
        waited = now - self.held_back_since
        if waited > self.recovery.store_patience_seconds and not self.crew.in_flight:
            raise StoreUnavailable(
                f"the catalog's store has not answered for {waited:.0f} s",
                fix="submit again when it does: what was committed is kept",
            )
        return False

    def _assign(self) -> None:
        """Give every worker its first shard before any gets its second, and keep one back for each that has none."""
        now = time.monotonic()
        for shards in range(SHARDS_IN_HAND):
            kept_back = sum(worker.is_due_a_shard(now) for worker in self.crew) if shards else 0
            for worker in self.crew:
                if self.queue.waiting <= kept_back:
                    return
                if worker.takes(shards, now) and (attempt := self.queue.take(beside_others=shards > 0)):
                    worker.give(attempt)
                    self.on_start(attempt)

    # -- what happened -------------------------------------------------------------------------------------------------

    def _settle(self, ended: Iterable[tuple[Worker, Any]]) -> None:
        lost: dict[Worker, RayError] = {}
        for worker, call in ended:
            try:
                result = ray.get(call)
            except RayTaskError as error:
                self._raised(worker, call, original_error(error))
            except RayError as error:
                lost[worker] = error
            else:
                self._succeeded(worker, call, result)
        for worker, error in lost.items():  # after all else is known, so that only what it had in hand is suspected
            # "Unavailable" may mean that the worker is alive and still busy. It is killed: two must not do one shard,
            # and should it have committed already, a second commit of the same results changes nothing.
            if worker.ready_since is None:
                self._failed_to_start(worker, loss_in_words(error), machine_is_gone=machine_is_to_blame(error))
            else:
                self._lost(worker, loss_in_words(error), given_notice=had_notice(error))
        for worker in self.crew:
            if worker.leaving and not worker.in_flight:
                self.crew.dismiss(worker)

    def _succeeded(self, worker: Worker, call: Any, result: Any) -> None:
        if call == worker.starting:
            worker.ready_since, self.failed_starts = time.monotonic(), 0
            return
        attempt = worker.done_with(call)
        self.queue.finished(attempt, result.committed, result.failures)
        self.seconds.update(result.seconds)
        self.store_failures = 0
        self.on_shard(result)
        for note in result.notes:
            self.tell(f"shard {attempt.shard.shard_id}: {note}")

    def _raised(self, worker: Worker, call: Any, error: BaseException) -> None:
        if call == worker.starting:
            if isinstance(error, PersresError) and not isinstance(error, StoreError):
                raise error
            self._failed_to_start(worker, f"{type(error).__name__}: {error}")
            return
        attempt = worker.done_with(call)
        if isinstance(error, StoreError):
            pause = min(STORE_PAUSE_S * 2**self.store_failures, MAX_STORE_PAUSE_S)
            worker.rests_until = time.monotonic() + pause
            self.store_failures += 1
            if self._had_committed(attempt):
                return
            try:
                self.tell(self.queue.store_failed(attempt, error))
            except StoreError:  # it would not fare better: but what other workers are about to commit may
                self._end(error)
        elif isinstance(error, WorkerSpoilt):
            worker.leaving = worker.leaving or error.message
            self.tell(self.queue.returned(attempt, error.message))
        elif isinstance(error, PersresError) and not isinstance(error, ConceptError):
            raise error  # such as a device too small for the settings: no shard would fare better
        else:
            # Whatever went wrong may have spoilt the process (a CUDA context does not survive an illegal access), and
            # a warm worker has to be as good as a fresh one: so it becomes a fresh one, once it has committed what is
            # past its device.
            worker.leaving = worker.leaving or "it raised an error"
            self.tell(self.queue.raised(attempt, error))

    def _lost(self, worker: Worker, reason: str, *, given_notice: bool = False) -> None:
        """A worker died, or nothing moves in it: whatever it is, it is dismissed."""
        self.crew.dismiss(worker)
        in_hand = [one.attempt for one in worker.in_flight.values() if not self._had_committed(one.attempt)]
        if worker.leaving:  # for a reason that has been dealt with
            incidents = [self.queue.returned(attempt, reason) for attempt in in_hand]
        else:
            incidents = self.queue.lost(in_hand, reason, preempted=given_notice)
        for incident in incidents:
            self.tell(incident)

    def _had_committed(self, attempt: ShardAttempt) -> bool:
        """Whether an attempt that did not return had come to its end all the same; then nothing of it is done again."""
        try:
            record = self.find_commit(attempt)
        except StoreError:
            return False
        if record is None:
            return False
        committed = tuple(concept.concept_id for concept in record.concepts)
        self.queue.finished(attempt, committed, record.failures)
        self.seconds.update(record.seconds)
        self.on_shard(
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
        self.tell(f"shard {attempt.shard.shard_id} was committed before its worker could say so")
        return True

    def _failed_to_start(self, worker: Worker, reason: str, *, machine_is_gone: bool = False) -> None:
        self.crew.dismiss(worker)
        if machine_is_gone:
            self.tell(f"a worker lost its machine while it was starting and is replaced ({reason})")
            return
        self.failed_starts += 1
        if self.failed_starts < max(MAX_FAILED_STARTS, self.staffing.wanted):
            self.tell(f"a worker failed while it was starting and is replaced ({reason})")
        elif self.crew.ready:
            self.staffing.hires_from = time.monotonic() + START_PAUSE_S
            self.tell(f"{self.failed_starts} workers in a row failed while starting; the others go on ({reason})")
        else:
            raise PersresError(
                f"{self.failed_starts} workers in a row failed while they were starting, the last one with: {reason}",
                fix="check that the base model fits the worker's memory and device, then submit again",
            )

    def _take_from_stalled(self) -> None:
        """Kill workers in which nothing has moved for too long. One that waits for the store has more time."""
        now, slept = time.monotonic(), time.monotonic() - self.awake
        self.awake = now
        for worker in self.crew:
            if slept > SUSPENDED_S:
                worker.moved += slept  # this process was suspended, so nobody could have told it anything
            limit = self.recovery.stall_seconds
            if not worker.on_device:
                limit += self.recovery.store_patience_seconds
            if worker.still_for(now) <= limit:
                continue
            if worker.ready_since is None:
                self._failed_to_start(worker, f"it was not ready after {limit:.0f} s")
            else:
                self._lost(worker, f"nothing moved for {limit:.0f} s")

    def _tell_what_is_abandoned(self) -> None:
        if self.crew.in_flight:
            count = len(self.crew.in_flight)
            self.tell(f"{in_words(count, 'shard')} in flight not committed within {self.recovery.grace_seconds:.0f} s")

    def tell(self, incident: str) -> None:
        """Something happened and was dealt with."""
        self.incidents.append(incident)
        self.on_incident(incident)

    def _show(self, *, at_once: bool = False) -> None:
        """Tell how far the run is: now and then, and at its end."""
        now = time.monotonic()
        if now - self.shown < PROGRESS_INTERVAL_S and not at_once:
            return
        self.shown = now
        self.on_progress(
            RunProgress(
                committed=len(self.queue.committed),
                failed=len(self.queue.failures),
                left=self.queue.left,
                underway=sum(one.fraction * len(one.attempt.shard.concepts) for one in self.crew.in_flight),
                workers=self.crew.ready,
                shards_waiting=self.queue.waiting,
            )
        )
