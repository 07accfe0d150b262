"""Remove every trace of a concept from a catalog: people's faces are concepts, and people change their minds.

What is left behind at any moment is a catalog that reads: the rows of others are written again under new names, then
one index snapshot points to them, then the records and snapshots before it are removed, and only then the files that
hold rows of the forgotten. A crash in between leaves things twice, and the concept half forgotten: forgetting it again
does the rest. A record that still points to an old file ties with the snapshot that points to the new one; both hold
the same rows, and the old file stays until no record names it.

Data files that nothing committed refers to are removed rather than rewritten, and so are temporary files and torn
records, in which nothing can be looked up. The documents of runs come last, since they are where the concept's name is
looked up when a crash has left nothing else.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from ...core.errors import StoreError
from ..catalog.data_file import data_file_bytes, read_data_file, without_concepts
from ..catalog.index import rewrite_index, torn_records, torn_snapshots
from ..catalog.schemas import INDEX
from ..catalog.store import CatalogStore
from ..shard.commit import RENDERINGS_PER_ROW_GROUP, RESIDUALS_PER_ROW_GROUP
from .redact import document_without, naming_documents
from .traces import Progress, Traces, find_traces, require_known

Check = Callable[[], None]

_WRITERS = 4  # each holds a file's rows twice
_PASSES = 10
_PLACES = ("residual_file", "residual_row", "rendering_file", "rendering_rows")
_REWRITTEN = re.compile(r"-[0-9a-f]{8}$")


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What forgetting took: data files written again without the concepts, data files removed, documents changed."""

    concept_ids: tuple[str, ...]
    rewritten: int
    removed: int
    documents: int


@dataclass(frozen=True, slots=True)
class _Moved:
    """A data file's successor, and for each old row its number there; -1 where it is gone."""

    path: str
    rows: Sequence[int]


@dataclass(slots=True)
class _Taken:
    rewritten: set[str] = field(default_factory=set)
    removed: set[str] = field(default_factory=set)


def forget(
    store: CatalogStore,
    concept_ids: Collection[str],
    *,
    on_progress: Progress = lambda done, total: None,
    check: Check = lambda: None,
) -> Forgotten:
    """Remove every trace of some concepts; all others read as before, at every moment of it.

    The caller holds the catalog's lease. After an error or a crash they may be forgotten in part: call it again.

    Args:
        concept_ids: committed or not: whatever has a row or a record, or is named in a run's documents.
        on_progress: called with (data files searched, all of them).
        check: called before every change; raises if the lease is lost.

    Raises:
        InvalidInput: of one of the concepts there is no trace. Nothing was removed.
        StoreError: the catalog cannot be read or written, or a file in which others lie is damaged.
    """
    traces = find_traces(store, concept_ids, on_progress=on_progress)
    require_known(store, traces)
    wanted, taken = traces.concept_ids, _Taken()
    for _ in range(_PASSES):  # again, for an attempt of a dead run may have written meanwhile
        _forget_results(store, traces, taken, check)
        traces = find_traces(store, wanted, searched=traces.searched, results_only=True)
        if not traces.in_results:
            break
    else:
        raise StoreError(
            f"somebody keeps writing {sorted(wanted)[:3]} to {store.uri}",
            fix="end all runs of this catalog, then forget again",
        )
    _remove_unsearchable(store, check)
    documents = _forget_in_documents(store, wanted, check)
    return Forgotten(tuple(sorted(wanted)), len(taken.rewritten), len(taken.removed), documents)


def _forget_results(store: CatalogStore, traces: Traces, taken: _Taken, check: Check) -> None:
    """Data files and index without the concepts: new files, new snapshot, then the old ones go, records first."""
    check()
    with ThreadPoolExecutor(_WRITERS) as pool:
        paths = sorted(traces.shared)
        moves = pool.map(partial(_rewrite, store, wanted=traces.concept_ids, check=check), paths)
        moved = dict(zip(paths, moves, strict=True))
    still_needed: set[str] = set()

    def change(table: pa.Table) -> pa.Table:
        changed = index_without(table, traces.concept_ids, moved)
        still_needed.update(_files(changed))
        return changed

    if traces.recorded or moved:
        check()
        rewrite_index(store, change)
    for path in sorted((traces.shared | traces.own | traces.unreadable) - still_needed):
        check()
        store.delete(path)
        (taken.rewritten if path in moved else taken.removed).add(path)


