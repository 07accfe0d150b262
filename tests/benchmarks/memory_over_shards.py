"""Whether the memory of driver and worker grows: resident bytes over many empty shards, and over real packs.

    python tests/benchmarks/memory_over_shards.py --json memory_over_shards.json

Runs 200 shards on a worker that does nothing, and 50 packs that a real worker trains (few iterations), renders, scores
and commits to a local catalog. The memory of both processes is read after every shard. `growth` is the slope of a line
fitted to the second half of the readings, in MiB per hundred shards; in the first half, caches and pools fill up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import ray
import torch
from benchmark_json import argument_parser, print_rows
from noop_shards import IdleWorker, shard

from persres.jobs.cluster.local_ray import embedded_ray
from persres.jobs.driver.gpu_worker import worker_factory
from persres.jobs.driver.observer import RunObserver
from persres.jobs.driver.progress import RunProgress
from persres.jobs.driver.run_shards import MAX_SHARDS_IN_FLIGHT, run_shards
from persres.pipeline.catalog.index import read_committed
from persres.pipeline.catalog.store import CatalogStore
from persres.pipeline.planning.plan import Shard, make_shards
from persres.pipeline.planning.prepare import prepare_run
from persres.pipeline.shard.summary import ShardSummary
from persres.pipeline.spec.run_spec import RunSpec
from persres.pipeline.spriteworld.demo_catalog import write_demo

PACK_SIZE = 2
SPEC = {
    "training": {"iterations": 4, "batch_size": 2, "pack_size": PACK_SIZE, "train_identifier": True},
    "sampling": {"steps": 2, "batch_size": 4, "guidance_scale": 4.0},
    "shard_size": PACK_SIZE,
}


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--noop-shards", type=int, default=200, metavar="N")
    parser.add_argument("--packs", type=int, default=50, metavar="N")
    arguments = parser.parse_args()
    rows = []
    with embedded_ray(1):
        rows.append(measure("noop_shards", [shard(number) for number in range(arguments.noop_shards)], idle_worker))
    with embedded_ray(1), TemporaryDirectory() as folder:
        rows.append(measure("real_packs", *real_shards(Path(folder), arguments.packs)))
    print_rows(rows, arguments.json, ray, torch)


def measure(name: str, shards: Sequence[Shard], make_worker: Callable[[], Any]) -> dict[str, Any]:
    """All shards through the driver and one worker, and what both processes held after each of them."""
    driver = psutil.Process()
    held: dict[str, list[float]] = {"driver": [], "worker": []}
    seen = -1

    class MemoryObserver(RunObserver):
        def on_progress(self, progress: RunProgress) -> None:
            nonlocal seen
            workers = [child for child in driver.children(recursive=True) if is_worker(child)]
            if progress.committed > seen and workers:
                seen = progress.committed
                held["driver"].append(mebibytes(driver))
                held["worker"].append(mebibytes(workers[0]))

    outcome = run_shards(shards, make_worker=make_worker, workers=1, observer=MemoryObserver())
    assert not outcome.failures, outcome.failures
    return {"name": name, "shards": len(shards), "readings": len(held["driver"])} | {
        process: {
            "first": values[0],
            "middle": values[len(values) // 2],
            "last": values[-1],
            "growth_per_100_shards": round(growth(values) * len(values) / len(shards) * 100, 2),
        }
        for process, values in held.items()
    }


def growth(values: Sequence[float]) -> float:
    """The slope of the second half, per reading."""
    later = np.asarray(values[len(values) // 2 :])
    return float(np.polyfit(np.arange(len(later)), later, 1)[0]) if len(later) > 1 else 0.0


def is_worker(process: psutil.Process) -> bool:
    title = process.cmdline()[:1]
    return bool(title) and title[0].startswith("ray::") and "Worker" in title[0]


def mebibytes(process: psutil.Process) -> float:
    return round(process.memory_info().rss / 2**20, 1)


class UnhurriedWorker(IdleWorker):
    """Does nothing, slowly enough for the memory to be read between two shards."""

    @ray.method(concurrency_group="shards")
    def personalize(self, shard: Shard, attempt: str) -> ShardSummary:
        time.sleep(0.5)
        return ShardSummary(shard.shard_id, attempt, shard.concept_ids, (), {})


def idle_worker() -> Any:
    groups = {"shards": MAX_SHARDS_IN_FLIGHT, "progress": 1}
    actor: Any = ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups=groups)(UnhurriedWorker)
    return actor.remote()


def real_shards(folder: Path, packs: int) -> tuple[list[Shard], Callable[[], Any]]:
    """So many packs' work on a drawn manifest, a shard each, and what starts a real worker for it."""
    write_demo(folder, concepts=packs * PACK_SIZE, references=2)
    spec, catalog = RunSpec.model_validate(SPEC), str(folder / "catalog")
    prepared = prepare_run(str(folder / "manifest.parquet"), spec)
    plan = prepared.plan(read_committed(CatalogStore(catalog)))
    make_worker = worker_factory(
        spec, prepared.base, prepared.scorer, catalog_uri=catalog, run_id="20260101T000000Z-000000", device="cpu"
    )
    return make_shards(plan, PACK_SIZE, pack_size=PACK_SIZE), make_worker


if __name__ == "__main__":
    main()
