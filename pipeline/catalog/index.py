"""The commit index: read what is committed, and compact commit records into snapshots.

Compaction merges all commit records into one snapshot under `index/`, a Parquet file with one row per concept, and
deletes the records that it has read. So reading takes time in proportion to the catalog, not to its history. A reader
merges all snapshots and all loose records; `supersedes` selects one commit of each concept. This is safe because:

- A snapshot stores the commit that each row comes from. A record of an older run or a later attempt that is written
  after the compaction has the same precedence as without compaction.
- Duplicates have no effect. A crash between writing the snapshot and deleting the last record does no harm, nor do two
  concurrent compactions: each deletes only objects that it has read and written again.
- An object is deleted only after another one with the same content exists. A reader that lists records first and
  snapshots second sees everything, unless an object is deleted before it is read; then it starts again.

On a store whose writes are not atomic, a killed writer leaves a torn (truncated) object. A torn record commits nothing
and is ignored. A torn snapshot replaces nothing, because records are deleted only after the snapshot has been read
back; the newest run it covers, which its name holds, is then still in other objects, and the snapshot is ignored. If
that run is in no other object, the snapshot was complete and has been damaged since, which is an error.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ...core.errors import StoreError
from . import layout
from .commit_record import ShardCommit, TornRecord
from .committed import CommittedConcepts
from .schemas import INDEX, SCHEMA_VERSION, index_table
from .store import CatalogStore

COMPACT_AFTER = 256
"""The number of loose records above which rewriting the snapshot pays off."""

_RECORDS_PER_BATCH = 512
_CONCEPTS_PER_ROW_GROUP = 65_536
_MAGIC = b"PAR1"  # every Parquet file ends with it
_DIGESTS = ("residual_digest", "renderings_digest")  # missing from snapshots of earlier versions


class _TornSnapshot(StoreError):
    """A truncated snapshot."""


@dataclass(frozen=True, slots=True)
class _Contents:
    """What is committed, and the paths of the loose records and snapshots that hold it and of those that are torn."""

    committed: CommittedConcepts
    records: list[str]
    snapshots: list[str]
    torn_records: list[str]
    torn_snapshots: list[str]


def read_committed(store: CatalogStore) -> CommittedConcepts:
    """The committed concepts by concept id; none for a catalog that does not exist.

    Safe during commits and compactions: includes everything that was committed before the call.

    Raises:
        StoreError: a record or snapshot cannot be read, is damaged, or was written by a newer version.
    """
    return _read_contents(store).committed


def torn_records(store: CatalogStore) -> list[str]:
    """The paths of torn commit records, which were cut off while they were written and commit nothing.

    A writer may be writing one again: delete it only if it is old or its writer is known to be lost.

    Raises:
        StoreError: as for `read_committed`.
    """
    return _read_contents(store).torn_records


def torn_snapshots(store: CatalogStore) -> list[str]:
    """The paths of torn index snapshots, which a killed compaction has left.

    Raises:
        StoreError: as for `read_committed`.
    """
    return _read_contents(store).torn_snapshots


def read_records(store: CatalogStore, run_id: str | None = None) -> list[ShardCommit]:
    """The loose commit records, of one run or of all, sorted by path; torn ones are omitted.

    Raises:
        StoreError: a record cannot be read, is damaged, or was written by a newer version.
    """
    while True:
        paths = _record_paths(store)
        wanted = [path for path in paths if run_id is None or path.startswith(f"{layout.COMMITS}{run_id}_")]
        try:
            return _parse_records(store, wanted)[0]
        except StoreError:
            if _all_exist(store, wanted, ()):
                raise


def compact(store: CatalogStore, *, after: int = 0) -> int:
    """Merge the loose commit records into one snapshot; returns their number.

    The caller holds the catalog's lease. Without it nothing is lost, but two runs may do the same work.

    Args:
        after: do nothing up to this number of loose records. A catalog without a snapshot gets one regardless, so that
            SQL can read `index/*.parquet`.

    Raises:
        StoreError: as for `read_committed`, or the snapshot could not be written, and nothing was deleted.
    """
    if len(_record_paths(store)) <= after and _snapshot_paths(store):
        return 0
    contents = _read_contents(store)
    if len(contents.snapshots) != 1 or contents.records:
        _replace_contents(store, contents, contents.committed.to_table())
    return len(contents.records)


def rewrite_index(store: CatalogStore, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replace all snapshots and loose records with one snapshot of a changed table.

    The caller holds the catalog's lease. Records written during the call are not changed.

    Args:
        change: maps the current table of schema `INDEX`, one row per concept, to the new one. Dictionary columns need
            new dictionaries, because the old ones may hold removed values. A table without rows is not written.

    Raises:
        StoreError: as for `compact`.
    """
    contents = _read_contents(store)
    _replace_contents(store, contents, change(contents.committed.to_table()))