def _rewrite(store: CatalogStore, path: str, *, wanted: frozenset[str], check: Check) -> _Moved:
    """Write a file's other rows under a name that follows from its content, so that a second try writes the same."""
    kept, numbers = without_concepts(read_data_file(store, path, lambda parquet: parquet.read()), wanted)
    folder, name = path.split("/")
    is_residuals = folder == "residuals"
    data = data_file_bytes(kept, RESIDUALS_PER_ROW_GROUP if is_residuals else RENDERINGS_PER_ROW_GROUP)
    run_id, shard_id, attempt = name.removesuffix(".parquet").split("_")
    attempt = f"{_REWRITTEN.sub('', attempt)}-{hashlib.sha256(data).hexdigest()[:8]}"
    new = (store.residual_file if is_residuals else store.rendering_file)(run_id, shard_id, attempt)
    check()
    store.write(new, data)
    if store.read(new) != data:
        raise StoreError(f"{store.url(new)} does not hold what was written to it", fix="delete it; forget again")
    return _Moved(new, numbers)


def index_without(table: pa.Table, concept_ids: Collection[str], moved: Mapping[str, _Moved]) -> pa.Table:
    """A table of schema `INDEX` without some concepts, and with the rows of others where they lie now.

    Dictionaries are made anew: a plain filter would keep texts that only the forgotten rows had.
    """
    gone = pc.is_in(table.column("concept_id"), pa.array(sorted(concept_ids), pa.string()))  # pyright: ignore
    table = table.filter(pc.invert(gone))  # pyright: ignore[reportAttributeAccessIssue]
    columns = {column.name: table.column(column.name).to_pylist() for column in INDEX if column.name in _PLACES}
    residuals, renderings = columns["residual_file"], columns["rendering_file"]
    for row, path in enumerate(residuals):
        if move := moved.get(path):
            residuals[row], columns["residual_row"][row] = move.path, move.rows[columns["residual_row"][row]]
    for row, path in enumerate(renderings):
        if move := moved.get(path):
            first, count = columns["rendering_rows"][row]
            renderings[row], columns["rendering_rows"][row] = move.path, [move.rows[first], count]
    arrays = []
    for column in INDEX:
        if column.name in columns:
            arrays.append(pa.array(columns[column.name], column.type))
        elif pa.types.is_dictionary(column.type):
            arrays.append(table.column(column.name).cast(pa.string()).combine_chunks().cast(column.type))
        else:
            arrays.append(table.column(column.name))
    return pa.table(arrays, schema=INDEX)


def _files(index: pa.Table) -> Iterable[str]:
    for name in ("residual_file", "rendering_file"):
        yield from (path for path in index.column(name).cast(pa.string()).unique().to_pylist() if path is not None)


def _remove_unsearchable(store: CatalogStore, check: Check) -> None:
    """Temporary files of writers that were killed, torn records and torn snapshots: any of them may name anybody."""
    hidden = (path for path in store.stat_all(hidden=True) if path.rsplit("/", 1)[-1].startswith("."))
    temporary = [path for path in hidden if path.endswith(".tmp") and not path.startswith(store.LEASES)]
    for path in (*temporary, *torn_records(store), *torn_snapshots(store)):
        check()
        store.delete(path)


def _forget_in_documents(store: CatalogStore, wanted: frozenset[str], check: Check) -> int:
    changed = 0
    for path, _ in naming_documents(store, wanted):
        check()
        document = document_without(path, store.read(path), wanted)
        if document is None:
            store.delete(path)
        else:
            store.write(path, document)
        changed += 1
    return changed
