"""Rebuild the index of a catalog from its data files, when a part of the index is lost or damaged.

What is left of the index and of the commit records counts as it is. Everything else is in the data files: their names
have the run, shard and attempt, their rows the concepts, fingerprints, scores and images. So a row of the index is
derived from every residual and every concept's renderings, and `supersedes` selects one of each concept, as always.

Two things are not in the data files: that no record names them yet, so that results of an attempt that was lost before
it ended are taken for committed, which does no harm, since they are whole; and the rendering fingerprint of a concept
without renderings, which the next submit computes again. A `forget` that was interrupted has to be repeated after it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import groupby

import pyarrow as pa
import pyarrow.parquet as pq

from ...core.errors import StoreError, StoreUnavailable
from ..catalog import layout
from ..catalog.commit_record import CommittedConcept, ShardCommit, blob_digest, rendering_digest
from ..catalog.committed import CommittedConcepts
from ..catalog.data_file import data_files, read_data_file
from ..catalog.index import read_committed
from ..catalog.index_version import IndexVersion, create_version, newest_number, newest_version
from ..catalog.layout import AttemptPaths
from ..catalog.schemas import RenderingRow, index_table, rendering_rows, residual_rows
from ..catalog.snapshot import read_snapshot, write_snapshot
from ..catalog.store import CatalogStore
from ..shard.commit import mean_scores
from .forget import REWRITTEN

CommitKey = tuple[str, str, str]
"""(run id, attempt, shard id), as `supersedes` compares them."""


@dataclass(frozen=True, slots=True)
class Loss:
    """Something that could not be read, and why. `what` is an object's path, or a concept's id."""

    what: str
    reason: str


@dataclass(frozen=True, slots=True)
class Repair:
    """How an index can be, or has been, rebuilt.

    Attributes:
        fault: why the index has to be rebuilt; None if it is whole, so that nothing is to be done.
        concepts: how many the rebuilt index has.
        recovered: concepts that are there only because their data files are.
        unrendered: concepts that the next submit renders again, because their renderings are lost.
        losses: damaged objects, and concepts that were committed and cannot be recovered.
    """

    fault: str | None
    concepts: int = 0
    recovered: tuple[str, ...] = ()
    unrendered: tuple[str, ...] = ()
    losses: tuple[Loss, ...] = ()


@dataclass(slots=True)
class _Remains:
    """What can be read of an index: its tables, the objects they are from, and what is damaged."""

    version: IndexVersion
    tables: list[pa.Table] = field(default_factory=list)
    objects: list[str] = field(default_factory=list)
    losses: list[Loss] = field(default_factory=list)


@dataclass(slots=True)
class _Scan:
    """The concepts of all data files, by the commit that wrote them."""

    residuals: dict[tuple[CommitKey, str], CommittedConcept] = field(default_factory=dict)
    renderings: dict[tuple[CommitKey, str], CommittedConcept] = field(default_factory=dict)
    readable: set[str] = field(default_factory=set)
    losses: list[Loss] = field(default_factory=list)


def find_repair(store: CatalogStore, *, on_progress: Callable[[int, int], None] = lambda done, total: None) -> Repair:
    """How the index can be rebuilt; changes nothing.

    Args:
        on_progress: called with (data files read, all of them).

    Raises:
        StoreUnavailable: the store cannot be reached.
    """
    found = _whole_or_fault(store)
    return found if isinstance(found, Repair) else _rebuild(store, found, on_progress)[0]


def repair(
    store: CatalogStore,
    *,
    generation: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Repair:
    """Rebuild the index, unless it is whole. The caller holds the catalog's lease.

    Args:
        generation: of the caller's lease.
        on_progress: called with (data files read, all of them).

    Raises:
        Overtaken: another process has changed the index in the meantime.
        StoreError: the store cannot be read or written. Nothing was removed.
    """
    found = _whole_or_fault(store)
    if isinstance(found, Repair):
        return found
    result, remains, committed = _rebuild(store, found, on_progress)
    table = committed.to_table()
    before = [path for path in store.list(layout.INDEX) if path.endswith(".parquet")]
    records = store.list(layout.COMMITS)
    snapshots = [write_snapshot(store, table, committed.newest_run())] if table.num_rows else []
    create_version(store, remains.version, snapshots=snapshots, records=(), fence=generation)
    damaged = {loss.what for loss in result.losses}
    for path in (*records, *before):
        if path in remains.objects or path in damaged:
            store.delete(path)
    return result


def _whole_or_fault(store: CatalogStore) -> Repair | str:
    """What a whole index has, or why it is none."""
    try:
        return Repair(None, len(read_committed(store)))
    except StoreUnavailable:
        raise
    except StoreError as error:
        return error.message


def _rebuild(
    store: CatalogStore, fault: str, on_progress: Callable[[int, int], None]
) -> tuple[Repair, _Remains, CommittedConcepts]:
    remains, scan = _read_remains(store), _scan(store, on_progress)
    known = CommittedConcepts(remains.tables)
    usable = [table.filter(pa.array(_has_files(table, scan.readable), pa.bool_())) for table in remains.tables]
    committed = CommittedConcepts([*usable, index_table(_derived_records(scan))])
    kept = CommittedConcepts(usable)
    lost = [Loss(one, "its data files are missing or damaged") for one in known if one not in committed]
    result = Repair(
        fault,
        len(committed),
        recovered=tuple(one for one in committed if one not in kept),
        unrendered=tuple(name for name, one in committed.items() if not one.rendering_fingerprint),
        losses=(*remains.losses, *scan.losses, *lost),
    )
    return result, remains, committed


def _read_remains(store: CatalogStore) -> _Remains:
    in_index = store.list(layout.INDEX)
    snapshots = [path for path in in_index if path.endswith(".parquet")]
    try:
        version = newest_version(store)
        snapshots = [path for path in snapshots if not version.number or path in version.snapshots]
        remains = _Remains(version)
    except StoreUnavailable:
        raise
    except StoreError as error:
        number = newest_number(in_index)
        version = IndexVersion(number)
        remains = _Remains(version, losses=[Loss(layout.index_version(number), error.message)])
    missing = {*version.snapshots, *version.records}.difference(in_index, store.list(layout.COMMITS))
    remains.losses.extend(Loss(path, "it is missing") for path in sorted(missing))
    for path in (*snapshots, *(path for path in store.list(layout.COMMITS) if path.endswith(".json"))):
        try:
            if path in snapshots:
                table = read_snapshot(store, path)
            else:
                record = ShardCommit.from_json(store.read(path), path=store.url(path))
                if record.paths.record != path:
                    raise StoreError(f"{path} is the record of {record.paths.record}")
                if not version.counts(path, record.lease_generation):
                    continue
                table = index_table([record])
        except StoreUnavailable:
            raise
        except StoreError as error:
            remains.losses.append(Loss(path, error.message))
        else:
            remains.tables.append(table)
            remains.objects.append(path)
    return remains


def _has_files(table: pa.Table, readable: set[str]) -> list[bool]:
    pairs = (table.column(name).cast(pa.string()).to_pylist() for name in ("residual_file", "rendering_file"))
    return [
        residuals in readable and (renderings is None or renderings in readable)
        for residuals, renderings in zip(*pairs, strict=True)
    ]


def _scan(store: CatalogStore, on_progress: Callable[[int, int], None]) -> _Scan:
    scan, paths = _Scan(), data_files(store)
    for done, path in enumerate(paths, start=1):
        attempt = AttemptPaths.parse(path)
        if attempt is None:
            scan.losses.append(Loss(path, "its name is not one of persres-batch"))
            continue
        key = (attempt.run_id, REWRITTEN.sub("", attempt.attempt), attempt.shard_id)
        is_residuals = path.startswith(layout.RESIDUALS)
        found = scan.residuals if is_residuals else scan.renderings
        try:
            concepts = read_data_file(store, path, lambda file: list(_concepts_of(file)), in_parts=True)
        except StoreUnavailable:
            raise
        except StoreError as error:
            scan.losses.append(Loss(path, error.message))
        else:
            scan.readable.add(path)
            for one in concepts:
                located = replace(one, residual_file=path) if is_residuals else replace(one, rendering_file=path)
                found[key, one.concept_id] = located
        on_progress(done, len(paths))
    return scan


def _concepts_of(file: pq.ParquetFile) -> Iterator[CommittedConcept]:
    """The concepts of a data file, with its own half of their state."""
    first, open_rows = 0, list[RenderingRow]()
    for group in range(file.metadata.num_row_groups):
        table = file.read_row_group(group)
        if "residual" in table.column_names:
            for number, row in enumerate(residual_rows(table), start=first):
                fingerprint, digest = row.training_fingerprint, blob_digest(row.residual)
                yield CommittedConcept(
                    row.concept_id, row.macro_class, fingerprint, "", "", number, residual_digest=digest
                )
            first += table.num_rows
            continue
        open_rows += rendering_rows(table)
        runs = [list(rows) for _, rows in groupby(open_rows, key=lambda row: row.concept_id)]
        for rows in runs[:-1]:
            yield _rendered(rows, first)
            first += len(rows)
        open_rows = runs[-1] if runs else []
    if open_rows:
        yield _rendered(open_rows, first)


def _rendered(rows: list[RenderingRow], first: int) -> CommittedConcept:
    return CommittedConcept(
        rows[0].concept_id,
        "",
        rows[0].training_fingerprint,
        rows[0].rendering_fingerprint,
        "",
        0,
        rendering_rows=(first, len(rows)),
        scores=mean_scores(rows),
        renderings_digest=rendering_digest(row.image for row in rows),
    )


def _derived_records(scan: _Scan) -> Iterable[ShardCommit]:
    """A record for each commit whose data files are there, with the concepts whose residual is there."""
    by_concept: defaultdict[str, list[tuple[CommitKey, CommittedConcept]]] = defaultdict(list)
    for (key, concept_id), one in scan.residuals.items():
        by_concept[concept_id].append((key, one))
    concepts: defaultdict[CommitKey, list[CommittedConcept]] = defaultdict(list)
    for (key, concept_id), one in scan.residuals.items():
        if (key, concept_id) not in scan.renderings:
            concepts[key].append(one)
    for (key, concept_id), rendered in scan.renderings.items():
        own = scan.residuals.get((key, concept_id))
        if own is None:  # rendered with the residual of an earlier run
            fitting = [
                (earlier, one)
                for earlier, one in by_concept[concept_id]
                if one.training_fingerprint == rendered.training_fingerprint and earlier[0] <= key[0]
            ]
            own = max(fitting, key=lambda pair: pair[0])[1] if fitting else None
        if own is not None:
            concepts[key].append(
                replace(
                    rendered,
                    macro_class=own.macro_class,
                    residual_file=own.residual_file,
                    residual_row=own.residual_row,
                    residual_digest=own.residual_digest,
                )
            )
    for (run_id, attempt, shard_id), found in sorted(concepts.items()):
        yield ShardCommit(run_id, shard_id, attempt, "train", {}, tuple(found), ())
