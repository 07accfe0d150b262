"""The report of a catalog, written to a local file."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from ...core.errors import ManifestInvalid
from ..catalog.existing import open_catalog
from ..manifest.scan import read_manifest
from ..storage.output_file import require_writable, write_file
from .catalog_status import catalog_status
from .report import build_report


def write_report(catalog_uri: str, out: Path, *, manifest_uri: str | None = None, limit: int = 200) -> int:
    """Write the report of a catalog to a local file. Returns how many concepts the catalog holds.

    Args:
        manifest_uri: show only the concepts of this manifest.
        limit: how many concepts to show, those with the lowest scores.

    Raises:
        ManifestInvalid: the manifest cannot be used.
        InvalidInput: there is no catalog, or the file cannot be written.
        StoreError: the catalog cannot be read.
    """
    require_writable(out)
    store = open_catalog(catalog_uri)
    status = catalog_status(store)
    failures = status.latest.failed if status.latest else ()
    concept_ids = _concept_ids(manifest_uri) if manifest_uri else None
    write_file(out, build_report(store, failures=failures, concept_ids=concept_ids, limit=limit))
    return status.concepts


def _concept_ids(manifest_uri: str) -> Collection[str]:
    reading = read_manifest(manifest_uri, default_prompts=())
    if reading.manifest_problems:
        raise ManifestInvalid(f"manifest {manifest_uri} cannot be used", tuple(reading.manifest_problems))
    return {row.concept_id for row in reading.rows}
