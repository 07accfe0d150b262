"""Finding a run by its id: on the cluster that executes it, in the catalog that it writes to, or in both.

A job's metadata name the catalog of its run, so that the cluster's address is enough to find both; the catalog is
enough also after the cluster is gone. A run that got a later id than it was submitted with is found by either id.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ...core.errors import InvalidInput, StoreError
from ...pipeline.catalog import layout
from ...pipeline.catalog.existing import require_catalog
from ...pipeline.catalog.index import read_committed
from ...pipeline.catalog.lease import lease_holder
from ...pipeline.catalog.store import CatalogStore
from ...pipeline.run.run_status import RunStatus, begun_runs, has_begun, job_of, run_status
from ...pipeline.run.states import OVER, RunState
from .job_server import ClusterUnreachable, JobServer
from .run_jobs import RunJob, job_name, run_job, run_jobs

_RENAMED_WITHIN = 50
"""A run that got a later id is looked for among this many newest runs of its catalog."""
_SUGGESTIONS = 3

Notify = Callable[[str], None]
"""Prints a message for the user."""


@dataclass(frozen=True, slots=True)
class RunLocations:
    """Where to look for runs: a cluster, a catalog, or both; at least one of them."""

    server: JobServer | None
    store: CatalogStore | None


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run, with its job and its catalog.

    Attributes:
        run_id: the id in the catalog, if the run has begun there.
        server: the job server that was searched, if any.
        job: the run's job; None if no cluster was searched, or the cluster does not know the run.
        store: the run's catalog; None if it cannot be read from here.
        has_begun: whether the catalog has the run's plan.
    """

    run_id: str
    server: JobServer | None
    job: RunJob | None
    store: CatalogStore | None
    has_begun: bool

    def catalog_status(self) -> RunStatus | None:
        """The run's status in its catalog; None if it has not begun there.

        Raises:
            StoreError: the catalog cannot be read.
        """
        if self.store is None or not self.has_begun:
            return None
        store, holder = self.store, lease_holder(self.store)
        return run_status(
            store,
            self.run_id,
            committed=lambda: read_committed(store).concepts_of_run(self.run_id),
            holder=holder,
            now=time.time(),
        )

    def refreshed(self) -> FoundRun:
        """The same run, looked up again."""
        job = _current_job(self.server, self.job.job) if self.server and self.job else None
        begun = _id_in_catalog(self.store, self.run_id, job) if self.store else None
        return FoundRun(begun or self.run_id, self.server, job or self.job, self.store, has_begun=begun is not None)


def open_locations(catalog: str | None, address: str | None, notify: Notify) -> RunLocations:
    """Open a catalog, a cluster, or both.

    Args:
        catalog: its URI.
        address: of a job server. If it does not answer and a catalog is given, only the catalog is used.

    Raises:
        InvalidInput: neither is given, there is no catalog, or the cluster rejects the token.
        ClusterUnreachable: the cluster does not answer, and no catalog is given.
    """
    if catalog is None and address is None:
        raise InvalidInput(
            "a run is looked up on a cluster or in a catalog, and neither is named",
            fix="give --address http://127.0.0.1:8265 (or set RAY_ADDRESS), or --catalog URI",
        )
    store = CatalogStore(catalog) if catalog is not None else None
    if store is not None and address is None:  # a run of a cluster may not have begun in its catalog
        require_catalog(store)
    server = None
    if address is not None:
        try:
            server = JobServer(address)
        except ClusterUnreachable as error:
            if store is None:
                raise
            notify(f"{error.message}; asking the catalog alone")
            require_catalog(store)
    return RunLocations(server, store)


