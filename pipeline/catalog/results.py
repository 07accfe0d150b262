"""Read one committed concept's residual or renderings with a few range requests."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa

from .commit_record import CommittedConcept
from .data_file import damaged_file, open_parquet
from .schemas import RenderingRow, ResidualRow, rendering_rows, residual_rows
from .store import CatalogStore


def read_residual_row(store: CatalogStore, committed: CommittedConcept) -> ResidualRow:
    """Return a committed concept's row of `RESIDUALS`.

    Raises:
        StoreError: the data file is missing or damaged.
    """
    table = _read_rows(store, committed.residual_file, committed.residual_row, 1)
    rows = residual_rows(table)
    _check_concept_ids(rows, committed, committed.residual_file, store)
    return rows[0]


def read_residual(store: CatalogStore, committed: CommittedConcept) -> bytes:
    """Return a committed concept's residual, one safetensors blob.

    Raises:
        StoreError: the data file is missing or damaged.
    """
    return read_residual_row(store, committed).residual


def read_renderings(store: CatalogStore, committed: CommittedConcept) -> list[RenderingRow]:
    """Return a committed concept's renderings, by prompt, variant and image. Reads only their row groups.

    Raises:
        StoreError: the data file is missing or damaged.
    """
    if committed.rendering_file is None:
        return []
    first, count = committed.rendering_rows
    table = _read_rows(store, committed.rendering_file, first, count)
    rows = rendering_rows(table)
    _check_concept_ids(rows, committed, committed.rendering_file, store)
    return rows


def _read_rows(store: CatalogStore, path: str, first: int, count: int) -> pa.Table:
    """Rows `first` to `first + count - 1` of a data file; reads only their row groups."""
    try:
        with store.open_input(path) as file, open_parquet(file) as parquet:
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
        raise damaged_file(store, path, f"{type(error).__name__}: {error}") from None
    if table.num_rows != count:
        raise damaged_file(store, path, f"it ends before row {first + count}")
    return table


def _check_concept_ids(
    rows: Sequence[ResidualRow | RenderingRow], committed: CommittedConcept, path: str, store: CatalogStore
) -> None:
    others = {row.concept_id for row in rows} - {committed.concept_id}
    if others:
        raise damaged_file(store, path, f"rows of {committed.concept_id} hold {sorted(others)}")
