"""What becomes of a shard after everything that can happen to it. Pure: no Ray, no clock, no store.

    finished             its concepts are committed or failed, and that is final
    worker lost          infrastructure. A worker has several shards in hand; when it dies with more than one of them,
                         none is blamed, and each is tried again alone, on a worker that has nothing else in hand. A
                         shard that was alone has lost a worker: after `max_losses` it is halved, and a half is halved
                         again at its next loss; a concept that has lost `max_losses` workers by itself is quarantined
    returned             the worker did not try it, for a reason that is not the shard's: tried again
    store failed         infrastructure no concept is to blame for: tried again, and after `max_losses` the run ends;
                         what the store refuses for good, such as a full disk, ends the run at once
    raised               an application error that escaped the worker: it would end the same way, so the shard is
                         halved at once, down to the one concept that fails with the error's text

Work goes to the back of the queue when it comes back: a shard that kills its workers must not keep the others waiting.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from ...core.errors import ConceptError, ConceptFailure, StoreError, StoreRefused
from ...pipeline.planning.plan import Shard, split_shard


@dataclass(frozen=True, slots=True, eq=False)
class ShardAttempt:
    """One try at one shard. `attempt` is "001", "002", …: unique for the shard within its run, and sorted by time.

    While an attempt that is `alone` lasts, its worker must have no other.
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
    """The shards of a run that are waiting or in flight, and the concepts that are done with.

    Every concept is at all times in exactly one of: a waiting shard, a shard in flight, `committed`, `failures`.

    Args:
        shards: what is to be done; no concept twice.
        max_losses: workers that a shard may lose by itself before it is split, or its only concept quarantined.

    Raises:
        ValueError: a concept is in two shards.
    """

    def __init__(self, shards: Iterable[Shard], *, max_losses: int = 3) -> None:
        self._waiting = deque(_Waiting(shard) for shard in shards)
        self._waiting_alone: deque[_Waiting] = deque()
        counts = Counter(concept_id for entry in self._waiting for concept_id in entry.shard.concept_ids)
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise ValueError(f"in more than one shard: {', '.join(twice)}")
        self._concepts = len(counts)
        self._in_flight: dict[ShardAttempt, _Waiting] = {}
        self._attempts: Counter[str] = Counter()
        self._max_losses = max_losses
        self.committed: list[str] = []
        self.failures: list[ConceptFailure] = []

    @property
    def waiting(self) -> int:
        """Shards that nobody has taken yet."""
        return len(self._waiting) + len(self._waiting_alone)

    @property
    def open_shards(self) -> int:
        """Shards waiting or in flight: no run has use for more workers than this."""
        return self.waiting + len(self._in_flight)

    @property
    def left(self) -> int:
        """Concepts that are neither committed nor failed yet."""
        return self._concepts - len(self.committed) - len(self.failures)

    def take(self, *, beside_others: bool = False) -> ShardAttempt | None:
        """The next shard to try, now in flight; None when none may be.

        Args:
            beside_others: the worker that it is for has other shards in hand, so only a shard that need not be alone
                will do.
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
        """The attempt ended and says what became of its concepts; one that it does not mention has failed.

        Raises:
            ValueError: it speaks of a concept that is not its own.
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
                self.failures.append(failed.get(concept_id) or _unmentioned(concept_id, shard))

    def lost(self, attempts: Sequence[ShardAttempt], reason: str, *, preempted: bool = False) -> list[str]:
        """A worker died, or cannot be reached and was killed. Returns what is done about it, for the log.

        Args:
            attempts: all that the worker had in hand.
            preempted: the machine was taken back with notice, which says nothing about the shards.
        """
        if preempted:
            return [self.returned(attempt, reason) for attempt in attempts]
        if len(attempts) == 1:
            return [self._lost_alone(attempts[0], reason)]
        for attempt in attempts:
            self._wait(replace(self._in_flight.pop(attempt), alone=True))
        return [
            f"{_named(attempt.shard)} was one of {len(attempts)} that a worker died with, and is tried again alone "
            f"({reason})"
            for attempt in attempts
        ]

    def _lost_alone(self, attempt: ShardAttempt, reason: str) -> str:
        entry = self._in_flight.pop(attempt)
        shard, losses = entry.shard, entry.losses + 1
        if losses < self._max_losses:
            self._wait(replace(entry, losses=losses, alone=True))
            return f"{_named(shard)} lost its worker and is tried again ({reason})"
        if len(shard.concepts) > 1:
            self._split(shard, losses=self._max_losses - 1, alone=True)
            return f"{_named(shard)} lost {_workers(losses)} and is split ({reason})"
        (concept_id,) = shard.concept_ids
        self.failures.append(_quarantined(concept_id, losses, reason))
        return f"concept {concept_id} lost {_workers(losses)} by itself and is quarantined ({reason})"

    def returned(self, attempt: ShardAttempt, reason: str) -> str:
        """The worker did not finish the shard, and not for the shard's sake. Returns what is done, for the log."""
        self._wait(self._in_flight.pop(attempt))
        return f"{_named(attempt.shard)} is given to another worker ({reason})"

    def store_failed(self, attempt: ShardAttempt, error: StoreError) -> str:
        """The worker is well, but the store did not do what was asked. Returns what is done about it, for the log.

        Raises:
            StoreError: `error`, when it will not pass: the store refuses, or has failed this shard `max_losses` times.
        """
        entry = self._in_flight.pop(attempt)
        entry = replace(entry, store_failures=entry.store_failures + 1)
        self._wait(entry)
        if isinstance(error, StoreRefused) or entry.store_failures >= self._max_losses:
            raise error
        return f"{_named(entry.shard)} could not use the store and is tried again ({error})"

    def raised(self, attempt: ShardAttempt, error: BaseException) -> str:
        """An application error ended the attempt. Returns what is done about it, for the log."""
        entry = self._in_flight.pop(attempt)
        shard, reason = entry.shard, f"{type(error).__name__}: {error}"
        if len(shard.concepts) > 1:
            self._split(shard, losses=0, alone=entry.alone)
            return f"{_named(shard)} is split to find the concept that raised {reason}"
        (concept_id,) = shard.concept_ids
        self.failures.append(_failed(concept_id, error, reason))
        return f"concept {concept_id} failed: {reason}"

    def _split(self, shard: Shard, *, losses: int, alone: bool) -> None:
        for half in split_shard(shard):
            # A concept by itself gets the full number of tries, so that none is quarantined for its neighbours' sake.
            self._wait(_Waiting(half, losses if len(half.concepts) > 1 else 0, alone=alone))

    def _wait(self, entry: _Waiting) -> None:
        (self._waiting_alone if entry.alone else self._waiting).append(entry)


def _named(shard: Shard) -> str:
    count = len(shard.concepts)
    return f"shard {shard.shard_id} ({count} concept{'' if count == 1 else 's'})"


def _workers(count: int) -> str:
    return f"{count} worker{'' if count == 1 else 's'}"


def _unmentioned(concept_id: str, shard: Shard) -> ConceptFailure:
    return ConceptFailure(
        concept_id,
        "quarantine",
        f"the worker finished shard {shard.shard_id} without saying what became of this concept",
        "submit again; if it happens again, report it with the run's folder",
    )


def _quarantined(concept_id: str, losses: int, reason: str) -> ConceptFailure:
    return ConceptFailure(
        concept_id,
        "quarantine",
        f"killed {_workers(losses)} while it was alone: {reason}",
        "look at this row's reference images and settings, and at the worker's memory; then submit again",
    )


def _failed(concept_id: str, error: BaseException, reason: str) -> ConceptFailure:
    if isinstance(error, ConceptError):
        return ConceptFailure.of(concept_id, error)
    return ConceptFailure(
        concept_id, "quarantine", reason, "this is not a fault we foresaw: report it with the row and the run spec"
    )
