"""One committed concept's results: its residual and its renderings, at the cost of a few range reads."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ...core.errors import StoreError
from .commit_record import CommittedConcept
from .schemas import RenderingRow, ResidualRow, rendering_rows, residual_rows
from .store import CatalogStore


def read_residual_row(store: CatalogStore, committed: CommittedConcept) -> ResidualRow:
    """A committed concept's residual with everything recorded about it.

    Raises:
        StoreError: its file is missing or damaged.
    """
    table = _read_rows(store, committed.residual_file, committed.residual_row, 1)
    return _of_concept(residual_rows(table), committed, committed.residual_file, store)[0]


def read_residual(store: CatalogStore, committed: CommittedConcept) -> bytes:
    """A committed concept's residual, one safetensors blob; at the cost of two range reads.

    Raises:
        StoreError: its file is missing or damaged.
    """
    return read_residual_row(store, committed).residual


def read_renderings(store: CatalogStore, committed: CommittedConcept) -> list[RenderingRow]:
    """A committed concept's renderings, by prompt, variant and image; reads no other concept's images but those that
    share a row group with them.

    Raises:
        StoreError: their file is missing or damaged.
    """
    if committed.rendering_file is None:
        return []
    first, count = committed.rendering_rows
    table = _read_rows(store, committed.rendering_file, first, count)
    return _of_concept(rendering_rows(table), committed, committed.rendering_file, store)


def _read_rows(store: CatalogStore, path: str, first: int, count: int) -> pa.Table:
    """Rows `first` to `first + count` of a Parquet file, reading only the row groups they lie in."""
    try:
        # pre_buffer fetches the neighbouring columns of a row group in one request instead of one each
        with (
            store.open_input(path) as file,
            pq.ParquetFile(file, pre_buffer=True, page_checksum_verification=True) as parquet,
        ):
            groups, skipped, start = [], 0, 0
            for group in range(parquet.metadata.num_row_groups):
                end = start + parquet.metadata.row_group(group).num_rows
                if end <= first:
                    skipped = end
                elif start < first + count:
                    groups.append(group)
                start = end
            table = parquet.read_row_groups(groups).slice(first - skipped, count)
    except pa.ArrowException as error:
        raise _damaged_file(store, path, f"{type(error).__name__}: {error}") from None
    if table.num_rows != count:
        raise _damaged_file(store, path, f"it ends before row {first + count}")
    return table


def _of_concept(rows: list[Any], committed: CommittedConcept, path: str, store: CatalogStore) -> list[Any]:
    strangers = {row.concept_id for row in rows} - {committed.concept_id}
    if strangers:
        raise _damaged_file(store, path, f"rows of {committed.concept_id} hold {sorted(strangers)}")
    return rows


def _damaged_file(store: CatalogStore, path: str, reason: str) -> StoreError:
    return StoreError(
        f"{store.url(path)} is damaged ({reason})",
        fix=f"delete the records in {store.url(store.COMMITS)} that name it; the next submit does their concepts again",
    )
