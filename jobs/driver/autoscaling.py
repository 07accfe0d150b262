"""How many workers a run has: who is hired, who waits for a machine, who is let go because no shard is left for them.

There is work for the workers that have some, and for one more for every shard that waits. A request for a machine
beyond that is withdrawn at once: it costs nothing to ask again. A worker that has its machine, and soon its model, is
let go only after nothing has waited for a while (`RecoverySettings.idle_seconds`): until then it takes over at once
what comes back. Then its machine is free, and an autoscaler can give it back while the last shards go on elsewhere.

Nobody is let go while the run may not hand out shards: what is in flight then may well come back.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ...pipeline.timing import CLUSTER_POLL_S
from ..cluster.nodes import draining_nodes
from .shard_queue import ShardQueue
from .worker_pool import NODE_WAIT_NOTICE_S, Crew


@dataclass(eq=False)
class Staffing:
    """The size of a run's crew, now and as it changes.

    Attributes:
        how_many: how many workers at once at most; asked now and then, so that a run grows with its cluster.
        idle_seconds: how long nothing has to wait before workers that have nothing are let go.
        capacity: what a worker asks for and what the cluster has, in words.
        on_notice: told what the run waits for, and whom it lets go.
        on_incident: told of machines that go.
        wanted: what `how_many` said last.
        hires_from: nobody is hired before this moment of the monotonic clock.
    """

    crew: Crew
    queue: ShardQueue
    how_many: Callable[[], int]
    idle_seconds: float
    capacity: Callable[[], str]
    on_notice: Callable[[str], None]
    on_incident: Callable[[str], None]
    wanted: int = 1
    hires_from: float = 0.0
    _looked: float = float("-inf")
    _noticed_capacity: float = float("-inf")
    _nothing_waits_since: float | None = None

    def look_at_cluster(self) -> None:
        """Now and then: which machines go, how many workers are wanted, and who has been waiting for a machine."""
        now = time.monotonic()
        if now - self._looked < CLUSTER_POLL_S:
            return
        self._looked = now
        going = draining_nodes()
        for worker in self.crew:
            if worker.node in going and not worker.leaving:
                worker.leaving = "its machine has been given notice"
                count = in_words(len(worker.in_flight), "shard")
                self.on_incident(f"the machine of a worker with {count} in hand has been given notice: it gets no more")
        self.wanted = self.how_many()
        waiting = [worker for worker in self.crew.unplaced if now - worker.hired >= NODE_WAIT_NOTICE_S]
        if waiting and now - self._noticed_capacity >= NODE_WAIT_NOTICE_S:
            self._noticed_capacity = now
            minutes = (now - min(worker.hired for worker in waiting)) / 60
            have = "has" if len(waiting) == 1 else "have"
            text = f"{in_words(len(waiting), 'worker')} {have} been waiting for a machine for {minutes:.0f} min"
            self.on_notice("; ".join(filter(None, (f"{text}, of {self.wanted} wanted", self.capacity()))))

    def hire(self) -> None:
        """Start the workers that there is work for, and withdraw requests that none is left for."""
        if time.monotonic() < self.hires_from:
            return
        withdrawn = self.crew.hire_up_to(min(self.wanted, self.queue.waiting + self.crew.busy))
        if withdrawn:
            were = "worker that waited for a machine is" if withdrawn == 1 else "workers that waited for a machine are"
            self.on_notice(f"{withdrawn} {were} no longer asked for")

    def let_go(self) -> None:
        """Dismiss workers that have nothing, once nothing has been waiting for long enough."""
        now = time.monotonic()
        if self.queue.waiting:
            self._nothing_waits_since = None
            return
        if self._nothing_waits_since is None:
            self._nothing_waits_since = now
        nothing_waits_for = now - self._nothing_waits_since
        gone = [worker for worker in self.crew if min(worker.idle_for(now), nothing_waits_for) > self.idle_seconds]
        for worker in gone:
            self.crew.dismiss(worker)
        if gone:
            left = f"{in_words(self.queue.open_shards, 'shard')} in flight"
            self.on_notice(f"{in_words(len(gone), 'worker')} let go: nothing waits for a worker, with {left}")

    def send_home(self) -> None:
        """The run ends: dismiss everybody who has nothing in hand, and ask for no machine any more."""
        for worker in self.crew:
            if not worker.in_flight:
                self.crew.dismiss(worker)

    def hold(self) -> None:
        """Shards may not be handed out now: nobody is idle by their own doing."""
        self._nothing_waits_since = None


def in_words(count: int, noun: str) -> str:
    """Such as "1 shard" and "3 shards"."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