def find_run(run_id: str, locations: RunLocations, notify: Notify) -> FoundRun:
    """Find a run by its id, by the id that it was submitted with, or by its submission id.

    Raises:
        InvalidInput: there is no such run; the message suggests similar ids.
        StoreError: the given catalog cannot be read.
    """
    server, given = locations.server, locations.store
    jobs = run_jobs(server) if server else []
    job = next((job for job in jobs if run_id in (job.metadata.run_id, job.job)), None)
    if given is not None and (found := _find_in_catalog(run_id, server, job, given, jobs)) is not None:
        return found
    if job is not None:
        store = _open_if_readable(job.metadata.catalog, notify)
        begun = _id_in_catalog(store, run_id, job) if store else None
        return FoundRun(begun or job.metadata.run_id, server, job, store, has_begun=begun is not None)
    if given is None:  # the run may have got a later id than its job has
        for catalog in dict.fromkeys(job.metadata.catalog for job in jobs):
            store = _open_if_readable(catalog, notify)
            if store is not None and (found := _find_in_catalog(run_id, server, None, store, jobs)) is not None:
                return found
    known = [job.metadata.run_id for job in jobs]
    raise _unknown_run(run_id, [*known, *(begun_runs(given, _RENAMED_WITHIN) if given else [])])


def combined_state(job: RunJob | None, status: RunStatus | None) -> RunState:
    """A run's state from its job and its status in the catalog.

    The catalog knows best how a run ended. The cluster knows that a driver is lost before its lease has expired, or
    that it has not begun.
    """
    if job is None:
        return status.state if status is not None else "lost"
    if status is None:  # a driver that runs without a plan is still planning, or waits for the catalog
        return "waiting" if job.state == "running" else job.state
    if status.state not in ("running", "lost"):
        return status.state
    if job.state in OVER:  # without having recorded it in the catalog
        return "lost" if job.state == "ended" else job.state
    return "running"


def _find_in_catalog(
    run_id: str, server: JobServer | None, job: RunJob | None, store: CatalogStore, jobs: Sequence[RunJob]
) -> FoundRun | None:
    begun = _id_in_catalog(store, run_id, job)
    if begun is None:
        if job is None or job.metadata.catalog.rstrip("/") != store.uri.rstrip("/"):
            return None
        return FoundRun(job.metadata.run_id, server, job, store, has_begun=False)
    submission_id = job_of(store, begun)
    job = next((one for one in jobs if submission_id is not None and one.job == submission_id), job)
    return FoundRun(begun, server, job, store, has_begun=True)


def _id_in_catalog(store: CatalogStore, run_id: str, job: RunJob | None) -> str | None:
    """The id of a run in the catalog, if it has begun there."""
    if has_begun(store, run_id):
        return run_id
    submission_id = job.job if job is not None else job_name(run_id)
    newer = (other for other in begun_runs(store, _RENAMED_WITHIN) if other > run_id)
    return next((other for other in newer if job_of(store, other) == submission_id), None)


def _open_if_readable(catalog: str, notify: Notify) -> CatalogStore | None:
    """Open the catalog of a job; None, with a notice, if this machine cannot read it."""
    try:
        store = CatalogStore(catalog).with_retry(0)
        store.list(layout.RUNS)
        return CatalogStore(catalog)
    except (InvalidInput, StoreError) as error:
        notify(f"the run's catalog {catalog} cannot be read from here: {error.args[0]}")
        return None


def _current_job(server: JobServer, submission_id: str | None) -> RunJob | None:
    details = server.job(submission_id) if submission_id is not None else None
    return run_job(details) if details is not None else None


def _unknown_run(run_id: str, known: Iterable[str]) -> InvalidInput:
    ids = sorted(set(known), reverse=True)
    similar = [other for other in ids if run_id in other][:_SUGGESTIONS]
    similar = similar or difflib.get_close_matches(run_id, ids, _SUGGESTIONS)
    suggested = similar or ids[:_SUGGESTIONS]
    if not suggested:
        return InvalidInput(f"no run {run_id} is known here, nor any other", fix="check the catalog or the address")
    fix = f"the {'nearest' if similar else 'latest'}: {', '.join(suggested)}; `persres-batch list` shows more"
    return InvalidInput(f"no run {run_id} is known here", fix=fix)
