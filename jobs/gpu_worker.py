"""The Ray actor: one base model in memory, one shard at a time, and a second thread that says how far it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal, cast

import ray

from ..core.errors import InvalidInput
from ..pipeline.base_model_files import SPRITEWORLD, ResolvedModel, Role, resolve_model
from ..pipeline.catalog_store import CatalogStore
from ..pipeline.personalize_shard import ShardProgress, ShardSummary, load_personalizer, personalize_shard
from ..pipeline.plan import Shard
from ..pipeline.run_spec import RunSpec

Device = Literal["cpu", "cuda"]


class GpuWorker:
    """Holds a loaded personalizer for as long as it lives; replaced, never restarted, when it dies.

    Args:
        catalog_uri: where shards are committed; a local path has to be absolute.
    """

    def __init__(
        self,
        spec: RunSpec,
        base: ResolvedModel,
        scorer: ResolvedModel | None,
        catalog_uri: str,
        run_id: str,
        device: Device,
    ) -> None:
        self._spec, self._base, self._scorer, self._device = spec, base, scorer, device
        self._store = CatalogStore(catalog_uri)
        self._run_id = run_id
        self._personalizer: Any = None
        self._progress: ShardProgress | None = None

    def ready(self) -> None:
        """Load the model: apart from the constructor, so that what goes wrong arrives as the exception it is."""
        if self._device == "cpu":
            import torch

            torch.set_num_threads(1)  # results depend on the thread count, and two spinning barriers on it badly
        base = _on_this_machine(self._base, self._spec.base_model, "base_model")
        scorer = _on_this_machine(self._scorer, self._spec.scorer, "scorer") if self._scorer else None
        self._personalizer = load_personalizer(self._spec, base, scorer, self._device)

    def personalize(self, shard: Shard, attempt: str) -> ShardSummary:
        """Carry out and commit one shard."""
        self._progress = None
        return personalize_shard(
            self._personalizer,
            shard,
            self._spec,
            self._store,
            run_id=self._run_id,
            attempt=attempt,
            on_progress=self._report,
        )

    @ray.method(concurrency_group="progress")
    def progress(self) -> ShardProgress | None:
        """How far the shard in hand is; answered at once, from a thread of its own."""
        return self._progress

    def _report(self, progress: ShardProgress) -> None:
        self._progress = progress


def _on_this_machine(model: ResolvedModel, name: str | None, role: Role) -> ResolvedModel:
    """The model whose fingerprint the driver took, also where this worker has it under another path or not yet.

    Raises:
        InvalidInput: it cannot be had here, or another revision of it is what this machine has.
    """
    if os.path.isdir(model.path) or name is None:
        return model
    found = resolve_model(name, None if name == SPRITEWORLD else model.revision, role=role)
    if found.revision != model.revision:
        raise InvalidInput(
            f"{role} {name!r} is revision {found.revision} on this worker, but {model.revision} where the run started",
            fix="install the same version of persres-batch and of the model on every node",
        )
    return found


def worker_maker(
    spec: RunSpec,
    base: ResolvedModel,
    scorer: ResolvedModel | None,
    *,
    catalog_uri: str,
    run_id: str,
    device: Device,
) -> Callable[[], Any]:
    """A function that starts one more worker for this run: on a GPU of its own, or on one CPU core with one thread."""
    if device == "cuda":
        options: dict[str, Any] = {"num_gpus": 1, "num_cpus": 1}
    else:
        options = {"num_cpus": 1, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}}}
    as_actor = cast(Any, ray.remote)(max_restarts=0, max_task_retries=0, concurrency_groups={"progress": 1})
    actor_class = as_actor(GpuWorker)

    base = replace(base, path=os.path.abspath(base.path))
    scorer = replace(scorer, path=os.path.abspath(scorer.path)) if scorer else None

    def make() -> Any:
        return actor_class.options(**options).remote(spec, base, scorer, catalog_uri, run_id, device)

    return make
