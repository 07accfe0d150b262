"""A run of the driver on a head that has no machine for workers yet but an autoscaler; prints what it saw as JSON.

    python -m tests.ray.autoscaled_run GCS_ADDRESS FOLDER

No shard ends before all workers are there, however long the machines of some take to come, and the last one goes on
until all machines but its own have been given back.
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

from persres.jobs.cluster.placement import WhereToRun, workplace
from persres.jobs.driver import autoscaling as staffing
from persres.jobs.driver.progress import RunProgress
from persres.jobs.driver.run_shards import run_shards
from persres.jobs.driver.worker_pool import SHARDS_IN_HAND
from persres.pipeline.catalog.commit_record import Fingerprints
from persres.pipeline.manifest.row import ManifestRow, ReferenceSource
from persres.pipeline.planning.plan import PlannedConcept, Shard
from persres.pipeline.shard.work import ShardSummary
from persres.pipeline.spec.recovery import RecoverySettings
from persres.pipeline.spec.run_spec import RunSpec

QUICK = 9
AT_MOST = 3  # machines that the test's autoscaler may start
LAST = "last"


class ObedientWorker:
    """Needs a moment for a shard, once all workers are there; for the last one, until it is released."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder)

    def ready(self) -> None:
        pass

    @ray.method(concurrency_group="shards")
    def personalize(self, shard: Shard, attempt: str) -> ShardSummary:
        time.sleep(1.0)
        gate = self._folder / ("released" if LAST in shard.concept_ids else "all-are-here")
        while not gate.exists():
            time.sleep(0.1)
        return ShardSummary(shard.shard_id, attempt, shard.concept_ids, (), {"train": 1.0})

    @ray.method(concurrency_group="progress")
    def progress(self) -> dict[Any, Any]:
        return {}


def shard(name: str) -> Shard:
    row = ManifestRow(0, name, "mug", (ReferenceSource("a.png"),), ("a {concept}",))
    return Shard.of("train", [PlannedConcept(row, Fingerprints("t" * 32, "r" * 32))])


def worker_nodes() -> int:
    """How many machines beside the head are alive."""
    return sum(node["Alive"] and node["Resources"].get("GPU", 0) > 0 for node in ray.nodes())


def carry_out(folder: Path) -> dict[str, Any]:
    """A run that asks for nothing: neither device nor number of workers."""
    seen: list[dict[str, int]] = []
    notices: list[str] = []

    def look(progress: RunProgress) -> None:
        found = {"nodes": worker_nodes(), "workers": progress.workers, "committed": progress.committed}
        if seen[-1:] != [found]:
            seen.append(found)
        if progress.workers == AT_MOST:
            (folder / "all-are-here").touch()
        if progress.committed == QUICK and found["nodes"] == 1:
            (folder / "released").touch()

    groups = {"shards": SHARDS_IN_HAND, "progress": 1}
    actor: Any = ray.remote(num_cpus=1, num_gpus=1, max_restarts=0, concurrency_groups=groups)(ObedientWorker)
    with workplace(WhereToRun(join_cluster=True), RunSpec()) as place:
        from persres.jobs.cluster.nodes import resources_in_words

        begin = {"device": place.device, "workers": place.workers(), "nodes": worker_nodes()}
        outcome = run_shards(
            [shard(LAST), *(shard(f"c{number}") for number in range(QUICK))],
            make_worker=lambda: actor.remote(str(folder)),
            workers=place.workers,
            recovery=RecoverySettings(idle_seconds=1),
            on_progress=look,
            on_notice=notices.append,
            capacity=lambda: resources_in_words(place.device),
        )
        while worker_nodes():
            time.sleep(0.3)
        return {"begin": begin, "seen": seen, "notices": notices, "outcome": asdict(outcome), "end": worker_nodes()}


if __name__ == "__main__":
    staffing.NODE_WAIT_NOTICE_S = 1.0
    os.environ["RAY_ADDRESS"] = sys.argv[1]
    print(json.dumps(carry_out(Path(sys.argv[2]))))
