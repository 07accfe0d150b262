"""The commit index: read what is committed, and compact commit records into snapshots.

Compaction merges all commit records into one snapshot under `index/`, a Parquet file with one row per concept, and
deletes the records that it has read. So reading takes time in proportion to the catalog, not to its history. A reader
merges the snapshot and the loose records that the newest version of the index names (see `index_version`) with the
records written since; `supersedes` selects one commit of each concept. This is safe because:

- A snapshot stores the commit that each row comes from. A record of an older run or a later attempt that is written
  after the compaction has the same precedence as without compaction.
- Duplicates have no effect. A crash between writing the version and deleting the last record does no harm.
- An object is deleted only after a version is in force that does without it. A reader that finds the same version in
  force before and after has seen everything; else it starts again.
- What a version names and is not there, or is not what was written, is an error. So is a record that was written under
  a later version than the newest one, and a catalog without any record whose runs say that they committed something.

A store whose writes are not atomic, or a proxy on the way to it, leaves a torn (truncated) record, which commits
nothing: nobody has been told that it does. One that a version names was whole, and torn it is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import pyarrow as pa

from ...core.errors import StoreError, StoreObjectMissing
from ...core.plural import plural
from ..storage.json_document import DamagedDocument, parse_json
from . import layout
from .commit_record import ShardCommit, TornRecord, damaged_record
from .committed import CommittedConcepts
from .index_version import IndexVersion, Overtaken, create_version, newest_number, newest_version, read_version
from .layout import RunPaths
from .parquet_file import digest_in_name
from .schemas import index_table
from .snapshot import REPAIR, read_snapshot, write_snapshot
from .store import CatalogStore

COMPACT_AFTER = 256
"""The number of loose records above which rewriting the snapshot pays off."""

_RECORDS_PER_BATCH = 512


@dataclass(frozen=True, slots=True)
class UnusedObjects:
    """Objects of the index that no reader uses, by path.

    Attributes:
        torn: records that were cut off while they were written.
        refused: records of lost runs, written after another process had raised the fence.
        replaced: snapshots, versions and records that are not in force: a later snapshot has what they had, or their
            writer was overtaken.
    """

    torn: tuple[str, ...]
    refused: tuple[str, ...]
    replaced: tuple[str, ...]


@dataclass(slots=True)
class LooseRecords:
    """Loose records: tables of those that count, and the paths of all."""

    tables: list[pa.Table] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)
    torn: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Contents:
    """What is committed, and where: the version in force, its snapshots, and the loose records."""

    version: IndexVersion
    committed: CommittedConcepts
    snapshots: Sequence[str]
    records: LooseRecords


def read_committed(store: CatalogStore) -> CommittedConcepts:
    """The committed concepts by concept id; none for a catalog that does not exist.

    Safe during commits and compactions: includes everything that was committed before the call.

    Raises:
        StoreError: a part of the index is missing, cannot be read, is damaged, or was written by a newer version.
    """
    return read_contents(store).committed


def unused_objects(store: CatalogStore) -> UnusedObjects:
    """The objects of the index that no reader uses.

    A writer may be writing one again, or may be about to put it in force: delete it only under the catalog's lease and
    behind its fence.

    Raises:
        StoreError: as for `read_committed`.
    """
    contents, unused = read_contents(store), list[str]()
    if current := contents.version.number:
        paths = store.list(layout.INDEX)
        unused += [path for path in paths if path.endswith(".parquet") and path not in contents.snapshots]
        unused += [path for path in paths if 0 < (layout.index_version_number(path) or 0) < current]
        unused += set(contents.version.retired).intersection(store.list(layout.COMMITS))
    return UnusedObjects(tuple(contents.records.torn), tuple(contents.records.refused), tuple(unused))


def read_records(store: CatalogStore, run_id: str | None = None) -> list[ShardCommit]:
    """The loose commit records, of one run or of all, sorted by path; torn ones are omitted.

    Raises:
        StoreError: a record cannot be read, is damaged, or was written by a newer version.
    """
    while True:
        paths = _record_paths(store)
        wanted = [path for path in paths if run_id is None or path.startswith(f"{layout.COMMITS}{run_id}_")]
        try:
            texts = store.read_many(wanted)
        except StoreError:
            if not set(wanted) <= set(_record_paths(store)):
                continue
            raise
        records = []
        for path in wanted:
            with suppress(TornRecord):
                records.append(_parse_record(store, path, texts[path]))
        return records


def compact(store: CatalogStore, *, after: int = 0) -> int:
    """Merge the loose commit records into one snapshot; returns their number.

    The caller holds the catalog's lease. Without it nothing is lost, but two runs may do the same work.

    Args:
        after: up to this number of loose records, only name them in a version of the index. A catalog without a
            snapshot gets one regardless, so that SQL can read `index/*.parquet`.

    Raises:
        Overtaken: another process has changed the index since; nothing was changed.
        StoreError: as for `read_committed`, or the snapshot could not be written, and nothing was deleted.
    """
    if after:  # whether all are named can be seen without reading them
        version, paths = newest_version(store), set(_record_paths(store))
        if version.snapshots and len(paths) <= after and version.records == paths - version.retired:
            return 0
    contents = read_contents(store)
    version, accepted = contents.version, contents.records.accepted
    if len(accepted) <= after and version.snapshots:
        if version.records != set(accepted):
            create_version(store, version, snapshots=version.snapshots, records=accepted)
        return 0
    if accepted or len(contents.snapshots) > 1 or (contents.snapshots and not version.number):
        _replace_contents(store, contents, contents.committed.to_table())
    return len(accepted)


def rewrite_index(store: CatalogStore, change: Callable[[pa.Table], pa.Table], *, generation: int = 0) -> None:
    """Replace all snapshots and loose records with one snapshot of a changed table.

    The caller holds the catalog's lease and has raised the fence. Records written during the call are not changed.

    Args:
        change: maps the current table of schema `INDEX`, one row per concept, to the new one. Dictionary columns need
            new dictionaries, because the old ones may hold removed values. A table without rows is not written.
        generation: of the caller's lease.

    Raises:
        Overtaken, StoreError: as for `compact`.
    """
    contents = read_contents(store)
    contents.version.require_fence(generation, store)
    _replace_contents(store, contents, change(contents.committed.to_table()))


def _replace_contents(store: CatalogStore, contents: Contents, table: pa.Table) -> None:
    """Put a version with a snapshot of `table` in force, then delete the objects that were read.

    Torn objects are kept: if its writer writes one again, it counts.
    """
    version, records = contents.version, contents.records.accepted
    if not version.number:  # so that a snapshot whose version is lost is told from one that never had any
        version = create_version(store, version, snapshots=contents.snapshots, records=records)
    newest_run = contents.committed.newest_run()
    snapshots = [write_snapshot(store, table, newest_run)] if table.num_rows else []
    try:
        version = create_version(store, version, snapshots=snapshots, records=(), retired=records)
    except Overtaken:
        in_force = newest_version(store).snapshots
        for path in snapshots:
            if path not in in_force:
                store.delete(path)
        raise
    for path in (*contents.snapshots, *version.retired):
        store.delete(path)
    if version.retired:
        # Every reader and every commit reads the version: it must not name thousands of records that are gone.
        with suppress(Overtaken):
            create_version(store, version, snapshots=snapshots, records=())


def read_contents(store: CatalogStore) -> Contents:
    """As `read_committed`, with where it is.

    Raises:
        StoreError: as for `read_committed`.
    """
    while True:
        in_index, records = store.list(layout.INDEX), _record_paths(store)
        number, snapshots = newest_number(in_index), _snapshots_among(in_index)
        try:
            contents = _merge(store, read_version(store, number), snapshots, records)
        except StoreError:
            now = store.list(layout.INDEX)
            same_version = newest_number(now) == number
            if same_version and set(snapshots) <= set(now) and set(records) <= set(_record_paths(store)):
                raise  # nothing that was listed has been replaced: the error has another cause
            continue
        # Listing a folder while it changes may return neither the old object nor the new one.
        now = store.list(layout.INDEX)
        if newest_number(now) == number and (number or _snapshots_among(now) == snapshots):
            return contents


def _merge(store: CatalogStore, version: IndexVersion, snapshots: Sequence[str], records: Sequence[str]) -> Contents:
    lost = sorted({*version.snapshots, *version.records}.difference(snapshots, records))
    if lost:
        raise _lost(store, lost, f"{layout.index_version(version.number)} names {'it' if len(lost) == 1 else 'them'}")
    used = version.snapshots if version.number else snapshots
    if not version.number and (orphans := [path for path in snapshots if digest_in_name(path)]):
        raise _lost(store, [f"{layout.INDEX}*.json"], f"{orphans[0]} is there")
    loose = _read_loose(store, version, [path for path in records if path not in version.retired])
    committed = CommittedConcepts([*(read_snapshot(store, path) for path in used), *loose.tables])
    if not (version.number or used or records):
        _require_nothing_committed(store)
    return Contents(version, committed, used, loose)


def _read_loose(store: CatalogStore, version: IndexVersion, paths: Sequence[str]) -> LooseRecords:
    """Read and parse loose records, and tell which of them count."""
    found = LooseRecords()
    for start in range(0, len(paths), _RECORDS_PER_BATCH):
        batch = paths[start : start + _RECORDS_PER_BATCH]
        texts, counting = store.read_many(batch), []
        for path in batch:
            try:
                record = _parse_record(store, path, texts[path])
            except TornRecord:
                if path in version.records:
                    raise
                found.torn.append(path)
                continue
            if record.index_version > version.number:
                raise _lost(store, [layout.index_version(record.index_version)], f"{path} was written after it")
            if version.counts(path, record.lease_generation):
                counting.append(record)
                found.accepted.append(path)
            else:
                found.refused.append(path)
        found.tables.append(index_table(counting))
    return found


def _parse_record(store: CatalogStore, path: str, text: bytes) -> ShardCommit:
    record = ShardCommit.from_json(text, path=store.url(path))
    if record.paths.record != path:
        raise damaged_record(store.url(path), f"it is the record of {record.paths.record}")
    return record


def _require_nothing_committed(store: CatalogStore) -> None:
    """Raise StoreError if a run's summary counts committed concepts, although there is neither index nor record."""
    for path in store.list(layout.RUNS):
        if (run := RunPaths.parse(path)) is None or path != run.summary:
            continue
        try:
            summary = parse_json(store.read(path), name=store.url(path), fix="")
        except (StoreObjectMissing, DamagedDocument):
            continue  # it is no evidence
        committed = summary.get("committed") if isinstance(summary, dict) else None
        if isinstance(committed, int) and committed > 0:
            raise _lost(store, [layout.INDEX], f"run {run.run_id} committed {plural(committed, 'concept')}")


def _lost(store: CatalogStore, paths: Sequence[str], evidence: str) -> StoreError:
    more = f" and {len(paths) - 1} more objects of the index" if len(paths) > 1 else ""
    missing = "are missing" if more else "is missing"
    return StoreError(f"{store.url(paths[0])}{more} {missing}: {evidence}", fix=REPAIR.format(catalog=store.uri))


def _record_paths(store: CatalogStore) -> list[str]:
    return [path for path in store.list(layout.COMMITS) if path.endswith(".json")]


def _snapshots_among(paths: Sequence[str]) -> list[str]:
    return [path for path in paths if path.endswith(".parquet")]
