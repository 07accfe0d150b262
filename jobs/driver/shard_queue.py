"""The retry policy of shards, one method for each way an attempt can end. Pure: no Ray, no clock, no store.

    finished             its concepts are committed or failed, and that is final
    worker lost          infrastructure. If a worker is lost with several shards in flight, none of them is blamed, and
                         each is retried alone, on a worker that has no other. A shard that was alone has lost a worker:
                         after `max_losses` it is split in half, and each half again at its next loss; a concept that
                         has lost `max_losses` workers by itself is quarantined
    returned             the attempt ended for a reason other than its shard: retried
    store failed         infrastructure, for which no concept is to blame: retried, and after `max_losses` the run ends;
                         a permanent refusal, such as a full disk, ends the run at once
    raised               an application error that escaped the worker. A retry would end the same way, so the shard is
                         split in half at once, down to the one concept that fails with the error's text

A retry goes to the back of the queue: a shard that kills its workers must not delay the others.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ...core.errors import ConceptError, ConceptFailure, StoreError, StoreRefused
from ...core.plural import plural
from ...pipeline.planning.plan import Shard, split_shard


@dataclass(frozen=True, slots=True, eq=False)
class ShardAttempt:
    """One attempt at one shard.

    Attributes:
        attempt: "001", "002", …: unique for the shard within its run, in order of time.
        alone: the attempt must be the only one on its worker.
    """

    shard: Shard
    attempt: str
    alone: bool = False


@dataclass(frozen=True, slots=True)
class _Waiting:
    shard: Shard
    losses: int = 0
    store_failures: int = 0
    alone: bool = False


class ShardQueue:
    """The shards of a run that are waiting or in flight, and the concepts that are finished.

    Every concept is at all times in exactly one of: a waiting shard, a shard in flight, `committed`, `failures`.

    Args:
        max_losses: how many workers a shard may lose by itself before it is split, or its only concept quarantined.

    Raises:
        ValueError: a concept is in two shards.
    """

    def __init__(self, shards: Iterable[Shard], *, max_losses: int = 3) -> None:
        self._waiting = deque(_Waiting(shard) for shard in shards)
        self._waiting_alone: deque[_Waiting] = deque()
        counts = Counter(concept_id for entry in self._waiting for concept_id in entry.shard.concept_ids)
        duplicates = sorted(name for name, count in counts.items() if count > 1)
        if duplicates:
            raise ValueError(f"in more than one shard: {', '.join(duplicates)}")
        self._concepts = len(counts)
        self._in_flight: dict[ShardAttempt, _Waiting] = {}
        self._attempts: Counter[str] = Counter()
        self._max_losses = max_losses
        self.committed: list[str] = []
        self.failures: list[ConceptFailure] = []

    @property
    def waiting(self) -> int:
        """How many shards wait for a worker."""
        return len(self._waiting) + len(self._waiting_alone)

    @property
    def open_shards(self) -> int:
        """How many shards wait or are in flight."""
        return self.waiting + len(self._in_flight)

    @property
    def left(self) -> int:
        """How many concepts are neither committed nor failed yet."""
        return self._concepts - len(self.committed) - len(self.failures)

    def take(self, *, beside_others: bool = False) -> ShardAttempt | None:
        """The next attempt, which is in flight from now on; None if there is none.

        Args:
            beside_others: its worker has other shards in flight, so that the attempt must not be an `alone` one.
        """
        source = self._waiting if self._waiting or beside_others else self._waiting_alone
        if not source:
            return None
        entry = source.popleft()
        self._attempts[entry.shard.shard_id] += 1
        attempt = ShardAttempt(entry.shard, f"{self._attempts[entry.shard.shard_id]:03d}", entry.alone)
        self._in_flight[attempt] = entry
        return attempt

    def finished(self, attempt: ShardAttempt, committed: Iterable[str], failures: Iterable[ConceptFailure]) -> None:
        """The attempt has ended with these results; a concept in neither of them has failed.

        Raises:
            ValueError: a result is for a concept of another shard.
        """
        done, failed = set(committed), {failure.concept_id: failure for failure in failures}
        shard = attempt.shard
        foreign = (done | failed.keys()) - set(shard.concept_ids)
        if foreign:
            raise ValueError(f"shard {shard.shard_id} reports concepts it does not hold: {', '.join(sorted(foreign))}")
        del self._in_flight[attempt]
        for concept_id in shard.concept_ids:
            if concept_id in done:
                self.committed.append(concept_id)
            else:
                self.failures.append(failed.get(concept_id) or _unreported(concept_id, shard))

    def worker_lost(self, attempts: Sequence[ShardAttempt], reason: str, *, preempted: bool = False) -> list[str]:
        """A worker died, or was stopped because it was unreachable or stalled. Returns the consequences, for the log.

        Args:
            attempts: all that the worker had in flight.
            preempted: its node was drained and removed, for which no shard is to blame.
        """
        if preempted:
            return [self.returned(attempt, reason) for attempt in attempts]
        if len(attempts) == 1:
            return [self._lost_alone(attempts[0], reason)]
        for attempt in attempts:
            self._enqueue(replace(self._in_flight.pop(attempt), alone=True))
        return [
            f"{_describe(attempt.shard)} was one of {len(attempts)} on a worker that was lost, and is retried alone "
            f"({reason})"
            for attempt in attempts
        ]

    def _lost_alone(self, attempt: ShardAttempt, reason: str) -> str:
        entry = self._in_flight.pop(attempt)
        shard, losses = entry.shard, entry.losses + 1
        if losses < self._max_losses:
            self._enqueue(replace(entry, losses=losses, alone=True))
            return f"{_describe(shard)} lost its worker and is retried ({reason})"
        if len(shard.concepts) > 1:
            self._split(shard, losses=self._max_losses - 1, alone=True)
            return f"{_describe(shard)} lost {plural(losses, 'worker')} and is split ({reason})"
        (concept_id,) = shard.concept_ids
        self.failures.append(_quarantined(concept_id, losses, reason))
        return f"concept {concept_id} lost {plural(losses, 'worker')} by itself and is quarantined ({reason})"

    def returned(self, attempt: ShardAttempt, reason: str) -> str:
        """The attempt ended for a reason other than its shard. Returns the consequence, for the log."""
        self._enqueue(self._in_flight.pop(attempt))
        return f"{_describe(attempt.shard)} is retried on another worker ({reason})"

    def store_failed(self, attempt: ShardAttempt, error: StoreError) -> str:
        """The object store failed, and the worker did not. Returns the consequence, for the log.

        Raises:
            StoreError: `error`, if it is permanent, or the store has failed this shard `max_losses` times.
        """
        entry = self._in_flight.pop(attempt)
        entry = replace(entry, store_failures=entry.store_failures + 1)
        self._enqueue(entry)
        if isinstance(error, StoreRefused) or entry.store_failures >= self._max_losses:
            raise error
        return f"{_describe(entry.shard)} failed because of the store and is retried ({error})"

    def raised(self, attempt: ShardAttempt, error: BaseException) -> str:
        """An application error ended the attempt. Returns the consequence, for the log."""
        entry = self._in_flight.pop(attempt)
        shard, reason = entry.shard, f"{type(error).__name__}: {error}"
        if len(shard.concepts) > 1:
            self._split(shard, losses=0, alone=entry.alone)
            return f"{_describe(shard)} is split to find the concept that raised {reason}"
        (concept_id,) = shard.concept_ids
        self.failures.append(_failed(concept_id, error, reason))
        return f"concept {concept_id} failed: {reason}"

    def _split(self, shard: Shard, *, losses: int, alone: bool) -> None:
        for half in split_shard(shard):
            # A concept by itself may lose `max_losses` workers, so that none is quarantined because of its shard-mates.
            self._enqueue(_Waiting(half, losses if len(half.concepts) > 1 else 0, alone=alone))

    def _enqueue(self, entry: _Waiting) -> None:
        (self._waiting_alone if entry.alone else self._waiting).append(entry)


def _describe(shard: Shard) -> str:
    return f"shard {shard.shard_id} ({plural(len(shard.concepts), 'concept')})"


def _unreported(concept_id: str, shard: Shard) -> ConceptFailure:
    return ConceptFailure(
        concept_id,
        "quarantine",
        f"the worker finished shard {shard.shard_id} without a result for this concept",
        "submit again; if it happens again, report it with the run's folder",
    )


def _quarantined(concept_id: str, losses: int, reason: str) -> ConceptFailure:
    return ConceptFailure(
        concept_id,
        "quarantine",
        f"killed {plural(losses, 'worker')} while it was alone: {reason}",
        "check this row's reference images, the settings and the worker's memory; then submit again",
    )


def _failed(concept_id: str, error: BaseException, reason: str) -> ConceptFailure:
    if isinstance(error, ConceptError):
        return ConceptFailure.of(concept_id, error)
    return ConceptFailure(
        concept_id, "quarantine", reason, "this error is unexpected: report it with the row and the run spec"
    )
