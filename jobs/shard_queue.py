"""What becomes of a shard after everything that can happen to it. Pure: no Ray, no clock, no store.

    finished             its concepts are committed or failed, and that is final
    worker lost          infrastructure: the shard is tried again; after `max_losses` it is halved, and a half is
                         halved again at its next loss; a concept that is alone and has lost `max_losses` workers is
                         quarantined
    store failed         infrastructure no concept is to blame for: tried again, and after `max_losses` the run stops
    raised               an application error that escaped the worker: it would end the same way, so the shard is
                         halved at once, down to the one concept that fails with the error's text

Work goes to the back of the queue when it comes back: a shard that kills its workers must not keep the others waiting.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass

from ..core.errors import ConceptError, ConceptFailure, StoreError
from ..pipeline.plan import Shard, split_shard


@dataclass(frozen=True, slots=True, eq=False)
class ShardAttempt:
    """One try at one shard. `attempt` is "001", "002", …: unique for the shard within its run, and sorted by time."""

    shard: Shard
    attempt: str


@dataclass(frozen=True, slots=True)
class _Waiting:
    shard: Shard
    losses: int = 0


class ShardQueue:
    """The shards of a run that are waiting or in flight, and the concepts that are done with.

    Every concept is at all times in exactly one of: a waiting shard, a shard in flight, `committed`, `failures`.

    Args:
        shards: what is to be done; no concept twice.
        max_losses: workers that a shard may lose before it is split, or its only concept quarantined.

    Raises:
        ValueError: a concept is in two shards.
    """

    def __init__(self, shards: Iterable[Shard], *, max_losses: int = 3) -> None:
        self._waiting = deque(_Waiting(shard) for shard in shards)
        twice = [name for name, count in Counter(_concept_ids(self._waiting)).items() if count > 1]
        if twice:
            raise ValueError(f"in more than one shard: {', '.join(sorted(twice))}")
        self._in_flight: dict[ShardAttempt, _Waiting] = {}
        self._attempts: Counter[str] = Counter()
        self._max_losses = max_losses
        self.committed: list[str] = []
        self.failures: list[ConceptFailure] = []

    @property
    def open_shards(self) -> int:
        """Shards waiting or in flight: no run has use for more workers than this."""
        return len(self._waiting) + len(self._in_flight)

    @property
    def left(self) -> int:
        """Concepts that are neither committed nor failed yet."""
        return len(_concept_ids(self._waiting)) + len(_concept_ids(self._in_flight.values()))

    def take(self) -> ShardAttempt | None:
        """The next shard to try, now in flight; None when nothing waits."""
        if not self._waiting:
            return None
        entry = self._waiting.popleft()
        self._attempts[entry.shard.shard_id] += 1
        attempt = ShardAttempt(entry.shard, f"{self._attempts[entry.shard.shard_id]:03d}")
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

    def lost(self, attempt: ShardAttempt, reason: str, *, preempted: bool = False) -> str:
        """The attempt's worker died, or cannot be reached and was killed. Returns what is done about it, for the log.

        Args:
            preempted: the machine was taken back with notice, which says nothing about the shard.
        """
        entry = self._in_flight.pop(attempt)
        shard, losses = entry.shard, entry.losses + (not preempted)
        if losses < self._max_losses:
            self._waiting.append(_Waiting(shard, losses))
            return f"{_named(shard)} lost its worker and is tried again ({reason})"
        if len(shard.concepts) > 1:
            self._split(shard, losses=self._max_losses - 1)
            return f"{_named(shard)} lost {losses} workers and is split ({reason})"
        (concept_id,) = shard.concept_ids
        self.failures.append(_quarantined(concept_id, losses, reason))
        return f"concept {concept_id} lost {losses} workers by itself and is quarantined ({reason})"

    def store_failed(self, attempt: ShardAttempt, error: StoreError) -> str:
        """The worker is well, but the store did not do what was asked. Returns what is done about it, for the log.

        Raises:
            StoreError: `error`, when it has happened to this shard `max_losses` times: the store is down.
        """
        entry = self._in_flight.pop(attempt)
        entry = _Waiting(entry.shard, entry.losses + 1)
        self._waiting.append(entry)
        if entry.losses >= self._max_losses:
            raise error
        return f"{_named(entry.shard)} could not use the store and is tried again ({error})"

    def raised(self, attempt: ShardAttempt, error: BaseException) -> str:
        """An application error ended the attempt. Returns what is done about it, for the log."""
        shard = self._in_flight.pop(attempt).shard
        reason = f"{type(error).__name__}: {error}"
        if len(shard.concepts) > 1:
            self._split(shard, losses=0)
            return f"{_named(shard)} is split to find the concept that raised {reason}"
        (concept_id,) = shard.concept_ids
        self.failures.append(_failed(concept_id, error, reason))
        return f"concept {concept_id} failed: {reason}"

    def _split(self, shard: Shard, *, losses: int) -> None:
        for half in split_shard(shard):
            # A concept alone gets the full number of tries, so that none is quarantined for its neighbours' sake.
            self._waiting.append(_Waiting(half, losses if len(half.concepts) > 1 else 0))


def _concept_ids(entries: Iterable[_Waiting]) -> list[str]:
    return [concept_id for entry in entries for concept_id in entry.shard.concept_ids]


def _named(shard: Shard) -> str:
    count = len(shard.concepts)
    return f"shard {shard.shard_id} ({count} concept{'' if count == 1 else 's'})"


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
        f"killed {losses} workers, the last ones while it was alone: {reason}",
        "look at this row's reference images and settings, and at the worker's memory; then submit again",
    )


def _failed(concept_id: str, error: BaseException, reason: str) -> ConceptFailure:
    if isinstance(error, ConceptError):
        return ConceptFailure.of(concept_id, error)
    return ConceptFailure(
        concept_id, "quarantine", reason, "this is not a fault we foresaw: report it with the row and the run spec"
    )
