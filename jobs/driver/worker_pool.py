"""The workers of a run: who they are, where they are, what each has in hand, and when it last got anywhere.

A worker is an actor handle with three methods: `ready()` returns when it has loaded its model,
`personalize(shard, attempt)` returns a ShardSummary, and `progress()`, which may be called meanwhile and belongs to a
concurrency group of that name, returns {(shard id, attempt): ShardProgress}.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError

from ...pipeline.shard.work import DEVICE_PHASES, Phase, ShardProgress
from ...pipeline.timing import NODE_WAIT_NOTICE_S, WORKER_PROGRESS_INTERVAL_S
from .shard_queue import ShardAttempt

SHARDS_AHEAD = 2  # on the device, and loaded or being loaded
SHARDS_IN_HAND = SHARDS_AHEAD + 1  # and being committed

MakeWorker = Callable[[], Any]


@dataclass(eq=False, slots=True)
class InFlight:
    """An attempt on a worker, and what the worker has said about it."""

    attempt: ShardAttempt
    phase: Phase | None = None
    fraction: float = 0.0
    steps: int = 0

    def heard(self, said: ShardProgress) -> bool:
        """Take down how far the attempt is; whether that is further than before."""
        further = said.fraction > self.fraction or said.steps > self.steps or said.phase != self.phase
        self.phase, self.steps = said.phase, said.steps
        self.fraction = max(self.fraction, min(1.0, said.fraction))
        return further


@dataclass(eq=False, slots=True)
class Worker:
    """An actor, the calls of it that have not returned yet, and when it was last seen to get anywhere.

    `node` is the id of the machine it was placed on; None while it waits for one. `leaving` tells why it is given no
    more shards; it is dismissed when it has none left. `moved` and all other times are the monotonic clock's seconds.
    """

    actor: Any
    placing: Any
    starting: Any
    hired: float
    moved: float
    in_flight: dict[Any, InFlight] = field(default_factory=dict)
    node: str | None = None
    ready_since: float | None = None
    leaving: str | None = None
    rests_until: float = 0.0
    progress_call: Any = None
    progress_asked: float = 0.0

    def takes(self, shards: int, now: float) -> bool:
        """Whether it may be given a shard now, beside the `shards` that it has in hand."""
        if self.ready_since is None or self.leaving or self.rests_until > now or len(self.in_flight) != shards:
            return False
        ahead = sum(one.phase != "commit" for one in self.in_flight.values())
        return ahead < SHARDS_AHEAD and not any(one.attempt.alone for one in self.in_flight.values())

    def is_due_a_shard(self, now: float) -> bool:
        """Whether it has none and is soon to have one, so that nobody else is to get a second one instead."""
        waits_long = self.node is None and self.ready_since is None and now - self.hired >= NODE_WAIT_NOTICE_S
        return not (self.in_flight or self.leaving or waits_long)

    def give(self, attempt: ShardAttempt) -> None:
        """Put a shard into its hands."""
        named = self.actor.personalize.options(name=f"shard {attempt.shard.shard_id}, attempt {attempt.attempt}")
        self.in_flight[named.remote(attempt.shard, attempt.attempt)] = InFlight(attempt)
        self.moved = time.monotonic()

    def done_with(self, call: Any) -> ShardAttempt:
        """The attempt whose call has returned or raised; no longer in hand."""
        self.moved = time.monotonic()
        return self.in_flight.pop(call).attempt

    def still_for(self, now: float) -> float:
        """Seconds without any sign that its work goes on; 0 while it has none, or waits for a machine."""
        loading = self.node is not None and self.ready_since is None
        return now - self.moved if loading or self.in_flight else 0.0

    def idle_for(self, now: float) -> float:
        """Seconds that it has been on its machine, with its model loaded or not, and has had no shard; else 0."""
        if self.in_flight or self.leaving or (self.node is None and self.ready_since is None):
            return 0.0
        return now - max(self.moved, self.ready_since or 0.0)

    @property
    def on_device(self) -> bool:
        """Whether it computes; else its shards are loaded or committed, and it may be the store that lets it wait."""
        return self.ready_since is None or any(one.phase in DEVICE_PHASES for one in self.in_flight.values())

    def hear(self) -> None:
        """Take down what it answered when asked how far it is."""
        call, self.progress_call = self.progress_call, None
        try:
            answer: Any = ray.get(call) or {}
        except RayError:
            return  # the worker is in trouble, which its other calls are about to tell
        for one in self.in_flight.values():
            said = answer.get((one.attempt.shard.shard_id, one.attempt.attempt))
            if said is not None and one.heard(said):
                self.moved = time.monotonic()


class Crew:
    """All workers that a run has now.

    Args:
        make_worker: starts a worker; one that has to wait for a machine is waited for.

    Attributes:
        ready_seconds: how long those that have gone were there, from the moment each had loaded its model.
        most: the greatest number of workers there were at once.
    """

    def __init__(self, make_worker: MakeWorker) -> None:
        self._make_worker = make_worker
        self._workers: list[Worker] = []
        self.ready_seconds = 0.0
        self.most = 0

    def __iter__(self) -> Iterator[Worker]:
        return iter(tuple(self._workers))

    def __contains__(self, worker: Worker) -> bool:
        return worker in self._workers

    @property
    def in_flight(self) -> list[InFlight]:
        """What all of them have in hand."""
        return [one for worker in self._workers for one in worker.in_flight.values()]

    @property
    def unplaced(self) -> list[Worker]:
        """Those that wait for a machine."""
        return [worker for worker in self._workers if worker.node is None and worker.ready_since is None]

    @property
    def ready(self) -> int:
        """How many have loaded their model."""
        return sum(worker.ready_since is not None for worker in self._workers)

    @property
    def busy(self) -> int:
        """How many have a shard in hand and are not about to leave."""
        return sum(bool(worker.in_flight) and not worker.leaving for worker in self._workers)

    def hire_up_to(self, wanted: int) -> int:
        """Start workers until so many are there that are not about to leave; of those too many, let go who wait.

        Those who came last go first: a machine may be on its way for the others. Returns how many were let go.
        """
        staying = [worker for worker in self._workers if not worker.leaving]
        for _ in range(wanted - len(staying)):
            actor, now = self._make_worker(), time.monotonic()
            self._workers.append(Worker(actor, _ask_where(actor), actor.ready.remote(), hired=now, moved=now))
        self.most = max(self.most, min(wanted, len(self._workers)))
        too_many = [worker for worker in reversed(self.unplaced) if not worker.leaving][: max(0, len(staying) - wanted)]
        for worker in too_many:
            self.dismiss(worker)
        return len(too_many)

    def dismiss(self, worker: Worker) -> None:
        """End a worker's process; what it has in hand ends with it."""
        self._workers.remove(worker)
        if worker.ready_since is not None:
            self.ready_seconds += time.monotonic() - worker.ready_since
        ray.kill(worker.actor)

    def ended_calls(self, timeout_s: float) -> list[tuple[Worker, Any]]:
        """The calls of `ready` and `personalize` that have ended, and their workers, after at most so many seconds."""
        calls = {call: worker for worker in self._workers for call in worker.in_flight}
        calls |= {worker.starting: worker for worker in self._workers if worker.ready_since is None}
        if not calls:
            time.sleep(timeout_s)
            return []
        ended, _ = ray.wait(list(calls), num_returns=1, timeout=timeout_s)
        if ended and len(calls) > 1:
            ended, _ = ray.wait(list(calls), num_returns=len(calls), timeout=0)
        return [(calls[call], call) for call in ended]

    def look_round(self) -> None:
        """Learn where new workers were placed and how far busy ones are, without ever waiting for an answer."""
        now = time.monotonic()
        for worker in self._workers:
            if worker.placing is not None and ray.wait([worker.placing], timeout=0)[0]:
                _note_place(worker)
            if worker.progress_call is not None:
                if ray.wait([worker.progress_call], timeout=0)[0]:
                    worker.hear()
            elif worker.in_flight and now - worker.progress_asked >= WORKER_PROGRESS_INTERVAL_S:
                worker.progress_call, worker.progress_asked = worker.actor.progress.remote(), now


def _ask_where(actor: Any) -> Any:
    return actor.__ray_call__.options(concurrency_group="progress").remote(_node_of)


def _node_of(_: object) -> str:
    """Runs in the worker: the id of its machine."""
    return ray.get_runtime_context().get_node_id()


def _note_place(worker: Worker) -> None:
    call, worker.placing = worker.placing, None
    try:
        node: Any = ray.get(call)
    except RayError:  # if it has died its other calls are about to tell, and if not it is asked again
        worker.placing = _ask_where(worker.actor)
    else:
        worker.node, worker.moved = node, time.monotonic()
