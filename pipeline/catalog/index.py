"""What is committed, read in time that grows with the catalog and not with its history: compaction of commit records.

Compaction folds all commit records into one snapshot under `index/`, a Parquet file with a row a concept, and removes
the records it has read. A reader takes the union of all snapshots and all loose records and lets `supersedes` choose.
That makes everything else simple:

- A snapshot keeps, for every concept, which commit it comes from. So a record of an older run or of a later attempt
  that arrives afterwards loses or wins as it would have done without compaction.
- What is there twice changes nothing. So a crash after the snapshot is written and before the last record is removed
  does no harm, and two compactions at a time do none either: each removes only what it has read and written down again.
- Before an object disappears, another that says the same is in place. So a reader that lists the records first and
  the snapshots afterwards sees everything, unless something disappears under its hands: then it looks again.

On a store that does not write objects whole, a writer that dies leaves a torn one. A torn record never committed
anything. A torn snapshot was never relied upon, for nothing is removed before it has been read back: then the run in
its name, the newest it covers, is there without it too. Both are left out. Where that run is not there, the snapshot
was whole once and has been damaged since, and that is an error.
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from ...core.errors import StoreError
from .commit_record import ShardCommit, TornRecord
from .committed import CommittedConcepts
from .schemas import INDEX, SCHEMA_VERSION, index_table
from .store import CatalogStore

COMPACT_AFTER = 256
"""Loose records from which on a compaction is worth rewriting the snapshot."""

_RECORDS_AT_A_TIME = 512
_CONCEPTS_PER_ROW_GROUP = 65_536
_MAGIC = b"PAR1"  # how every Parquet file ends
_DIGESTS = ("residual_digest", "renderings_digest")  # which earlier versions did not keep


class _TornSnapshot(StoreError):
    """A snapshot that ends before its end."""


@dataclass(frozen=True, slots=True)
class _Read:
    """What is committed, the loose records and snapshots that say so, and those that are torn and say nothing."""

    committed: CommittedConcepts
    records: list[str]
    snapshots: list[str]
    torn_records: list[str]
    torn_snapshots: list[str]


def read_committed(store: CatalogStore) -> CommittedConcepts:
    """What the catalog holds, by concept id; an absent catalog holds nothing.

    Safe beside running commits and compactions: whatever was committed before the call is in the answer.

    Raises:
        StoreError: a record or snapshot cannot be read, is damaged, or was written by a newer version.
    """
    return _read(store).committed


def torn_records(store: CatalogStore) -> list[str]:
    """The paths of commit records that were cut off while they were written. They count for nothing.

    One may be in the middle of being written again: leave it alone unless it is old or its writer is known to be dead.

    Raises:
        StoreError: as for `read_committed`.
    """
    return _read(store).torn_records


def torn_snapshots(store: CatalogStore) -> list[str]:
    """The paths of index snapshots that were cut off while they were written, by a compaction that then died.

    Raises:
        StoreError: as for `read_committed`.
    """
    return _read(store).torn_snapshots


def read_records(store: CatalogStore, run_id: str | None = None) -> list[ShardCommit]:
    """The commit records, of one run or of all, that no compaction has folded in yet, in the order of their names.

    Raises:
        StoreError: a record cannot be read, is damaged, or was written by a newer version.
    """
    while True:
        paths = _records(store)
        wanted = [path for path in paths if run_id is None or path.startswith(f"{store.COMMITS}{run_id}_")]
        try:
            return _parsed(store, wanted)[0]
        except StoreError:
            if _all_there(store, wanted, ()):
                raise


def compact(store: CatalogStore, *, after: int = 0) -> int:
    """Fold the loose commit records into one snapshot; returns how many they were.

    To be called by a run that holds the catalog's lease. Without it, nothing would be lost but work done twice.

    Args:
        after: do nothing while there are no more loose records than this, and a snapshot. A catalog without one gets
            its first in any case: from then on `index/*.parquet` finds something, as a reader in SQL needs it to.

    Raises:
        StoreError: as for `read_committed`, or the snapshot could not be written; nothing is removed then.
    """
    if len(_records(store)) <= after and _snapshots(store):
        return 0
    read = _read(store)
    if len(read.snapshots) != 1 or read.records:
        _replace(store, read, read.committed.to_table())
    return len(read.records)


def rewrite_index(store: CatalogStore, change: Callable[[pa.Table], pa.Table]) -> None:
    """Replace all snapshots and loose records by one snapshot of something else than what they say.

    To be called by whoever holds the catalog's lease: what is committed meanwhile stays as it was committed.

    Args:
        change: gets what is committed, of schema `INDEX`, a row a concept, and returns what is to be instead, with new
            dictionaries in the columns that have some: those of the old table may hold what is to disappear. Without
            rows, no snapshot is written.

    Raises:
        StoreError: as for `compact`.
    """
    read = _read(store)
    _replace(store, read, change(read.committed.to_table()))


def _replace(store: CatalogStore, read: _Read, table: pa.Table) -> None:
    """Write a table as one snapshot; only when that is safely there, remove what was read.

    Torn objects stay: the writer of one may be writing it again, and then it counts.
    """
    if table.num_rows:
        path = store.index_file(read.committed.newest_run(), secrets.token_hex(4))
        data = _parquet(table)
        store.write(path, data)
        if store.read(path) != data:
            raise StoreError(f"{store.url(path)} does not hold what was written to it", fix="delete it; submit again")
    for path in (*read.records, *read.snapshots):
        store.delete(path)


def _read(store: CatalogStore) -> _Read:
    while True:
        # In this order: a record that is gone from the first list is covered by a snapshot in the second.
        records, snapshots = _records(store), _snapshots(store)
        try:
            read = _union(store, records, snapshots)
        except StoreError:
            if _all_there(store, records, snapshots):
                raise
            continue
        # A folder that changes while it is listed may show neither the old snapshot nor the new one.
        if _snapshots(store) == snapshots:
            return read


def _union(store: CatalogStore, records: Sequence[str], snapshots: Sequence[str]) -> _Read:
    tables: list[pa.Table] = []
    torn_records: list[str] = []
    torn_snapshots: dict[str, StoreError] = {}
    for path in snapshots:
        try:
            tables.append(_snapshot(store, path))
        except _TornSnapshot as error:
            torn_snapshots[path] = error
    for start in range(0, len(records), _RECORDS_AT_A_TIME):
        whole, torn = _parsed(store, records[start : start + _RECORDS_AT_A_TIME])
        tables.append(index_table(whole))
        torn_records += torn
    committed = CommittedConcepts(tables)
    for path, error in torn_snapshots.items():
        if store.newest_run_of(path) > committed.newest_run():
            raise error
    return _Read(
        committed,
        [path for path in records if path not in torn_records],
        [path for path in snapshots if path not in torn_snapshots],
        torn_records,
        list(torn_snapshots),
    )


def _records(store: CatalogStore) -> list[str]:
    return [path for path in store.list(store.COMMITS) if path.endswith(".json")]


def _snapshots(store: CatalogStore) -> list[str]:
    return [path for path in store.list(store.INDEX) if path.endswith(".parquet")]


def _all_there(store: CatalogStore, records: Sequence[str], snapshots: Sequence[str]) -> bool:
    """Whether nothing that was to be read has disappeared meanwhile, so that what went wrong is wrong indeed."""
    return set(records) <= set(_records(store)) and set(snapshots) <= set(_snapshots(store))


def _parsed(store: CatalogStore, paths: Sequence[str]) -> tuple[list[ShardCommit], list[str]]:
    """What some records say, and the paths of those that are torn."""
    texts = store.read_many(paths)
    whole, torn = [], []
    for path in paths:
        try:
            whole.append(ShardCommit.from_json(texts[path], path=store.url(path)))
        except TornRecord:
            torn.append(path)
    return whole, torn


def _snapshot(store: CatalogStore, path: str) -> pa.Table:
    data = store.read(path)
    if not data.endswith(_MAGIC):
        raise _TornSnapshot(
            f"commit index {store.url(path)} is damaged (it ends before its end)", fix=_fix(store, path)
        )
    try:
        with pq.ParquetFile(io.BytesIO(data), page_checksum_verification=True) as file:
            version = int((file.schema_arrow.metadata or {}).get(b"persres.schema_version", b"0"))
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"{store.url(path)} has version {version}; this persres-batch reads up to {SCHEMA_VERSION}",
                    fix="use the persres-batch that wrote this catalog, or a newer one",
                )
            return _with_digests(file.read([name for name in INDEX.names if name in file.schema_arrow.names])).cast(
                INDEX
            )
    except (pa.ArrowException, OSError, ValueError, LookupError) as error:
        raise StoreError(
            f"commit index {store.url(path)} is damaged ({type(error).__name__}: {error})", fix=_fix(store, path)
        ) from None


def _with_digests(table: pa.Table) -> pa.Table:
    """The columns of `INDEX` in their order; digests that are not there are not known."""
    unknown = pa.array([""]).take(pa.array([0] * table.num_rows, pa.int8()))
    for name in set(_DIGESTS).difference(table.column_names):
        table = table.append_column(name, unknown)
    return table.select(INDEX.names)


def _fix(store: CatalogStore, path: str) -> str:
    return (
        f"restore {store.url(path)} from a copy; if there is none, delete it: the next submit does again "
        "what only it knew to be done"
    )


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=_CONCEPTS_PER_ROW_GROUP, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()
