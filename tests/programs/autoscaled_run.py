"""A run of the driver on an autoscaling head without worker nodes; prints what it has observed as JSON.

    python -m tests.programs.autoscaled_run GCS_ADDRESS FOLDER

No shard ends before all workers have started, however long their nodes take, and the last one goes on until all nodes
but its own have been removed. tests/ray/test_autoscaling.py runs it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray

from persres.jobs.cluster.placement import Placement, connect_ray
from persres.jobs.driver import autoscaling
from persres.jobs.driver.progress import RunProgress
from persres.jobs.driver.run_shards import run_shards
from persres.jobs.driver.worker_pool import MAX_SHARDS_IN_FLIGHT
from persres.pipeline.planning.plan import Shard
from persres.pipeline.shard.summary import ShardSummary
from persres.pipeline.spec.recovery import RecoverySettings
from persres.pipeline.spec.run_spec import RunSpec

from ..support.catalog_factories import planned, shard_of
from ..support.recording_observer import RecordingObserver

SHORT_SHARDS = 9
MAX_NODES = 3  # that the test's autoscaler may start
LAST = "last"


class GatedWorker:
    """Ends a shard once all workers have started, and the last one once it is released, by files in `folder`."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def ready(self) -> None:
        pass

    @ray.method(concurrency_group="shards")
    def personalize(self, shard: Shard, attempt: str) -> ShardSummary:
        time.sleep(1.0)
        gate = self._folder / ("released" if LAST in shard.concept_ids else "all-started")
        while not gate.exists():
            time.sleep(0.1)
        return ShardSummary(shard.shard_id, attempt, shard.concept_ids, (), {"train": 1.0})

    @ray.method(concurrency_group="progress")
    def progress(self) -> dict[Any, Any]:
        return {}


def worker_nodes() -> int:
    """How many nodes beside the head are alive."""
    return sum(node["Alive"] and node["Resources"].get("GPU", 0) > 0 for node in ray.nodes())


def run(folder: Path) -> dict[str, Any]:
    """A run without a given device or number of workers; opens the workers' gates."""
    seen: list[dict[str, int]] = []

    def react(progress: RunProgress) -> None:
        found = {"nodes": worker_nodes(), "workers": progress.workers, "committed": progress.committed}
        if seen[-1:] != [found]:
            seen.append(found)
        if progress.workers == MAX_NODES:
            (folder / "all-started").touch()
        if progress.committed == SHORT_SHARDS and found["nodes"] == 1:
            (folder / "released").touch()

    recorder = RecordingObserver(react)
    groups = {"shards": MAX_SHARDS_IN_FLIGHT, "progress": 1}
    actor: Any = ray.remote(num_cpus=1, num_gpus=1, max_restarts=0, concurrency_groups=groups)(GatedWorker)
    with connect_ray(Placement(join_cluster=True), RunSpec()) as place:
        from persres.jobs.cluster.nodes import describe_resources

        begin = {"device": place.device, "workers": place.workers(), "nodes": worker_nodes()}
        outcome = run_shards(
            [shard_of(planned(name)) for name in (LAST, *(f"c{number}" for number in range(SHORT_SHARDS)))],
            make_worker=lambda: actor.remote(str(folder)),
            workers=place.workers,
            recovery=RecoverySettings(idle_seconds=1),
            observer=recorder,
            capacity=lambda: describe_resources(place.device),
        )
        while worker_nodes():
            time.sleep(0.3)
        observed = {"seen": seen, "notices": recorder.notices, "end": worker_nodes()}
        return {"begin": begin, "outcome": asdict(outcome), **observed}


if __name__ == "__main__":
    autoscaling.NODE_WAIT_NOTICE_S = 1.0
    os.environ["RAY_ADDRESS"] = sys.argv[1]
    print(json.dumps(run(Path(sys.argv[2]))))
