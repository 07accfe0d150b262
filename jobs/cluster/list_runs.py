"""The runs of a catalog, of a cluster, or of both, with their states."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

from ...pipeline.catalog.index import read_committed
from ...pipeline.catalog.lease import lease_holder
from ...pipeline.run.run_status import RunStatus, begun_runs, run_status
from ...pipeline.run.states import RunState
from .find_run import RunLocations, combined_state
from .run_jobs import RunJob, run_jobs

_READERS = 8


@dataclass(frozen=True, slots=True)
class ListedRun:
    """A run in a list. Counts are None if the catalog was not read; `planned` is done + failed + left.

    `warnings` are about damaged documents of the run.
    """

    run_id: str
    state: RunState
    job: str | None
    catalog: str
    manifest: str
    planned: int | None = None
    done: int | None = None
    failed: int | None = None
    reason: str = ""
    warnings: tuple[str, ...] = ()


def list_runs(locations: RunLocations, limit: int) -> list[ListedRun]:
    """The newest runs, newest first.

    With a cluster alone, these are its runs; with a catalog, the runs of that catalog, including those of the cluster
    that have not begun there yet.

    Raises:
        ClusterUnreachable: the cluster does not answer.
        StoreError: the catalog cannot be read.
    """
    jobs = run_jobs(locations.server) if locations.server else []
    store = locations.store
    if store is None:
        return [_from_job(job) for job in jobs[:limit]]
    committed, holder, now = cache(partial(read_committed, store)), lease_holder(store), time.time()

    def status_of(run_id: str) -> RunStatus:
        return run_status(store, run_id, committed=lambda: committed().concepts_of_run(run_id), holder=holder, now=now)

    with ThreadPoolExecutor(_READERS) as pool:  # each reads a few small objects, one after the other
        statuses = list(pool.map(status_of, begun_runs(store, limit)))
    by_id = {job.job: job for job in jobs if job.job is not None}
    listed = [_from_status(status, by_id.get(status.job or ""), store.uri) for status in statuses]
    begun = {status.job for status in statuses}
    not_begun = [
        _from_job(job)
        for job in jobs
        if job.job not in begun and job.metadata.catalog.rstrip("/") == store.uri.rstrip("/")
    ]
    return sorted([*listed, *not_begun], key=lambda run: run.run_id, reverse=True)[:limit]


def _from_job(job: RunJob) -> ListedRun:
    metadata = job.metadata
    return ListedRun(metadata.run_id, job.state, job.job, metadata.catalog, metadata.manifest, reason=job.reason)


def _from_status(status: RunStatus, job: RunJob | None, catalog: str) -> ListedRun:
    return ListedRun(
        run_id=status.run_id,
        state=combined_state(job, status),
        job=status.job,
        catalog=catalog,
        manifest=status.manifest,
        planned=status.planned,
        done=status.done,
        failed=len(status.failed),
        reason=status.reason or (job.reason if job else ""),
        warnings=status.warnings,
    )
