"""What the driver reports while a run goes on, and to whom."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ...pipeline.shard.summary import ShardSummary
    from .progress import RunProgress
    from .shard_queue import ShardAttempt


class RunObserver(Protocol):
    """Receives the events of a run, in the thread of the driver: a method that blocks delays the run.

    A subclass overrides the methods that it needs; the others do nothing.
    """

    def on_progress(self, progress: RunProgress) -> None:
        """The run's counts, several times a second and once more when the run ends, in whatever way."""

    def on_shard_start(self, attempt: ShardAttempt) -> None:
        """A worker has been given a shard."""

    def on_shard_end(self, summary: ShardSummary) -> None:
        """An attempt is over and what it gave is committed, even if its worker was lost before it could return."""

    def on_incident(self, text: str) -> None:
        """Something failed and has been handled, such as a worker that was lost."""

    def on_notice(self, text: str) -> None:
        """What the run waits for, or which workers it has stopped."""


class Observers(RunObserver):
    """Several observers as one; each event goes to them in their order."""

    def __init__(self, *observers: RunObserver) -> None:
        self._observers = observers

    def on_progress(self, progress: RunProgress) -> None:
        for observer in self._observers:
            observer.on_progress(progress)

    def on_shard_start(self, attempt: ShardAttempt) -> None:
        for observer in self._observers:
            observer.on_shard_start(attempt)

    def on_shard_end(self, summary: ShardSummary) -> None:
        for observer in self._observers:
            observer.on_shard_end(summary)

    def on_incident(self, text: str) -> None:
        for observer in self._observers:
            observer.on_incident(text)

    def on_notice(self, text: str) -> None:
        for observer in self._observers:
            observer.on_notice(text)
