"""The report of a catalog, written to a local file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ...core.errors import InvalidInput, ManifestInvalid
from ..catalog.layout import RunPaths
from ..catalog.store import CatalogStore
from ..manifest.row import ManifestRow
from ..manifest.scan import read_manifest
from ..references.images import load_references
from ..references.settings import ReferenceSettings
from ..spec.run_spec import RunSpec
from .catalog_status import catalog_status, newest_run_with
from .report import build_report


def write_report(catalog_uri: str, out: Path, *, manifest_uri: str | None = None, limit: int = 200) -> int:
    """Write the report of a catalog to a local file. Returns how many concepts the catalog holds.

    Args:
        manifest_uri: show the references of this manifest's rows, and only its concepts.
        limit: how many concepts to show, those with the lowest scores.

    Raises:
        ManifestInvalid: the manifest cannot be used.
        InvalidInput: the catalog holds nothing.
        StoreError: the catalog cannot be read.
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
    """The settings by which the newest run read references; the defaults if this version cannot read its run spec."""
    run_id = newest_run_with(store, store.run_ids(), lambda paths: paths.spec)
    if run_id is None:
        return ReferenceSettings()
    path = RunPaths(run_id).spec
    try:
        return RunSpec.from_yaml(store.read(path), name=store.url(path)).references
    except InvalidInput:
        return ReferenceSettings()


def _manifest_rows(manifest_uri: str) -> Sequence[ManifestRow]:
    reading = read_manifest(manifest_uri, default_prompts=())
    if reading.manifest_problems:
        raise ManifestInvalid(f"manifest {manifest_uri} cannot be used", tuple(reading.manifest_problems))
    return reading.rows
