"""The Ray actor: one base model in memory, a few shards in flight, and a thread that answers how far they are."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any, cast

import ray

from ...core.errors import InvalidInput
from ...pipeline.catalog.store import CatalogStore
from ...pipeline.models.folder import ResolvedModel
from ...pipeline.models.resolve import model_on_this_machine
from ...pipeline.personalize_shard import personalize_shard
from ...pipeline.planning.fingerprint import METHOD_VERSION, digest_of
from ...pipeline.planning.plan import Shard
from ...pipeline.shard.personalizer import load_personalizer
from ...pipeline.shard.stages import ShardStages
from ...pipeline.shard.summary import ShardProgress, ShardSummary
from ...pipeline.spec.run_spec import RunSpec
from ..cluster.device import Device
from .worker_pool import MAX_SHARDS_IN_FLIGHT

if TYPE_CHECKING:
    from ...pipeline.shard.personalizer import Personalizer


class GpuWorker:
    """Executes shards with a personalizer that stays loaded. A worker that dies or stalls is replaced, not restarted.

    Args:
        catalog_uri: where shards are committed; a local path has to be absolute.
        method_digest: the `method_digest` of the process that planned the run.
        lease_generation: of the run's lease on the catalog.
    """

    def __init__(
        self,
        spec: RunSpec,
        base: ResolvedModel,
        scorer: ResolvedModel | None,
        catalog_uri: str,
        run_id: str,
        device: Device,
        method_digest: str,
        lease_generation: int,
    ) -> None:
        self._spec, self._base, self._scorer, self._device = spec, base, scorer, device
        self._store = CatalogStore(catalog_uri, retry_s=spec.recovery.store_patience_seconds)
        self._run_id, self._method_digest = run_id, method_digest
        self._lease_generation = lease_generation
        self._stages = ShardStages()
        self._personalizer: Personalizer | None = None
        self._progress: dict[tuple[str, str], ShardProgress] = {}

    def ready(self) -> None:
        """Load the model. Not in the constructor, whose exceptions Ray wraps.

        Raises:
            InvalidInput: this process has another version of the method than the one that planned the run.
        """
        if method_digest(self._spec) != self._method_digest:
            raise InvalidInput(
                "this worker's persres-batch is not the version that planned the run: its results would differ",
                fix="install the same version of persres-batch on every node",
            )
        self._personalizer = self._stages.run_on_device(self._load)

    def _load(self) -> Personalizer:
        if self._device == "cpu":
            import torch

            torch.set_num_threads(
                1
            )  # results depend on the thread count, and two spinning barriers slow each other down
        base, scorer = model_on_this_machine(self._base, self._spec.base_model, "base_model"), None
        if self._scorer and self._spec.scorer:
            scorer = model_on_this_machine(self._scorer, self._spec.scorer, "scorer")
        return load_personalizer(self._spec, base, scorer, self._device, self._store)

    @ray.method(concurrency_group="shards")
    def personalize(self, shard: Shard, attempt: str) -> ShardSummary:
        """Execute and commit one shard, concurrently with up to `MAX_SHARDS_IN_FLIGHT` - 1 others in other stages."""
        assert self._personalizer is not None, "shards come after ready()"
        key = (shard.shard_id, attempt)

        def report(progress: ShardProgress) -> None:
            self._progress[key] = progress

        try:
            summary = personalize_shard(
                self._personalizer,
                shard,
                self._spec,
                self._store,
                run_id=self._run_id,
                attempt=attempt,
                stages=self._stages,
                lease_generation=self._lease_generation,
                on_progress=report,
            )
        finally:
            self._progress.pop(key, None)
        if summary.pack_size is not None and summary.pack_size < self._personalizer.pack_size:
            # A pack size that did not fit once would not fit the next time either.
            self._personalizer = replace(self._personalizer, pack_size=summary.pack_size)
        return summary

    @ray.method(concurrency_group="progress")
    def progress(self) -> dict[tuple[str, str], ShardProgress]:
        """The progress of each shard in flight, by (shard id, attempt); returns at once, from a thread of its own."""
        return dict(self._progress)


def method_digest(spec: RunSpec) -> str:
    """A digest of the method's version and the settings it knows: equal wherever results for one spec are equal."""
    groups = {"training": spec.training, "sampling": spec.sampling, "reading": spec.references, "scoring": spec.scoring}
    known = {name: settings.fingerprint_fields() for name, settings in groups.items()}
    return digest_of({"method": METHOD_VERSION, **known})


def worker_factory(
    spec: RunSpec,
    base: ResolvedModel,
    scorer: ResolvedModel | None,
    *,
    catalog_uri: str,
    run_id: str,
    device: Device,
    lease_generation: int = 0,
) -> Callable[[], Any]:
    """A function that starts one worker of this run, on a GPU of its own or on one CPU core with one thread."""
    if device == "cuda":
        options: dict[str, Any] = {"num_gpus": 1, "num_cpus": 1}
    else:
        options = {"num_cpus": 1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}}}
    groups = {"shards": MAX_SHARDS_IN_FLIGHT, "progress": 1}
    as_actor = cast(Any, ray.remote)(max_restarts=0, max_task_retries=0, concurrency_groups=groups)
    actor_class = as_actor(GpuWorker)

    base = replace(base, path=os.path.abspath(base.path))
    scorer = replace(scorer, path=os.path.abspath(scorer.path)) if scorer else None
    arguments = (spec, base, scorer, catalog_uri, run_id, device, method_digest(spec), lease_generation)

    numbers = count(1)

    def make() -> Any:
        name = f"persres-{run_id}-worker-{next(numbers)}"  # shown in Ray's dashboard
        return actor_class.options(name=name, **options).remote(*arguments)

    return make