def _replace_contents(store: CatalogStore, contents: _Contents, table: pa.Table) -> None:
    """Write `table` as a snapshot, verify it, then delete the objects that were read.

    Torn objects are kept: if its writer writes one again, it counts.
    """
    if table.num_rows:
        path = layout.index_file(contents.committed.newest_run(), secrets.token_hex(4))
        data = _snapshot_bytes(table)
        store.write(path, data)
        if store.read(path) != data:
            raise StoreError(f"{store.url(path)} does not hold what was written to it", fix="delete it; submit again")
    for path in (*contents.records, *contents.snapshots):
        store.delete(path)


def _read_contents(store: CatalogStore) -> _Contents:
    while True:
        # In this order: a record missing from the first list is covered by a snapshot in the second.
        records, snapshots = _record_paths(store), _snapshot_paths(store)
        try:
            contents = _merge(store, records, snapshots)
        except StoreError:
            if _all_exist(store, records, snapshots):
                raise
            continue
        # Listing a folder while it changes may return neither the old snapshot nor the new one.
        if _snapshot_paths(store) == snapshots:
            return contents


def _merge(store: CatalogStore, records: Sequence[str], snapshots: Sequence[str]) -> _Contents:
    tables: list[pa.Table] = []
    torn_records: list[str] = []
    torn_snapshots: dict[str, StoreError] = {}
    for path in snapshots:
        try:
            tables.append(_read_snapshot(store, path))
        except _TornSnapshot as error:
            torn_snapshots[path] = error
    for start in range(0, len(records), _RECORDS_PER_BATCH):
        complete, torn = _parse_records(store, records[start : start + _RECORDS_PER_BATCH])
        tables.append(index_table(complete))
        torn_records += torn
    committed = CommittedConcepts(tables)
    for path, error in torn_snapshots.items():
        if layout.newest_run_of(path) > committed.newest_run():
            raise error
    return _Contents(
        committed,
        [path for path in records if path not in torn_records],
        [path for path in snapshots if path not in torn_snapshots],
        torn_records,
        list(torn_snapshots),
    )


def _record_paths(store: CatalogStore) -> list[str]:
    return [path for path in store.list(layout.COMMITS) if path.endswith(".json")]


def _snapshot_paths(store: CatalogStore) -> list[str]:
    return [path for path in store.list(layout.INDEX) if path.endswith(".parquet")]


def _all_exist(store: CatalogStore, records: Sequence[str], snapshots: Sequence[str]) -> bool:
    """Whether none of the objects has been deleted, so that an error in reading them has another cause."""
    return set(records) <= set(_record_paths(store)) and set(snapshots) <= set(_snapshot_paths(store))


def _parse_records(store: CatalogStore, paths: Sequence[str]) -> tuple[list[ShardCommit], list[str]]:
    """Read and parse records; returns the complete ones and the paths of the torn ones."""
    texts = store.read_many(paths)
    complete, torn = [], []
    for path in paths:
        try:
            complete.append(ShardCommit.from_json(texts[path], path=store.url(path)))
        except TornRecord:
            torn.append(path)
    return complete, torn


def _read_snapshot(store: CatalogStore, path: str) -> pa.Table:
    data = store.read(path)
    if not data.endswith(_MAGIC):
        raise _TornSnapshot(f"commit index {store.url(path)} is damaged (truncated)", fix=_restore_fix(store, path))
    try:
        with pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True) as file:
            version = int((file.schema_arrow.metadata or {}).get(b"persres.schema_version", b"0"))
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"{store.url(path)} has version {version}; this persres-batch reads up to {SCHEMA_VERSION}",
                    fix="use the persres-batch that wrote this catalog, or a newer one",
                )
            columns = [name for name in INDEX.names if name in file.schema_arrow.names]
            return _add_missing_digests(file.read(columns)).cast(INDEX)
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise StoreError(
            f"commit index {store.url(path)} is damaged ({type(error).__name__}: {error})",
            fix=_restore_fix(store, path),
        ) from None


def _add_missing_digests(table: pa.Table) -> pa.Table:
    """The columns of `INDEX` in their order; missing digests are empty, which means unknown."""
    for name in set(_DIGESTS).difference(table.column_names):
        unknown = pa.array([""]).take(pa.array([0] * table.num_rows, pa.int8()))  # only if needed: it imports pandas
        table = table.append_column(name, unknown)
    return table.select(INDEX.names)


def _restore_fix(store: CatalogStore, path: str) -> str:
    return (
        f"restore {store.url(path)} from a copy; without one, delete it: the next submit repeats the work that only "
        "this file recorded"
    )


def _snapshot_bytes(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=_CONCEPTS_PER_ROW_GROUP, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()
