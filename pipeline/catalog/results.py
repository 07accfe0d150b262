"""Read one committed concept's residual or renderings with a few range requests, and check that they are its own.

Rows are compared with the digests of the concept's record, so that damage which Parquet's checksums miss, and rows that
were exchanged for others, are found wherever a row is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq

from .commit_record import CommittedConcept, blob_digest, rendering_digest
from .data_file import damaged_file, read_data_file
from .schemas import RenderingRow, ResidualRow, rendering_rows, residual_rows
from .store import CatalogStore

_THUMBNAILS = "reference_thumbnails"


def read_residual_row(store: CatalogStore, committed: CommittedConcept) -> ResidualRow:
    """Return a committed concept's row of `RESIDUALS`.

    Raises:
        DamagedFile: the row is not the one that was committed.
        StoreObjectMissing: the data file is missing.
        StoreError: the data file cannot be read.
    """
    path, read = committed.residual_file, partial(_residual_rows, first=committed.residual_row)
    (row,) = read_data_file(store, path, read, in_parts=True)
    _check_concept_ids([row], committed, path, store)
    if committed.residual_digest and blob_digest(row.residual) != committed.residual_digest:
        raise damaged_file(store, path, f"the digest of the residual of {committed.concept_id} differs")
    return row


def read_reference_thumbnails(store: CatalogStore, committed: CommittedConcept) -> Sequence[bytes] | None:
    """Return the thumbnails of a committed concept's references, WebP each. Fetches its row, and decodes only them.

    Returns:
        None if an earlier version, which kept none, has committed the residual.

    Raises:
        DamagedFile: the row is not the one that was committed.
        StoreObjectMissing: the data file is missing.
        StoreError: the data file cannot be read.
    """

    def read(parquet: pq.ParquetFile) -> tuple[str, Sequence[bytes] | None]:
        columns = [name for name in ("concept_id", _THUMBNAILS) if name in parquet.schema_arrow.names]
        (row,) = _read_rows(parquet, committed.residual_row, 1, columns).to_pylist()
        return row["concept_id"], row.get(_THUMBNAILS)

    concept_id, thumbnails = read_data_file(store, committed.residual_file, read, in_parts=True)
    if concept_id != committed.concept_id:
        raise damaged_file(store, committed.residual_file, f"the row of {committed.concept_id} is of {concept_id}")
    return thumbnails


def read_residual(store: CatalogStore, committed: CommittedConcept) -> bytes:
    """Return a committed concept's residual, one safetensors blob; raises as `read_residual_row` does."""
    return read_residual_row(store, committed).residual


def read_renderings(store: CatalogStore, committed: CommittedConcept) -> list[RenderingRow]:
    """Return a committed concept's renderings, by prompt, variant and image. Reads only their row groups.

    Raises:
        DamagedFile: the rows are not the ones that were committed.
        StoreObjectMissing: the data file is missing.
        StoreError: the data file cannot be read.
    """
    path = committed.rendering_file
    if path is None:
        return []
    first, count = committed.rendering_rows
    rows = read_data_file(store, path, partial(_rendering_rows, first=first, count=count), in_parts=True)
    _check_concept_ids(rows, committed, path, store)
    if committed.renderings_digest and rendering_digest(row.image for row in rows) != committed.renderings_digest:
        raise damaged_file(store, path, f"the digest of the renderings of {committed.concept_id} differs")
    return rows


def _residual_rows(parquet: pq.ParquetFile, *, first: int) -> list[ResidualRow]:
    return residual_rows(_read_rows(parquet, first, 1))


def _rendering_rows(parquet: pq.ParquetFile, *, first: int, count: int) -> list[RenderingRow]:
    return rendering_rows(_read_rows(parquet, first, count))


def _read_rows(parquet: pq.ParquetFile, first: int, count: int, columns: list[str] | None = None) -> pa.Table:
    """Rows `first` to `first + count - 1` of a data file; reads only their row groups.

    Raises:
        ValueError: the file has fewer rows.
    """
    groups, skipped, start = [], 0, 0
    for group in range(parquet.metadata.num_row_groups):
        end = start + parquet.metadata.row_group(group).num_rows
        if end <= first:
            skipped = end
        elif start < first + count:
            groups.append(group)
        start = end
    table = parquet.read_row_groups(groups, columns=columns).slice(first - skipped, count)
    if table.num_rows != count:
        raise ValueError(f"it ends before row {first + count}")
    return table


def _check_concept_ids(
    rows: Sequence[ResidualRow | RenderingRow], committed: CommittedConcept, path: str, store: CatalogStore
) -> None:
    others = {row.concept_id for row in rows} - {committed.concept_id}
    if others:
        raise damaged_file(store, path, f"rows of {committed.concept_id} hold {sorted(others)}")
