"""The workers of a run: the node of each, the shards it has in flight, and when it last made progress.

A worker is an actor handle with three methods: `ready()` returns when the model is loaded, `personalize(shard,
attempt)` returns a ShardSummary, and `progress()`, which runs beside it in a concurrency group of that name, returns
{(shard id, attempt): ShardProgress}.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from ...core.timing import NODE_WAIT_NOTICE_S, WORKER_PROGRESS_INTERVAL_S
from ...pipeline.shard.summary import DEVICE_PHASES, Phase, ShardProgress
from .shard_queue import ShardAttempt

MAX_SHARDS_BEFORE_COMMIT = 2  # on the device, and loaded or loading
MAX_SHARDS_IN_FLIGHT = MAX_SHARDS_BEFORE_COMMIT + 1  # and committing
"""How many shards a worker has at once."""

MakeWorker = Callable[[], Any]


@dataclass(eq=False, slots=True)
class InFlight:
    """An attempt that a worker is executing, and the progress it has reported."""

    attempt: ShardAttempt
    phase: Phase | None = None
    fraction: float = 0.0
    steps: int = 0

    def update(self, progress: ShardProgress) -> bool:
        """Record the reported progress. Returns whether there was any since the last report."""
        advanced = progress.fraction > self.fraction or progress.steps > self.steps or progress.phase != self.phase
        self.phase, self.steps = progress.phase, progress.steps
        self.fraction = max(self.fraction, min(1.0, progress.fraction))
        return advanced


@dataclass(eq=False, slots=True)
class Worker:
    """An actor with its pending calls.

    Attributes:
        actor: the actor's handle.
        node_call, ready_call, progress_call: pending calls; `node_call` and `progress_call` are None between requests.
        started_at, progressed_at, ready_at, paused_until, progress_requested_at: seconds of the monotonic clock.
            `progressed_at`: the last sign of progress. `ready_at`: the model was loaded; None before that.
        in_flight: by the pending call of `personalize`.
        node: the id of its node; None until it is placed.
        draining: why it gets no more shards, if so; it is stopped once it has none in flight.
    """

    actor: Any
    node_call: Any
    ready_call: Any
    started_at: float
    progressed_at: float
    in_flight: dict[Any, InFlight] = field(default_factory=dict)
    node: str | None = None
    ready_at: float | None = None
    draining: str | None = None
    paused_until: float = 0.0
    progress_call: Any = None
    progress_requested_at: float = 0.0

    @property
    def is_pending(self) -> bool:
        """Whether it still waits for a node."""
        return self.node is None and self.ready_at is None

    @property
    def is_computing(self) -> bool:
        """Whether it loads its model or uses its device; if not, it may only be waiting for the object store."""
        return self.ready_at is None or any(one.phase in DEVICE_PHASES for one in self.in_flight.values())

    def accepts_shard(self, in_flight: int, now: float) -> bool:
        """Whether it can be given a shard now, provided that it has exactly `in_flight`."""
        if self.ready_at is None or self.draining or self.paused_until > now or len(self.in_flight) != in_flight:
            return False
        before_commit = sum(one.phase != "commit" for one in self.in_flight.values())
        return before_commit < MAX_SHARDS_BEFORE_COMMIT and not any(
            one.attempt.alone for one in self.in_flight.values()
        )

    def expects_shard(self, now: float) -> bool:
        """Whether it has no shard and will soon be ready for one, so that one is kept back for it."""
        waits_long = self.is_pending and now - self.started_at >= NODE_WAIT_NOTICE_S
        return not (self.in_flight or self.draining or waits_long)

    def assign(self, attempt: ShardAttempt) -> None:
        """Start an attempt on this worker."""
        personalize = self.actor.personalize.options(name=f"shard {attempt.shard.shard_id}, attempt {attempt.attempt}")
        self.in_flight[personalize.remote(attempt.shard, attempt.attempt)] = InFlight(attempt)
        self.progressed_at = time.monotonic()

    def finish(self, call: Any) -> ShardAttempt:
        """Remove a call that has returned or raised from `in_flight`. Returns its attempt."""
        self.progressed_at = time.monotonic()
        return self.in_flight.pop(call).attempt

    def stalled_for(self, now: float) -> float:
        """Seconds without progress while it loads its model or has shards in flight; 0 otherwise."""
        loading = self.node is not None and self.ready_at is None
        return now - self.progressed_at if loading or self.in_flight else 0.0

    def idle_for(self, now: float) -> float:
        """Seconds on its node without a shard, whether or not its model is loaded; 0 if it has one or is draining."""
        if self.in_flight or self.draining or self.is_pending:
            return 0.0
        return now - max(self.progressed_at, self.ready_at or 0.0)

    def request_progress(self) -> None:
        """Call `progress` without waiting for it."""
        self.progress_call, self.progress_requested_at = self.actor.progress.remote(), time.monotonic()

    def receive_progress(self) -> None:
        """Record what the completed `progress_call` returned."""
        call, self.progress_call = self.progress_call, None
        try:
            reported: Any = ray.get(call) or {}
        except RayError:
            return  # the worker's other calls will raise as well
        for one in self.in_flight.values():
            progress = reported.get((one.attempt.shard.shard_id, one.attempt.attempt))
            if progress is not None and one.update(progress):
                self.progressed_at = time.monotonic()

    def receive_node(self) -> None:
        """Record the node that the completed `node_call` returned."""
        call, self.node_call = self.node_call, None
        try:
            node: Any = ray.get(call)
        except RayError:  # if the worker is lost its other calls will raise as well; if not, retry
            self.node_call = _call_node_id(self.actor)
        else:
            self.node, self.progressed_at = node, time.monotonic()


class WorkerPool:
    """The current workers of a run.

    Args:
        make_worker: starts an actor, which may stay pending until the cluster has a node for it.

    Attributes:
        ready_seconds: the total lifetime of the stopped workers, each counted from when its model was loaded.
        peak_size: the largest number of workers at one time.
    """

    def __init__(self, make_worker: MakeWorker) -> None:
        self._make_worker = make_worker
        self._workers: list[Worker] = []
        self.ready_seconds = 0.0
        self.peak_size = 0

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._workers))

    @property
    def in_flight(self) -> list[InFlight]:
        """The shards of all workers."""
        return [one for worker in self._workers for one in worker.in_flight.values()]

    @property
    def pending(self) -> list[Worker]:
        """The workers that wait for a node."""
        return [worker for worker in self._workers if worker.is_pending]

    @property
    def ready(self) -> int:
        """How many workers have loaded their model."""
        return sum(worker.ready_at is not None for worker in self._workers)

    @property
    def busy(self) -> int:
        """How many workers have a shard in flight and are not draining."""
        return sum(bool(worker.in_flight) and not worker.draining for worker in self._workers)

    def scale_to(self, size: int) -> int:
        """Start workers until `size` are not draining; if there are more, stop pending ones, the newest first.

        The newest first, because the nodes of the others may already be starting. Returns how many were stopped.
        """
        active = [worker for worker in self._workers if not worker.draining]
        for _ in range(size - len(active)):
            actor, now = self._make_worker(), time.monotonic()
            node_call, ready_call = _call_node_id(actor), actor.ready.remote()
            self._workers.append(Worker(actor, node_call, ready_call, started_at=now, progressed_at=now))
        self.peak_size = max(self.peak_size, min(size, len(self._workers)))
        pending = [worker for worker in reversed(self.pending) if not worker.draining]
        surplus = pending[: max(0, len(active) - size)]
        for worker in surplus:
            self.stop(worker)
        return len(surplus)

    def stop(self, worker: Worker) -> None:
        """Kill a worker's process, and with it the shards that it has in flight."""
        self._workers.remove(worker)
        if worker.ready_at is not None:
            self.ready_seconds += time.monotonic() - worker.ready_at
        ray.kill(worker.actor)

    def wait(self, timeout_s: float) -> list[tuple[Worker, Any]]:
        """The calls of `ready` and `personalize` that complete within `timeout_s`, with their workers."""
        calls = {call: worker for worker in self._workers for call in worker.in_flight}
        calls |= {worker.ready_call: worker for worker in self._workers if worker.ready_at is None}
        if not calls:
            time.sleep(timeout_s)
            return []
        completed, _ = ray.wait(list(calls), num_returns=1, timeout=timeout_s)
        if completed and len(calls) > 1:
            completed, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        return [(calls[call], call) for call in completed]

    def poll(self) -> None:
        """Update the nodes of new workers and the progress of busy ones, without blocking."""
        now = time.monotonic()
        for worker in self._workers:
            if worker.node_call is not None and _has_completed(worker.node_call):
                worker.receive_node()
            if worker.progress_call is not None:
                if _has_completed(worker.progress_call):
                    worker.receive_progress()
            elif worker.in_flight and now - worker.progress_requested_at >= WORKER_PROGRESS_INTERVAL_S:
                worker.request_progress()


def _has_completed(call: Any) -> bool:
    return bool(ray.wait([call], timeout=0)[0])


def _call_node_id(actor: Any) -> Any:
    return actor.__ray_call__.options(concurrency_group="progress").remote(_node_id)


def _node_id(_: object) -> str:
    """Run in the worker: the id of its node."""
    return ray.get_runtime_context().get_node_id()
