"""How many workers a run has: when workers are started, when pending ones are cancelled, when idle ones are stopped.

A run wants the workers that are busy, and one more for each shard that waits. Pending workers beyond that are cancelled
at once: it costs nothing to start them again. A worker that has its node, and maybe its model, is stopped only after no
shard has waited for `RecoverySettings.idle_seconds`: until then it can take over immediately what returns to the queue.
Then its node is idle, and the cluster's autoscaler can remove it while the last shards go on elsewhere.

No worker is stopped while the lease is uncertain: shards in flight may then return to the queue.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from ...core.plural import plural
from ...core.timing import CLUSTER_POLL_S, NODE_WAIT_NOTICE_S
from ..cluster.nodes import draining_nodes
from .observer import RunObserver
from .shard_queue import ShardQueue
from .worker_pool import WorkerPool


class Autoscaler:
    """Sizes a pool of workers by the shards of a queue.

    Args:
        max_workers: returns how many workers there may be; called at every poll, so that a run grows with its cluster.
        idle_seconds: how long no shard has to wait before idle workers are stopped.
        capacity: returns what a worker needs and what the cluster has, for notices.

    Attributes:
        limit: what `max_workers` returned last.
        paused_until: no worker is started before this time of the monotonic clock.
    """

    def __init__(
        self,
        pool: WorkerPool,
        queue: ShardQueue,
        *,
        max_workers: Callable[[], int],
        idle_seconds: float,
        capacity: Callable[[], str],
        observer: RunObserver,
    ) -> None:
        self._pool, self._queue = pool, queue
        self._max_workers, self._idle_seconds, self._capacity = max_workers, idle_seconds, capacity
        self._observer = observer
        self.limit = 1
        self.paused_until = 0.0
        self._polled_at = float("-inf")
        self._noticed_at = float("-inf")
        self._queue_empty_since: float | None = None

    def poll_cluster(self) -> None:
        """Every `CLUSTER_POLL_S` seconds: drain workers of draining nodes, update `limit`, report pending workers."""
        now = time.monotonic()
        if now - self._polled_at < CLUSTER_POLL_S:
            return
        self._polled_at = now
        self._drain_workers_of_draining_nodes()
        self.limit = self._max_workers()
        self._report_pending(now)

    def scale_to_demand(self) -> None:
        """Start the workers that there are shards for, and cancel pending ones that there are none for."""
        if time.monotonic() < self.paused_until:
            return
        cancelled = self._pool.scale_to(min(self.limit, self._queue.waiting + self._pool.busy))
        if cancelled:
            self._observer.on_notice(f"{plural(cancelled, 'pending worker')} cancelled: no shard is left to start")

    def stop_idle_workers(self) -> None:
        """Stop workers without a shard, once no shard has waited for `idle_seconds`."""
        now = time.monotonic()
        if self._queue.waiting:
            self._queue_empty_since = None
            return
        if self._queue_empty_since is None:
            self._queue_empty_since = now
        queue_empty_for = now - self._queue_empty_since
        idle = [worker for worker in self._pool if min(worker.idle_for(now), queue_empty_for) > self._idle_seconds]
        for worker in idle:
            self._pool.stop(worker)
        if idle:
            in_flight = plural(self._queue.open_shards, "shard")
            self._observer.on_notice(
                f"{plural(len(idle), 'idle worker')} stopped: no shard waits, {in_flight} in flight"
            )

    def stop_workers_without_shard(self) -> None:
        """Stop every worker, pending or not, that has no shard in flight: the run is shutting down."""
        for worker in self._pool:
            if not worker.in_flight:
                self._pool.stop(worker)

    def reset_idle_time(self) -> None:
        """Restart `idle_seconds`: no shard could be started just now."""
        self._queue_empty_since = None

    def _drain_workers_of_draining_nodes(self) -> None:
        nodes = draining_nodes()
        for worker in self._pool:
            if worker.node in nodes and not worker.draining:
                worker.draining = "its node is draining"
                count = plural(len(worker.in_flight), "shard")
                self._observer.on_incident(
                    f"the node of a worker with {count} in flight is draining: the worker gets no more shards"
                )

    def _report_pending(self, now: float) -> None:
        pending = [worker for worker in self._pool.pending if now - worker.started_at >= NODE_WAIT_NOTICE_S]
        if not pending or now - self._noticed_at < NODE_WAIT_NOTICE_S:
            return
        self._noticed_at = now
        minutes = (now - min(worker.started_at for worker in pending)) / 60
        have = "has" if len(pending) == 1 else "have"
        text = f"{plural(len(pending), 'worker')} of {self.limit} {have} been waiting for a node for {minutes:.0f} min"
        self._observer.on_notice("; ".join(filter(None, (text, self._capacity()))))
