"""From a run's id to where it can be asked: the cluster that carries it out, the catalog that it writes to, or both.

With the cluster's address an id is enough, since a job says which catalog its run writes to. With the catalog an id is
enough also when the cluster is gone. A run that had to take a later id than it was submitted with is found by either.
"""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ...core.errors import InvalidInput, StoreError
from ...pipeline.catalog.index import read_committed
from ...pipeline.catalog.lease import lease_holder
from ...pipeline.catalog.store import CatalogStore
from ...pipeline.run.state import OVER, RunStatus, State, is_known, job_of, known_runs, run_status
from .job_server import ClusterAway, JobServer
from .run_jobs import RunJob, job_name, run_job, run_jobs

_RENAMED_WITHIN = 50  # a run that was given another id is among so many newest of its catalog
_NAMED = 3

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Places:
    """Where runs are looked for: a cluster, a catalog, or both; at least one."""

    server: JobServer | None
    store: CatalogStore | None


@dataclass(frozen=True, slots=True)
class FoundRun:
    """A run, and who knows of it.

    Attributes:
        run_id: as its catalog has it, if it has begun there.
        server, job: the cluster's; None if it was not asked or does not know the run.
        store: its catalog; None if that cannot be read from here.
        has_begun: whether the catalog has its plan.
    """

    run_id: str
    server: JobServer | None
    job: RunJob | None
    store: CatalogStore | None
    has_begun: bool

    def catalog_status(self) -> RunStatus | None:
        """What the catalog says of it; None if it has not begun there.

        Raises:
            StoreError: the catalog cannot be read.
        """
        if self.store is None or not self.has_begun:
            return None
        store, holder = self.store, lease_holder(self.store)
        return run_status(
            store,
            self.run_id,
            committed=lambda: read_committed(store).of_run(self.run_id),
            holder=holder,
            now=time.time(),
        )

    def refreshed(self) -> FoundRun:
        """The same run as it is now."""
        job = _job_by_name(self.server, self.job.job) if self.server and self.job else None
        begun = _in_catalog(self.store, self.run_id, job) if self.store else None
        return FoundRun(begun or self.run_id, self.server, job or self.job, self.store, has_begun=begun is not None)


def open_places(catalog: str | None, address: str | None, say: Say) -> Places:
    """The places that somebody names.

    Args:
        address: of a job server. If it does not answer and there is a catalog, that alone is asked, and `say` says so.

    Raises:
        InvalidInput: neither is named, or the cluster does not accept the token.
        ClusterAway: the cluster does not answer, and there is no catalog.
    """
    if catalog is None and address is None:
        raise InvalidInput(
            "a run is looked for on a cluster or in a catalog, and neither is named",
            fix="give --address http://127.0.0.1:8265, or --catalog URI; RAY_ADDRESS counts as the former",
        )
    store = CatalogStore(catalog) if catalog is not None else None
    server = None
    if address is not None:
        try:
            server = JobServer(address)
        except ClusterAway as error:
            if store is None:
                raise
            say(f"{error.message}; asking the catalog alone")
    return Places(server, store)


def find_run(run_id: str, places: Places, say: Say) -> FoundRun:
    """Find a run by its id, or by the id that it was submitted with.

    Raises:
        InvalidInput: nobody knows such a run; the message names the nearest ids.
        StoreError: the catalog that was named cannot be read.
    """
    jobs = run_jobs(places.server) if places.server else []
    job = next((job for job in jobs if run_id in (job.metadata.run_id, job.job)), None)
    if places.store is not None and (found := _found(run_id, places.server, job, places.store, jobs)) is not None:
        return found
    if job is not None:
        store = _readable(job.metadata.catalog, say)
        begun = _in_catalog(store, run_id, job) if store else None
        return FoundRun(begun or job.metadata.run_id, places.server, job, store, has_begun=begun is not None)
    if places.store is None:  # it may have been given another id than its job has
        for catalog in dict.fromkeys(job.metadata.catalog for job in jobs):
            store = _readable(catalog, say)
            if store is not None and (found := _found(run_id, places.server, None, store, jobs)) is not None:
                return found
    known = [job.metadata.run_id for job in jobs]
    raise _unknown(run_id, [*known, *(known_runs(places.store, _RENAMED_WITHIN) if places.store else [])])


def state_of(job: RunJob | None, status: RunStatus | None) -> State:
    """A run's state, as cluster and catalog have it together: the catalog knows better how a run ended, the cluster
    that it has died before its lease is over, or that it has not begun."""
    if job is None:
        return status.state if status is not None else "died"
    if status is None:  # under way, and nothing in the catalog: it is planning, or somebody else holds the catalog
        return "waiting" if job.state == "under way" else job.state
    if status.state not in ("under way", "died"):
        return status.state
    if job.state in OVER:  # and it left no word
        return "died" if job.state == "ended" else job.state
    return "under way"


def _found(
    run_id: str, server: JobServer | None, job: RunJob | None, store: CatalogStore, jobs: Sequence[RunJob]
) -> FoundRun | None:
    begun = _in_catalog(store, run_id, job)
    if begun is None:
        if job is None or job.metadata.catalog.rstrip("/") != store.uri.rstrip("/"):
            return None
        return FoundRun(job.metadata.run_id, server, job, store, has_begun=False)
    name = job_of(store, begun)
    job = next((one for one in jobs if name is not None and one.job == name), job)
    return FoundRun(begun, server, job, store, has_begun=True)


def _in_catalog(store: CatalogStore, run_id: str, job: RunJob | None) -> str | None:
    """The id under which the catalog knows a run, if it does."""
    if is_known(store, run_id):
        return run_id
    name = job.job if job is not None else job_name(run_id)
    newer = (other for other in known_runs(store, _RENAMED_WITHIN) if other > run_id)
    return next((other for other in newer if job_of(store, other) == name), None)


def _readable(catalog: str, say: Say) -> CatalogStore | None:
    """A catalog that a job names; None, and a word about it, if this machine cannot read it."""
    try:
        store = CatalogStore(catalog).with_patience(0)
        store.list(CatalogStore.RUNS)
        return CatalogStore(catalog)
    except (InvalidInput, StoreError) as error:
        say(f"the run's catalog {catalog} cannot be read from here: {error.args[0]}")
        return None


def _job_by_name(server: JobServer, name: str | None) -> RunJob | None:
    details = server.job(name) if name is not None else None
    return run_job(details) if details is not None else None


def _unknown(run_id: str, known: Iterable[str]) -> InvalidInput:
    names = sorted(set(known), reverse=True)
    near = [name for name in names if run_id in name][:_NAMED] or difflib.get_close_matches(run_id, names, _NAMED)
    listed = near or names[:_NAMED]
    if not listed:
        return InvalidInput(f"no run {run_id} is known here, nor any other", fix="check the catalog or the address")
    fix = f"the {'nearest' if near else 'latest'}: {', '.join(listed)}; `persres-batch list` shows more"
    return InvalidInput(f"no run {run_id} is known here", fix=fix)
