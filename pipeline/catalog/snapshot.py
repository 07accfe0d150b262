"""Index snapshots: Parquet files of schema `INDEX` with one row per concept. Each has a name of its own."""

from __future__ import annotations

import secrets

import pyarrow as pa

from ...core.errors import StoreError
from . import layout
from .parquet_file import footer_digest, open_bytes, parquet_bytes
from .schemas import INDEX, SCHEMA_VERSION
from .store import CatalogStore

REPAIR = "restore it from a copy, or rebuild the index from the data files: `persres-batch repair {catalog}`"
"""The fix for an index that lacks something."""

_CONCEPTS_PER_ROW_GROUP = 65_536
_DIGESTS = ("residual_digest", "renderings_digest", "request_digest")  # missing from snapshots of earlier versions


def write_snapshot(store: CatalogStore, table: pa.Table, newest_run: str) -> str:
    """Write a table of schema `INDEX` and read it back; returns its path.

    Args:
        newest_run: the newest run that it covers.

    Raises:
        StoreError: it could not be written.
    """
    data = parquet_bytes(table, _CONCEPTS_PER_ROW_GROUP)
    path = layout.index_snapshot(newest_run, secrets.token_hex(4), footer_digest(data))
    store.write(path, data)
    if store.read(path) != data:
        raise StoreError(f"{store.url(path)} does not hold what was written to it", fix="delete it; submit again")
    return path


def read_snapshot(store: CatalogStore, path: str) -> pa.Table:
    """A snapshot as a table of schema `INDEX`; digests that an earlier version did not record are empty.

    Raises:
        StoreError: it cannot be read, its content is not the one that was written, or a newer version wrote it.
    """
    data = store.read(path)
    try:
        with open_bytes(data, path) as file:
            version = int((file.schema_arrow.metadata or {}).get(b"persres.schema_version", b"0"))
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"{store.url(path)} has version {version}; this persres-batch reads up to {SCHEMA_VERSION}",
                    fix="use the persres-batch that wrote this catalog, or a newer one",
                )
            columns = [name for name in INDEX.names if name in file.schema_arrow.names]
            return _add_missing_digests(file.read(columns)).cast(INDEX)
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise StoreError(
            f"commit index {store.url(path)} is damaged ({reason})", fix=REPAIR.format(catalog=store.uri)
        ) from None


def _add_missing_digests(table: pa.Table) -> pa.Table:
    """The columns of `INDEX` in their order; missing digests are empty, which means unknown."""
    for name in set(_DIGESTS).difference(table.column_names):
        unknown = pa.array([""]).take(pa.array([0] * table.num_rows, pa.int8()))  # only if needed: it imports pandas
        table = table.append_column(name, unknown)
    return table.select(INDEX.names)
