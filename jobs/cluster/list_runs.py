"""All runs of a catalog, of a cluster, or of both, and what has become of each."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

from ...pipeline.catalog.index import read_committed
from ...pipeline.catalog.lease import lease_holder
from ...pipeline.run.state import RunStatus, State, known_runs, run_status
from .find_run import Places, state_of
from .run_jobs import RunJob, run_jobs

_AT_ONCE = 8


@dataclass(frozen=True, slots=True)
class ListedRun:
    """One run. Counts are None where only the cluster was asked; `planned` is done + failed + left."""

    run_id: str
    state: State
    job: str | None
    catalog: str
    manifest: str
    planned: int | None = None
    done: int | None = None
    failed: int | None = None
    reason: str = ""


def list_runs(places: Places, limit: int) -> list[ListedRun]:
    """The newest runs, the newest first.

    With a cluster alone these are its runs; with a catalog those of that catalog, the ones on the cluster that have yet
    to begin there among them.

    Raises:
        ClusterAway: the cluster does not answer.
        StoreError: the catalog cannot be read.
    """
    jobs = run_jobs(places.server) if places.server else []
    store = places.store
    if store is None:
        return [_of_job(job) for job in jobs[:limit]]
    committed, holder, now = cache(partial(read_committed, store)), lease_holder(store), time.time()

    def status_of(run_id: str) -> RunStatus:
        return run_status(store, run_id, committed=lambda: committed().of_run(run_id), holder=holder, now=now)

    with ThreadPoolExecutor(_AT_ONCE) as pool:  # each is a few small objects, one after the other
        statuses = list(pool.map(status_of, known_runs(store, limit)))
    by_name = {job.job: job for job in jobs if job.job is not None}
    listed = [_of_status(status, by_name.get(status.job or ""), store.uri) for status in statuses]
    begun = {status.job for status in statuses}
    yet_to_begin = [
        _of_job(job)
        for job in jobs
        if job.job not in begun and job.metadata.catalog.rstrip("/") == store.uri.rstrip("/")
    ]
    return sorted([*listed, *yet_to_begin], key=lambda run: run.run_id, reverse=True)[:limit]


def _of_job(job: RunJob) -> ListedRun:
    told = job.metadata
    return ListedRun(told.run_id, job.state, job.job, told.catalog, told.manifest, reason=job.reason)


def _of_status(status: RunStatus, job: RunJob | None, catalog: str) -> ListedRun:
    return ListedRun(
        run_id=status.run_id,
        state=state_of(job, status),
        job=status.job,
        catalog=catalog,
        manifest=status.manifest,
        planned=status.planned,
        done=status.done,
        failed=len(status.failed),
        reason=status.reason or (job.reason if job else ""),
    )
