"""The driver's cost per shard: many shards with a real Ray and the real driver, on workers that do nothing.

    python tests/benchmarks/noop_shards.py --json noop_shards.json

The workers' personalize() returns at once and commits nothing. `seconds_per_shard` is measured from when the workers
are ready until the driver returns, so it includes what Ray needs for a call. With 10 ms per shard, a run whose shards
take a second spends a hundredth of its time on this. Figures are valid only on an otherwise idle machine.
"""

from __future__ import annotations

import time
from typing import Any

import ray
from benchmark_json import argument_parser, print_rows

from persres.jobs.cluster.local_ray import embedded_ray
from persres.jobs.driver.run_shards import MAX_SHARDS_IN_FLIGHT, run_shards
from persres.pipeline.catalog.commit_record import Fingerprints
from persres.pipeline.manifest.row import ManifestRow, ReferenceSource
from persres.pipeline.planning.plan import PlannedConcept, Shard
from persres.pipeline.shard.summary import ShardProgress, ShardSummary

CONCEPTS_A_SHARD = 16


def main() -> None:
    parser = argument_parser(__doc__)
    parser.add_argument("--rows", type=int, default=10_000, metavar="N", help="number of shards")
    parser.add_argument("--workers", type=int, default=2, metavar="N")
    arguments = parser.parse_args()
    shards = [shard(number) for number in range(arguments.rows)]
    with embedded_ray(arguments.workers):
        row = measure(shards, arguments.workers)
    print_rows([row], arguments.json, ray)


def measure(shards: list[Shard], workers: int) -> dict[str, Any]:
    """All shards through the driver, once."""
    groups = {"shards": MAX_SHARDS_IN_FLIGHT, "progress": 1}
    actor: Any = ray.remote(max_restarts=0, max_task_retries=0, concurrency_groups=groups)(IdleWorker)
    waiting = [actor.remote() for _ in range(workers)]
    ray.get([worker.ready.remote() for worker in waiting])
    started, cpu_started = time.perf_counter(), time.process_time()
    outcome = run_shards(shards, make_worker=waiting.pop, workers=workers)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
    assert len(outcome.committed) == len(shards) * CONCEPTS_A_SHARD and not outcome.incidents
    return {
        "name": "noop_shards",
        "shards": len(shards),
        "workers": workers,
        "seconds": round(seconds, 2),
        "seconds_per_shard": round(seconds / len(shards), 5),
        "driver_cpu_seconds_per_shard": round(cpu_seconds / len(shards), 5),
    }


class IdleWorker:
    """A worker in the shape of the real one, called by as many threads."""

    def ready(self) -> None:
        return None

    @ray.method(concurrency_group="shards")
    def personalize(self, shard: Shard, attempt: str) -> ShardSummary:
        return ShardSummary(shard.shard_id, attempt, shard.concept_ids, (), {})

    @ray.method(concurrency_group="progress")
    def progress(self) -> dict[tuple[str, str], ShardProgress]:
        return {}


def shard(number: int) -> Shard:
    concepts = []
    for index in range(CONCEPTS_A_SHARD):
        name = f"concept-{number:06}-{index:02}"
        images = tuple(ReferenceSource(f"s3://bucket/catalog/{name}/{image}.jpg") for image in range(4))
        prompts = ("a photo of a {concept} on sand", "a photo of a {concept} on snow")
        row = ManifestRow(number * CONCEPTS_A_SHARD + index, name, "mug", images, prompts)
        concepts.append(PlannedConcept(row, Fingerprints(f"{number:032x}", f"{index:032x}")))
    return Shard.of("train", concepts)


if __name__ == "__main__":
    main()
