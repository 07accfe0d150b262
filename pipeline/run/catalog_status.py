"""What a catalog holds, how its latest run stands, and which run holds it: from its objects alone, without Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from ..catalog.index import read_committed
from ..catalog.layout import RunPaths
from ..catalog.lease import LeaseState, lease_holder
from ..catalog.store import CatalogStore
from .run_status import RunStatus, run_status


@dataclass(frozen=True, slots=True)
class Holder:
    """The run that holds a catalog.

    Attributes:
        owner: who started it, such as "ana@gpu-7".
        since: when it acquired the lease, in seconds since 1970.
        expired: whether the lease has expired without a renewal.
    """

    run_id: str
    owner: str
    since: float
    expired: bool


@dataclass(frozen=True, slots=True)
class CatalogStatus:
    """The status of a catalog: how many concepts are committed, how many runs it has seen, the latest, the holder."""

    uri: str
    concepts: int
    runs: int
    latest: RunStatus | None
    holder: Holder | None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)


def catalog_status(store: CatalogStore, *, now: float | None = None) -> CatalogStatus:
    """The status of a catalog, which may be in use.

    Args:
        now: the time to judge the lease by, in seconds since 1970; the present by default.

    Raises:
        StoreError: the catalog cannot be read.
    """
    committed = read_committed(store)
    runs = store.run_ids()
    newest = newest_run_with(store, runs, lambda paths: paths.plan)
    now, lease, latest = time.time() if now is None else now, lease_holder(store), None
    if newest is not None:
        latest = run_status(store, newest, committed=lambda: committed.concepts_of_run(newest), holder=lease, now=now)
    return CatalogStatus(store.uri, len(committed), len(runs), latest, _holder(lease, now))


def latest_report(store: CatalogStore) -> str | None:
    """The URI of the newest report that a run has written, if any."""
    run_id = newest_run_with(store, store.run_ids(), lambda paths: paths.report)
    return store.url(RunPaths(run_id).report) if run_id else None


def newest_run_with(store: CatalogStore, run_ids: Sequence[str], document: Callable[[RunPaths], str]) -> str | None:
    """The id of the newest run that has written a document, such as `lambda paths: paths.report`.

    Args:
        run_ids: the catalog's, oldest first.
    """
    return next((run_id for run_id in reversed(run_ids) if store.exists(document(RunPaths(run_id)))), None)


def _holder(lease: LeaseState | None, now: float) -> Holder | None:
    if lease is None:
        return None
    return Holder(lease.run_id, lease.owner, lease.acquired_at, expired=now - lease.renewed_at > lease.ttl_s)
