"""What is in a catalog, what became of its latest run, and who holds it now: from its objects alone, without Ray."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.errors import InvalidInput, ManifestInvalid
from ..catalog.index import read_committed
from ..catalog.lease import LeaseState, lease_holder
from ..catalog.store import CatalogStore
from ..manifest.row import ManifestRow
from ..manifest.scan import read_manifest
from ..references.images import ReferenceSettings, load_references
from ..spec.run_spec import RunSpec
from .report import build_report
from .state import RunStatus, run_status

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, slots=True)
class Holder:
    """The run that holds a catalog. `expired`: it has not been heard of for longer than its lease lasts."""

    run_id: str
    owner: str
    since: float
    expired: bool


@dataclass(frozen=True, slots=True)
class CatalogStatus:
    """A catalog at a glance."""

    uri: str
    concepts: int
    runs: int
    latest: RunStatus | None
    holder: Holder | None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1, sort_keys=True)


def catalog_status(store: CatalogStore, *, now: float | None = None) -> CatalogStatus:
    """Look at a catalog; it may be in use.

    Args:
        now: seconds since 1970, to judge the lease by; the present by default.

    Raises:
        StoreError: the catalog cannot be read.
    """
    committed = read_committed(store)
    runs = store.run_ids()
    newest = _newest_with(store, runs, "plan.json")
    now, lease, latest = time.time() if now is None else now, lease_holder(store), None
    if newest is not None:
        latest = run_status(store, newest, committed=lambda: committed.of_run(newest), holder=lease, now=now)
    return CatalogStatus(store.uri, len(committed), len(runs), latest, _holder(lease, now))


def latest_report(store: CatalogStore) -> str | None:
    """Where the newest run's report lies, if a run has finished."""
    run_id = _newest_with(store, store.run_ids(), "report.html")
    return store.url(store.run_file(run_id, "report.html")) if run_id else None


def _newest_with(store: CatalogStore, run_ids: Sequence[str], document: str) -> str | None:
    """The newest run that has left this document."""
    return next((run_id for run_id in reversed(run_ids) if store.exists(store.run_file(run_id, document))), None)


def _holder(state: LeaseState | None, now: float) -> Holder | None:
    if state is None:
        return None
    return Holder(state.run_id, state.owner, state.acquired_at, expired=now - state.renewed_at > state.ttl_s)


def write_report(catalog_uri: str, out: Path, *, manifest_uri: str | None = None, limit: int = 200) -> int:
    """Write a catalog's page to a local file; returns how many concepts the catalog holds.

    Args:
        manifest_uri: show the references of this manifest's rows, and only its concepts.

    Raises:
        ManifestInvalid: the manifest cannot be used.
        InvalidInput: the catalog holds nothing.
    """
    store = CatalogStore(catalog_uri)
    status = catalog_status(store)
    if not status.concepts and status.latest is None:
        raise InvalidInput(f"there is no catalog at {store.uri}", fix="check the path, or submit a manifest first")
    failures, settings = status.latest.failed if status.latest else (), _reference_settings(store)
    rows = {row.concept_id: row for row in _manifest_rows(manifest_uri)} if manifest_uri else {}

    def references(concept_id: str) -> Sequence[np.ndarray]:
        row = rows.get(concept_id)
        return load_references(row, settings) if row else ()

    page = build_report(
        store, failures=failures, references=references, concept_ids=rows.keys() if manifest_uri else None, limit=limit
    )
    out.write_text(page, encoding="utf-8")
    return status.concepts


def _reference_settings(store: CatalogStore) -> ReferenceSettings:
    """How the newest run read reference images; the defaults where no run has said so in a way this version reads."""
    run_id = _newest_with(store, store.run_ids(), "spec.yaml")
    if run_id is None:
        return ReferenceSettings()
    path = store.run_file(run_id, "spec.yaml")
    try:
        return RunSpec.from_yaml(store.read(path), name=store.url(path)).references
    except InvalidInput:
        return ReferenceSettings()


def _manifest_rows(manifest_uri: str) -> Sequence[ManifestRow]:
    reading = read_manifest(manifest_uri, default_prompts=())
    if reading.manifest_problems:
        raise ManifestInvalid(f"manifest {manifest_uri} cannot be used", tuple(reading.manifest_problems))
    return reading.rows
