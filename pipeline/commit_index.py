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
"""

from __future__ import annotations

import io
import secrets
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from ..core.errors import StoreError
from .catalog_store import CatalogStore
from .commit_record import ShardCommit
from .committed_concepts import CommittedConcepts
from .schemas import INDEX, SCHEMA_VERSION, index_table

COMPACT_AFTER = 256
"""Loose records from which on a compaction is worth rewriting the snapshot."""

_RECORDS_AT_A_TIME = 512
_CONCEPTS_PER_ROW_GROUP = 65_536


def read_committed(store: CatalogStore) -> CommittedConcepts:
    """What the catalog holds, by concept id; an absent catalog holds nothing.

    Safe beside running commits and compactions: whatever was committed before the call is in the answer.

    Raises:
        StoreError: a record or snapshot cannot be read, is damaged, or was written by a newer version.
    """
    return _read(store)[0]


def read_records(store: CatalogStore, run_id: str | None = None) -> list[ShardCommit]:
    """The commit records, of one run or of all, that no compaction has folded in yet, in the order of their names.

    Raises:
        StoreError: a record cannot be read, is damaged, or was written by a newer version.
    """
    while True:
        paths = _records(store)
        wanted = [path for path in paths if run_id is None or path.startswith(f"{store.COMMITS}{run_id}_")]
        try:
            return _parsed(store, wanted)
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
    committed, records, snapshots = _read(store)
    if len(snapshots) != 1 or records:
        _replace(store, committed, [*records, *snapshots])
    return len(records)


def _replace(store: CatalogStore, committed: CommittedConcepts, covered: Sequence[str]) -> None:
    """Write everything that is committed as one snapshot; only when that is safely there, remove what it covers."""
    if committed:
        path = store.index_file(committed.newest_run(), secrets.token_hex(4))
        data = _parquet(committed.to_table())
        store.write(path, data)
        if store.read(path) != data:
            raise StoreError(f"{store.url(path)} does not hold what was written to it", fix="delete it; submit again")
    for path in covered:
        store.delete(path)


def _read(store: CatalogStore) -> tuple[CommittedConcepts, list[str], list[str]]:
    """What is committed, and the loose records and the snapshots that say so."""
    while True:
        # In this order: a record that is gone from the first list is covered by a snapshot in the second.
        records, snapshots = _records(store), _snapshots(store)
        try:
            tables = [_snapshot(store, path) for path in snapshots]
            starts = range(0, len(records), _RECORDS_AT_A_TIME)
            tables += [index_table(_parsed(store, records[start : start + _RECORDS_AT_A_TIME])) for start in starts]
        except StoreError:
            if _all_there(store, records, snapshots):
                raise
            continue
        # A folder that changes while it is listed may show neither the old snapshot nor the new one.
        if _snapshots(store) == snapshots:
            return CommittedConcepts(tables), records, snapshots


def _records(store: CatalogStore) -> list[str]:
    return [path for path in store.list(store.COMMITS) if path.endswith(".json")]


def _snapshots(store: CatalogStore) -> list[str]:
    return [path for path in store.list(store.INDEX) if path.endswith(".parquet")]


def _all_there(store: CatalogStore, records: Sequence[str], snapshots: Sequence[str]) -> bool:
    """Whether nothing that was to be read has disappeared meanwhile, so that what went wrong is wrong indeed."""
    return set(records) <= set(_records(store)) and set(snapshots) <= set(_snapshots(store))


def _parsed(store: CatalogStore, paths: Sequence[str]) -> list[ShardCommit]:
    texts = store.read_many(paths)
    return [ShardCommit.from_json(texts[path], path=store.url(path)) for path in paths]


def _snapshot(store: CatalogStore, path: str) -> pa.Table:
    try:
        with pq.ParquetFile(io.BytesIO(store.read(path)), page_checksum_verification=True) as file:
            version = int((file.schema_arrow.metadata or {}).get(b"persres.schema_version", b"0"))
            if version > SCHEMA_VERSION:
                raise StoreError(
                    f"{store.url(path)} has version {version}; this persres-batch reads up to {SCHEMA_VERSION}",
                    fix="use the persres-batch that wrote this catalog, or a newer one",
                )
            return file.read(INDEX.names).cast(INDEX)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise StoreError(
            f"commit index {store.url(path)} is damaged ({type(error).__name__}: {error})",
            fix=f"restore {store.url(path)} from a copy; if there is none, delete it: the next submit does again "
            "what only it knew to be done",
        ) from None


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=_CONCEPTS_PER_ROW_GROUP, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()
